"""Parquet files as on the Hugging Face Hub: an image column and a label column."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from kdbench.data.base import Loaded, Split, assembled, folder_of, pick_test_split
from kdbench.data.decoding.decode import Depth, allocate, decode_into
from kdbench.data.layout import MOST_CLASSES, find_shards
from kdbench.data.passed_over import PassedOver, left_behind
from kdbench.errors import ConfigError, KdbenchError, nearest

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema
    from pyarrow.parquet import ParquetFile

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SHARD = r"(train|test|val|valid|validation)([-_.]?\d.*)?\.parquet"
ROWS = 512  # encoded images in memory at a time


class Columns(NamedTuple):
    """The columns to read, and the class names where the file has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


@assembled
def parquet(
    root: str | None,
    test_split: str | None,
    label_column: str | None,
    image_size: int,
    max_gib: float,
) -> Loaded:
    """Load the images of `root`, or of `root`/data, as uint8 [3, S, S], S = `image_size`.

    Decoded as in `image_folder`. There are as many classes as the files' Hugging Face metadata
    name, else one more than the highest training label. The data set has the folder's name.

    Raises:
        ConfigError: pyarrow is missing, `root` is not set or lacks a split or a column; the images
            do not fit.
        KdbenchError: a file or a row cannot be read, or a shard is missing.
    """
    folder = folder_of(root)
    shards = find_shards(folder, SHARD) or find_shards(folder / "data", SHARD)
    if "train" not in shards:
        raise ConfigError(
            f"no file train*.parquet in {folder}: set dataset.root=DIR to a folder with it and "
            "validation*.parquet or test*.parquet"
        )
    scored = pick_test_split(folder, shards.keys() - {"train"}, test_split)
    train, test = ([(path, opened(path)) for path in shards[name]] for name in ("train", scored))
    columns = _same_columns([*train, *test], label_column)
    count = sum(file.metadata.num_rows for _, file in [*train, *test])
    images = allocate(count, image_size, max_gib)
    passed, depth, splits = PassedOver(), Depth(), list[Split]()
    for files in (train, test):
        labels = _read_into(images, files, columns, passed, depth)
        splits.append(Split(images[: len(labels)], labels))
        images = images[len(labels) :]
    passed.say(folder)
    num_classes = len(columns.classes or ()) or 1 + max(splits[0].labels.tolist(), default=0)
    return Loaded(folder.name, num_classes, *splits)


def _same_columns(files: list[tuple[Path, "ParquetFile"]], label_column: str | None) -> Columns:
    """Return the columns that all files have.

    Raises:
        ConfigError: a file lacks one.
        KdbenchError: files differ in columns, or name different classes.
    """
    first = columns_of(*files[0], label_column)
    for path, file in files[1:]:
        other = columns_of(path, file, label_column)
        same_classes = None in (first.classes, other.classes) or first.classes == other.classes
        if other[:2] != first[:2] or not same_classes:
            raise KdbenchError(
                f"{path} has other columns or classes than {files[0][0].name}: fetch both again"
            )
    return first


def _read_into(
    images: Tensor,
    files: list[tuple[Path, "ParquetFile"]],
    columns: Columns,
    passed: PassedOver,
    depth: Depth,
) -> Tensor:
    """Decode all rows of all files into `images` [N, 3, S, S], and return their labels."""
    labels: list[int] = []
    for path, file in files:
        for names, batch in batches(path, file, columns, passed):
            rows = slice(len(labels), len(labels) + batch.num_rows)
            labels += labels_of(batch, columns, names)
            decode_into(images[rows], encoded_of(batch, columns, names), names, depth)
    return torch.tensor(labels, dtype=torch.int64)


def opened(path: Path) -> "ParquetFile":
    """Open a file and read its schema.

    Raises:
        ConfigError: pyarrow is not installed.
        KdbenchError: it is not a Parquet file.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError("Parquet needs pyarrow: pip install 'kdbench[hf]'") from None
    try:
        file = ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of its columns
        raise _broken(path, error) from None
    if file.metadata.num_rows < 0:
        raise _broken(path, ValueError("a negative number of rows"))
    return file


def columns_of(path: Path, file: "ParquetFile", label_column: str | None) -> Columns:
    """Return the columns that hold images and labels.

    Raises:
        ConfigError: a column is missing, or holds something else.
    """
    import pyarrow as pa

    known = pa.binary(), pa.large_binary()
    schema: Schema = file.schema_arrow
    image = next((name for name in IMAGE_COLUMNS if name in schema.names), None)
    kind = schema.field(image).type if image is not None else pa.null()
    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    if image is None or place < 0 or kind.field(place).type not in known:
        raise ConfigError(
            f"{path} has no column image or img of {{bytes, path}}: it has {schema.names}"
        )
    wanted = LABEL_COLUMNS if label_column is None else (label_column,)
    label = next((name for name in wanted if name in schema.names), None)
    if label is None:
        hint = nearest(wanted[0], set(schema.names) - {image})
        raise ConfigError(
            f"{path} has no column {' or '.join(wanted)}: set dataset.label_column, {hint}"
        )
    if not pa.types.is_integer(schema.field(label).type):
        raise ConfigError(f"{path}: column {label} holds {schema.field(label).type}, not integers")
    return Columns(image, label, _class_names(schema, label))


def _class_names(schema: "Schema", label: str) -> tuple[str, ...] | None:
    """Return the class names that the `datasets` library writes beside the schema, if usable."""
    try:
        written = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(written["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def batches(
    path: Path, file: "ParquetFile", columns: Columns, passed: PassedOver
) -> Iterator[tuple[list[str], "RecordBatch"]]:
    """Yield the file's rows in batches, with a name of each for error lines.

    Rows are skipped whose images have the names of hidden or system files.

    Raises:
        KdbenchError: the file is truncated or altered.
    """
    import pyarrow as pa

    start = 0
    groups = file.iter_batches(ROWS, columns=[columns.image, columns.label])
    while True:
        try:
            batch = next(groups, None)
        except (pa.ArrowException, OSError) as error:
            raise _broken(path, error) from None
        if batch is None:
            return
        called = file_names_of(batch, columns)
        odd = [row for row, name in enumerate(called) if name and left_behind(name)]
        for row in odd:
            passed.left_behind(f"{path.name} row {start + row}: {called[row]}")
        kept = sorted(set(range(batch.num_rows)) - set(odd))
        names = [f"{path} row {start + row}" for row in kept]
        start += batch.num_rows
        yield names, batch.take(pa.array(kept, pa.int64())) if odd else batch


def labels_of(batch: "RecordBatch", columns: Columns, names: list[str]) -> list[int]:
    """Return the rows' class numbers.

    Raises:
        KdbenchError: a row has none, or an invalid one.
    """
    labels = batch.column(columns.label).to_pylist()
    if None in labels:
        raise KdbenchError(f"{names[labels.index(None)]} has no label: fill it or remove the row")
    odd = next((place for place, one in enumerate(labels) if abs(one) >= MOST_CLASSES), None)
    if odd is not None:
        raise KdbenchError(
            f"{names[odd]} has the label {labels[odd]}, no number of a class: mend it"
        )
    return labels


def encoded_of(batch: "RecordBatch", columns: Columns, names: list[str]) -> list[bytes]:
    """Return the rows' encoded images; nothing else of the column is read.

    Raises:
        KdbenchError: a row has none.
    """
    column = batch.column(columns.image)
    encoded = column.flatten()[column.type.get_field_index("bytes")].to_pylist()
    if None in encoded:
        raise KdbenchError(
            f"{names[encoded.index(None)]} has no image bytes: only files with them work"
        )
    return encoded


def file_names_of(batch: "RecordBatch", columns: Columns) -> list[str | None]:
    """Return the file names of the rows' images, without folders; None where they are unknown."""
    import pyarrow as pa

    column = batch.column(columns.image)
    place = column.type.get_field_index("path")
    if place < 0 or column.type.field(place).type not in (pa.string(), pa.large_string()):
        return [None] * batch.num_rows
    kind = pa.large_binary()  # they need not be valid UTF-8
    paths = column.flatten()[place].cast(kind).to_pylist()
    return [path and path.decode(errors="replace").rpartition("/")[2] for path in paths]


def _broken(path: Path, error: Exception) -> KdbenchError:
    reason = " ".join(str(error).split())
    return KdbenchError(f"{path} is no readable parquet file ({reason}): fetch it again")
