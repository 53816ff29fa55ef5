"""The output cache: a frozen teacher's outputs on every view of every image, on disk, as needed.

One row belongs to one (image, view): it holds the outputs, and a checksum over them and the row's
place. A row that was never written, is torn by a crash or by two writers at once, or has a flipped
bit fails its checksum and counts as missing; nothing else records which rows are filled. The file
is sparse: rows that no epoch reads take no space.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from kdbench.errors import KdbenchError
from kdbench.records.identity import canonical
from kdbench.system.disk import free_bytes
from kdbench.system.files import open_own, own_folder, read_small, write_atomically

CHECKSUM_BYTES = 8
PAGE = 4096  # bytes that a file system allocates at least for a row
CHUNK = 8192  # rows that are read or written at once

Facts = dict[str, Any]  # everything that the outputs depend on


class OutputCache:
    """Rows of `width` numbers, one for each view of each image.

    Raises:
        KdbenchError: the folder holds outputs of something else, is another user's, or cannot be
            written.
    """

    def __init__(self, root: Path, facts: Facts, images: int, views: int, width: int) -> None:
        self.views, self.width = views, width
        self.dtype = np.dtype(facts["dtype"])
        self.row_bytes = width * self.dtype.itemsize + CHECKSUM_BYTES
        self.folder = root / hashlib.sha256(canonical(facts).encode()).hexdigest()[:16]
        words = -(-width * self.dtype.itemsize // 8)
        self._weights = _odd_words(words)
        try:
            root.mkdir(parents=True, exist_ok=True)
            own_folder(self.folder)
            self._check_facts(facts)
            size = images * views * self.row_bytes
            with self._open(os.O_RDWR | os.O_CREAT) as file:
                if os.fstat(file.fileno()).st_size != size:  # keep another process's rows
                    os.truncate(file.fileno(), size)
                shape = images * views, self.row_bytes
                self._rows = np.memmap(file, np.uint8, "r", shape=shape)
            # Without this the kernel reads ahead, on a sparse file mostly holes: measured on ext4,
            # that is 27 times slower and takes nine times the disk.
            self._rows._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # private
        except OSError as error:
            raise self._unwritable(error) from None

    def _open(self, flags: int) -> BinaryIO:
        """Open the file of rows; a link is not followed, since its target would be overwritten."""
        mode = "rb" if flags == os.O_RDONLY else "r+b"
        file = os.fdopen(open_own(self.folder / "rows", flags), mode, buffering=0)
        return cast(BinaryIO, file)

    def _unwritable(self, error: OSError) -> KdbenchError:
        return KdbenchError(
            f"cannot keep the output cache in {self.folder} ({error.strerror}): make room, or set "
            "runtime.teacher=live"
        )

    def _check_facts(self, facts: Facts) -> None:
        path = self.folder / "table.json"
        text = json.dumps(facts, indent=1, sort_keys=True)
        if not path.is_file():
            write_atomically(path, text.encode())
            return
        try:
            found = json.loads(read_small(path))
        except (ValueError, RecursionError):
            found = {}
        if not isinstance(found, Mapping) or not found:
            write_atomically(path, text.encode())  # torn; the folder's name says whose it is
            return
        for key in sorted({*facts, *found}):
            if canonical(found.get(key)) != canonical(facts.get(key)):
                raise KdbenchError(
                    f"{self.folder} is the output cache of another {key} ({found.get(key)}, this "
                    f"run's is {facts.get(key)}): remove the folder, or name another "
                    "runtime.table_dir"
                )

    def read(self, index: np.ndarray, view: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs [n, width] for (index, view), and which rows are valid [n] bool."""
        outputs = np.empty((len(index), self.width), self.dtype)
        holds = np.empty(len(index), bool)
        for start in range(0, len(index), CHUNK):
            part = slice(start, start + CHUNK)
            places = self._places(index[part], view[part])
            raw = self._raw(places)
            stored = np.ascontiguousarray(raw[:, -CHECKSUM_BYTES:]).view(np.uint64)[:, 0]
            content = np.ascontiguousarray(raw[:, :-CHECKSUM_BYTES])
            holds[part] = stored == self._checksums(content, places)
            outputs[part] = content.view(self.dtype)
        return outputs, holds

    def _raw(self, places: np.ndarray) -> np.ndarray:
        """The bytes of rows, [n, row_bytes]."""
        if free_bytes(self.folder) > len(places) * PAGE:
            return self._rows[places]
        # A disk in memory (tmpfs) allocates a page for a hole that is read through a mapping; on a
        # full one, that is a SIGBUS. Reading row by row takes three times as long.
        raw = np.zeros((len(places), self.row_bytes), np.uint8)
        with self._open(os.O_RDONLY) as file:
            for place, row in zip((places * self.row_bytes).tolist(), raw, strict=True):
                os.preadv(file.fileno(), [row.data], place)
        return raw

    def write(self, index: np.ndarray, view: np.ndarray, outputs: np.ndarray) -> None:
        """Keep the outputs [n, width] for (index, view).

        Raises:
            KdbenchError: the disk is full, or the folder cannot be written any more.
        """
        for start in range(0, len(index), CHUNK):
            part = slice(start, start + CHUNK)
            places = self._places(index[part], view[part])
            content = np.ascontiguousarray(outputs[part], self.dtype).view(np.uint8)
            checksums = self._checksums(content, places).view(np.uint8).reshape(-1, CHECKSUM_BYTES)
            rows = np.concatenate([content, checksums], axis=1)
            # Writing through the mapping would turn a full disk into a SIGBUS, and is no faster.
            try:
                with self._open(os.O_RDWR) as file:
                    for place, row in zip((places * self.row_bytes).tolist(), rows, strict=True):
                        os.pwrite(file.fileno(), row, place)
            except OSError as error:
                raise self._unwritable(error) from None

    def _places(self, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        return index.astype(np.int64) * self.views + view

    def _checksums(self, content: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return 64-bit sums of words times odd numbers: no flipped bit leaves one unchanged."""
        padding = -content.shape[1] % 8
        words = np.pad(content, ((0, 0), (0, padding))).view(np.uint64)
        offset = (places.astype(np.uint64) + np.uint64(1)) * self._weights[-1]
        return words @ self._weights[:-1] + offset


def _odd_words(count: int) -> np.ndarray:
    """Return fixed odd 64-bit numbers: one for each word, and one for the row's place."""
    return np.random.Philox(key=0x7461626C65).random_raw(count + 1) | np.uint64(1)


def bytes_touched(images: int, views: int, row_bytes: int, epochs: int) -> int:
    """Estimate the disk space in bytes that `epochs` epochs of random views fill, in pages."""
    per_page = min(views, max(1, PAGE // row_bytes))
    pages = images * views / per_page
    untouched = (1 - per_page / views) ** epochs
    return int(pages * (1 - untouched) * max(PAGE, row_bytes))
