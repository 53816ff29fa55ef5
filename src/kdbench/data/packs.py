"""Copies of the images in Parquet shards, one after the other, where each can be read by itself.

Parquet holds images in compressed groups of rows (a hundred on the Hugging Face Hub): to read one
image is to read and unpack all of its group. So every shard's images are copied out once.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdbench.data.parquet import batches, columns_of, labels_of, opened
from kdbench.data.tar import Index, make_index
from kdbench.errors import KdbenchError, writing
from kdbench.files import TEMPORARY


def pack(shard: Path, target: Path) -> Index:
    """Copy the encoded images of a shard to `target`, whole or not at all.

    Raises:
        ConfigError: pyarrow is missing, or the shard lacks a column.
        KdbenchError: it or a row of it cannot be read, or `target` cannot be written.
    """
    file = opened(shard)
    columns = columns_of(shard, file, None)
    temporary = target.with_name(f"{target.name}.{secrets.token_hex(6)}{TEMPORARY}")
    rows: list[tuple[str, int, int, int]] = []
    offset = 0
    try:
        with writing(target), temporary.open("xb") as out:
            for names, batch in batches(shard, file, columns):
                labels = labels_of(batch, columns, names)
                cells = batch.column(columns.image).to_pylist()
                for name, label, cell in zip(names, labels, cells, strict=True):
                    content = content_of(cell, name)
                    out.write(content)
                    called = " ".join((cell.get("path") or "").rpartition("/")[2].split())
                    called = called or f"{shard.stem}-{len(rows):06d}"
                    rows.append((called, label, offset, len(content)))
                    offset += len(content)
            out.flush()
            os.fsync(out.fileno())
        if not rows:
            raise KdbenchError(f"{shard} has no images: fetch it again or remove it")
        with writing(target):
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return make_index(rows)


def content_of(cell: dict[str, Any] | None, name: str) -> bytes:
    """The encoded image of a cell.

    Raises:
        KdbenchError: there is none.
    """
    content = cell and cell["bytes"]
    if not content:
        raise KdbenchError(f"{name} has no image bytes: only files with them work")
    return content
