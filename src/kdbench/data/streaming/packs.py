"""Copies of the images in Parquet shards in one file, where each can be read by itself.

Parquet holds images in compressed groups of rows (a hundred on the Hugging Face Hub), and reading
one image means unpacking its whole group. Every shard's images are therefore copied once.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from kdbench.data.memory.parquet import (
    batches,
    columns_of,
    encoded_of,
    file_names_of,
    labels_of,
    opened,
)
from kdbench.data.passed_over import PassedOver
from kdbench.data.streaming.tar import Index, make_index
from kdbench.errors import KdbenchError, writing
from kdbench.system.files import TEMPORARY


def pack(shard: Path, target: Path, passed: PassedOver | None = None) -> Index:
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
            for names, batch in batches(shard, file, columns, passed or PassedOver()):
                labels = labels_of(batch, columns, names)
                contents = encoded_of(batch, columns, names)
                called = file_names_of(batch, columns)
                for name, label, content in zip(called, labels, contents, strict=True):
                    out.write(content)
                    line = " ".join((name or "").split())  # the index has a line for each
                    line = line or f"{shard.stem}-{len(rows):06d}"
                    rows.append((line, label, offset, len(content)))
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
