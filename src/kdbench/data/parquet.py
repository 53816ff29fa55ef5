"""Image data sets in Hugging Face's parquet layout, read into memory at one size."""

import json
from pathlib import Path
from typing import Any

from kdbench.data.base import Dataset, Split, assemble
from kdbench.data.decode import decode, refuse_too_large, stack
from kdbench.errors import ConfigError, KdbenchError

LABEL_COLUMNS = ("label", "labels", "fine_label")
IMAGE_COLUMNS = ("image", "img")


def parquet(
    root: str | None,
    image_size: int,
    max_gib: float,
    mean: list[float],
    std: list[float],
    pad: int,
    flip: bool,
    val_split: int,
) -> Dataset:
    """root/[data/]train*.parquet and test*.parquet (or validation*), as uint8 [3, S, S].

    The image column ("image" or "img") is Hugging Face's struct {bytes, path}, the label column
    ("label", "labels" or "fine_label") a whole number. Images are sized as in `image_folder`, and
    the data set is called after its folder.

    Raises:
        ConfigError: no root is named, or pyarrow is not installed.
        KdbenchError: a file is missing or damaged, a row is damaged, or the images would take more
            than `max_gib` GiB of memory.
    """
    if root is None:
        raise ConfigError("no folder of parquet files is named: set dataset.root=DIR")
    base = Path(root)
    train_files = _find(base, ("train",))
    test_files = _find(base, ("test", "validation", "val"))
    rows = sum(_open(path).metadata.num_rows for path in [*train_files, *test_files])
    refuse_too_large(rows, image_size, max_gib)
    train, test = (_read(files, image_size) for files in (train_files, test_files))
    named = _class_names(train_files[0])
    highest = max(int(train.labels.max()), int(test.labels.max()))
    if named and highest >= named:
        raise KdbenchError(f"{base} has label {highest}, its files name {named} classes: mend them")
    return assemble(
        base.resolve().name,
        named or highest + 1,
        train,
        test,
        mean=mean,
        std=std,
        pad=pad,
        flip=flip,
        val_split=val_split,
    )


def _find(base: Path, names: tuple[str, ...]) -> list[Path]:
    for name in names:
        found = sorted([*base.glob(f"{name}*.parquet"), *base.glob(f"data/{name}*.parquet")])
        if found:
            return found
    raise KdbenchError(f"no file {names[0]}*.parquet in {base.resolve()}: set dataset.root=DIR")


def _open(path: Path) -> Any:
    try:
        import pyarrow as arrow
        from pyarrow import parquet as reader
    except ImportError:
        raise ConfigError("parquet files need pyarrow: pip install 'kdbench[hf]'") from None
    try:
        return reader.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise KdbenchError(
            f"{path} is no readable parquet file ({reason}): fetch it again"
        ) from None


def _column(file: Any, path: Path, names: tuple[str, ...]) -> str:
    for name in names:
        if name in file.schema_arrow.names:
            return name
    raise KdbenchError(f"{path} has no column {' or '.join(names)}: rename the one that is meant")


def _class_names(path: Path) -> int | None:
    """How many classes Hugging Face's metadata name; None where there are none."""
    file = _open(path)
    metadata = (file.schema_arrow.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    features = json.loads(metadata).get("info", {}).get("features", {})
    names = features.get(_column(file, path, LABEL_COLUMNS), {}).get("names")
    return len(names) if names else None


def _read(files: list[Path], image_size: int) -> Split:
    images, labels = [], []
    for path in files:
        file = _open(path)
        image_column = _column(file, path, IMAGE_COLUMNS)
        label_column = _column(file, path, LABEL_COLUMNS)
        try:
            table = file.read([image_column, label_column]).to_pylist()
        except OSError as error:
            reason = str(error).split("\n")[0]
            raise KdbenchError(f"{path} is damaged ({reason}): fetch it again") from None
        for number, row in enumerate(table):
            image, label, name = row[image_column], row[label_column], f"{path} row {number}"
            if not isinstance(label, int) or label < 0:
                raise KdbenchError(f"{name} has label {label!r}, no whole number: mend the file")
            content = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(content, bytes):
                raise KdbenchError(f"{name} holds no image bytes: export the images themselves")
            images.append(decode(content, name, image_size))
            labels.append(label)
    if not images:
        raise KdbenchError(f"{files[0]} holds no rows: fetch it again")
    return Split(*stack(images, labels))
