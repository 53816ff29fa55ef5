"""Reference values: a file for each loss, or one file for losses that share their inputs.

python tests/support/golden.py FOLDER... tests/golden    # packs folders into the last one

The packed values are rounded to 36 bits, a hundredth of what the tests allow; KDBENCH_GOLDEN names
folders with all bits.
"""

import gzip
import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

INDEX, PACKED = "index.json", "arrays.npz"
LOW_BITS = 16  # of a float64 that are rounded away


def read(file: Path) -> Any:
    """A file of JSON, or its compressed form FILE.gz; None where there is neither."""
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    packed_file = file.with_name(f"{file.name}.gz")
    return json.loads(gzip.decompress(packed_file.read_bytes())) if packed_file.is_file() else None


def write(content: Any, file: Path) -> None:
    """Write JSON in its compressed form."""
    packed_bytes = gzip.compress(json.dumps(content).encode(), mtime=0)
    file.with_name(f"{file.name}.gz").write_bytes(packed_bytes)


def arrays_of(folder: Path, case: dict) -> dict[str, np.ndarray]:
    """A case's inputs and expected values by name."""
    if "arrays" not in case:
        with np.load(folder / f"{case['case']}.npz") as stored:
            return dict(stored)
    found = {}
    for name, (kind, start, *shape) in case["arrays"].items():
        values = packed(folder / PACKED)[kind][start : start + math.prod(shape)]
        wide = np.float64 if kind == "float32" else kind  # float32 is what it fits in exactly
        found[name] = values.reshape(shape).astype(wide)
    return found


@cache
def packed(file: Path) -> dict[str, np.ndarray]:
    """The numbers of all cases, a row for each type."""
    with np.load(file) as stored:
        return {kind: planes.T.copy().view(kind)[:, 0] for kind, planes in stored.items()}


def rounded(array: np.ndarray) -> np.ndarray:
    """Round float64 to the bits that are kept, and to float32 where that is exact."""
    if array.dtype != np.float64:
        return array
    narrow = array.astype(np.float32)
    if np.array_equal(narrow, array):
        return narrow
    bits = array.view(np.uint64) + np.uint64(1 << (LOW_BITS - 1))
    return (bits >> np.uint64(LOW_BITS) << np.uint64(LOW_BITS)).view(np.float64)


def pack(folders: Sequence[Path], target: Path) -> None:
    """Write the cases of some folders into one, each array once.

    The numbers are stored byte by byte, all first bytes first: signs and exponents are alike.
    """
    kept: dict[str, list[np.ndarray]] = {}
    places: dict[tuple, list] = {}
    cases = []
    for folder in folders:
        for case in read(folder / INDEX):
            names = {}
            for name, array in arrays_of(folder, case).items():
                stored = rounded(array)
                key = stored.dtype.name, stored.shape, stored.tobytes()
                if key not in places:
                    row = kept.setdefault(stored.dtype.name, [])
                    start = sum(part.size for part in row)
                    places[key] = [stored.dtype.name, start, *stored.shape]
                    row.append(stored.ravel())
                names[name] = places[key]
            cases.append({**case, "arrays": names})
    target.mkdir(parents=True, exist_ok=True)
    rows = {kind: np.concatenate(row) for kind, row in kept.items()}
    planes = {kind: row[:, None].view(np.uint8).T for kind, row in rows.items()}
    np.savez_compressed(target / PACKED, **planes)
    write(cases, target / INDEX)


if __name__ == "__main__":
    *sources, into = map(Path, sys.argv[1:])
    pack(sources, into)
