"""A checkpoint's passport: its file's identity, its source and its expected score.

Dead links and silently wrong normalisation are this field's usual faults of teachers, so a teacher
is used only after its file is identified and its accuracy measured.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, KdbenchError
from kdbench.schema.check import check_plain, convert
from kdbench.system.files import read_small, write_atomically

SUFFIX = ".passport.json"
KNOWN = Path(__file__).resolve().parent / "passports"


@dataclass(frozen=True)
class Passport:
    """Facts about one checkpoint file; None where unknown."""

    sha256: str | None = None
    network: str | None = None
    dataset: str | None = None
    mean: tuple[float, ...] | None = None  # normalisation it was trained with
    std: tuple[float, ...] | None = None
    top1: float | None = None  # percent on the whole test set
    ap: float | None = None  # percent, COCO's AP of a detector
    source: str | None = None
    licence: str | None = None

    def stated(self) -> dict[str, Any]:
        """Return the facts that are known."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def filled_from(self, other: "Passport") -> "Passport":
        """Return this passport with its unknown facts taken from `other`."""
        return dataclasses.replace(other, **self.stated())


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def beside(checkpoint: Path) -> Path:
    """Return the path of a checkpoint's own passport."""
    return checkpoint.with_name(checkpoint.stem + SUFFIX)


def read_passport(path: Path) -> Passport:
    """Read a passport file.

    Raises:
        KdbenchError: the file is not a JSON object of a passport's fields.
    """
    try:
        fields = json.loads(read_small(path))
        hints = Passport.__annotations__
        check_plain("", fields)  # records copy them
        return Passport(**{key: convert(key, value, hints[key]) for key, value in fields.items()})
    except (ValueError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise KdbenchError(f"{path} is not a passport ({error}): mend it or remove it") from None


def write_passport(passport: Passport, path: Path) -> None:
    """Write a passport file, with a line for each fact."""
    text = json.dumps(dataclasses.asdict(passport), indent=1) + "\n"
    write_atomically(path, text.encode())


def find_passport(checkpoint: Path, sha256: str) -> Passport:
    """Return a file's passport: the one beside it, else that of kdbench's list of known files."""
    own = beside(checkpoint)
    if own.is_file():
        return read_passport(own)
    for path in sorted(KNOWN.glob(f"*{SUFFIX}")):
        known = read_passport(path)
        if known.sha256 == sha256:
            return known
    return Passport()
