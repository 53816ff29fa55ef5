"""Images per second of CPU time from JPEG files: kdbench against ImageFolder, DataLoader and PIL.

    python -m benchmarks.streamed [--images N] [--rounds N] [--size N] [--enlarge]

Both sides make normalised float batches of RandomResizedCrop and flip out of the training images of
KDBENCH_DATA/imagenette-mini (224 x 224); kdbench's out of folders, tar, Parquet and a cache of
pixels as well. `--enlarge` scales the images to 500 x 375 before, about the size of ImageNet's.
CPU time of the process, all threads: other work on the machine changes it less than the clock's.
"""

import argparse
import io
import itertools
import json
import os
import random
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.common import line, ratio, spread
from kdbench.data.augmentation.views import epoch_plan
from kdbench.data.streaming.imagenet import imagenet
from kdbench.data.streaming.sources import ShardSource
from kdbench.data.streaming.streamed import StreamedDataset, files_of, images_of

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
BATCH = 32
RESIZED = 256
GROUP = 100  # rows of a Parquet group, as on the Hugging Face Hub
CPU = torch.device("cpu")


def write_tar(folder: ImageFolder, path: Path) -> None:
    """The folder's images with their classes, in WebDataset's layout."""
    with tarfile.open(path, "w") as tar:
        for name, label in folder.samples:
            for ending, content in ((".JPEG", Path(name).read_bytes()), (".cls", b"%d" % label)):
                info = tarfile.TarInfo(Path(name).stem + ending)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_parquet(folder: ImageFolder, path: Path) -> None:
    """The folder's images in the Hub's columns, compression and groups of rows."""
    rows = [
        {"bytes": Path(name).read_bytes(), "path": Path(name).name} for name, _ in folder.samples
    ]
    table = pa.table({"image": rows, "label": [label for _, label in folder.samples]})
    pq.write_table(table, path, row_group_size=GROUP)


def enlarged(root: Path, target: Path) -> Path:
    """A copy of the folders with images of ImageNet's size."""
    for path in sorted(root.glob("*/*/*")):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((500, 375)).save(copy, quality=95)
    return target


def ours(data: StreamedDataset, count: int) -> Callable[[], None]:
    """The first batches of kdbench's epochs, a turn each; nothing is decoded between turns."""
    images, epochs = images_of(data, CPU), itertools.count(1)

    def turn() -> None:
        order, view = epoch_plan(len(images), data.views, 0, next(epochs))
        for _ in images.epoch(order[: count * BATCH], view, size=BATCH, first=0):
            pass

    return turn


def plain(root: Path, size: int, count: int) -> Callable[[], object]:
    """What a user would write, in one process."""
    steps = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    folder = ImageFolder(root / "train", transforms.Compose(steps))
    loader = DataLoader(folder, BATCH, shuffle=True)
    return lambda: deque(itertools.islice(loader, count), maxlen=0)


def one_of_a_group(path: Path, count: int) -> float:
    """Milliseconds of CPU time to have one image's bytes from Parquet without a copy."""
    file = pq.ParquetFile(path)
    chosen = random.Random(0)
    started = time.process_time()
    for _ in range(count):
        row = chosen.randrange(file.metadata.num_rows)
        group = file.read_row_group(row // GROUP, ["image"])
        group.column("image")[row % GROUP].as_py()
    return 1000 * (time.process_time() - started) / count


def one_piece(data: StreamedDataset, count: int) -> float:
    """Milliseconds of CPU time to have one image's bytes from a shard or a copy."""
    source, chosen = files_of(data.train).source, random.Random(0)
    assert isinstance(source, ShardSource)
    started = time.process_time()
    for _ in range(count):
        row = chosen.randrange(len(source.names))
        with source.files[source.file[row]].open("rb", buffering=0) as file:
            file.seek(int(source.offset[row]))
            file.read(source.sizes[row])
    return 1000 * (time.process_time() - started) / count


def cpu_turns(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU time of alternating turns; see `common.turns`."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for done in range(-1, rounds):
        names = list(contestants) if done % 2 == 0 else list(reversed(contestants))
        for name in names:
            started = time.process_time()
            contestants[name]()
            if done >= 0:
                times[name].append(time.process_time() - started)
    return times


def measure(root: Path, scratch: Path, size: int, batches: int, rounds: int) -> dict[str, Any]:
    """All rates, and kdbench's over the plain loop's."""
    settings: dict[str, Any] = {"image_size": size, "test_resize": max(size, 256), "flip": True}
    settings |= {"mean": MEAN, "std": STD, "val_split": 0, "cache_dir": str(scratch / "cache")}
    for split in ("train", "val"):
        folder = ImageFolder(root / split)
        for kind, write in (("tar", write_tar), ("parquet", write_parquet)):
            (scratch / kind).mkdir(exist_ok=True)
            write(folder, scratch / kind / f"{split}.{kind}")
    made: dict[str, float] = {}

    def timed(name: str, load: Callable[[], StreamedDataset]) -> StreamedDataset:
        started = time.process_time()
        data = load()
        made[name] = round(1000 * (time.process_time() - started) / len(data.train.labels), 4)
        return data

    data = {
        "folder": timed("folder", lambda: imagenet(str(root), **settings)),
        "tar": timed("tar", lambda: imagenet(str(scratch / "tar"), **settings)),
        "parquet": timed("parquet", lambda: imagenet(str(scratch / "parquet"), **settings)),
        "pixels": timed("pixels", lambda: imagenet(str(root), **settings, resized=RESIZED)),
    }
    contestants = {"plain": plain(root, size, batches)}
    contestants |= {name: ours(one, batches) for name, one in data.items()}
    times = cpu_turns(contestants, rounds)
    seen, sizes = batches * BATCH, files_of(data["folder"].train).source.sizes
    return {
        "ratios": {name: ratio(times, "plain", name) for name in data},
        "images_per_cpu_second": {k: spread([seen / t for t in v]) for k, v in times.items()},
        "first_start_ms_per_image": made,
        "read_ms": {
            "parquet, its group": round(one_of_a_group(scratch / "parquet/train.parquet", 50), 4),
            "parquet, its copy": round(one_piece(data["parquet"], 500), 4),
            "tar": round(one_piece(data["tar"], 500), 4),
        },
        "size": size,
        "batch": BATCH,
        "images_a_turn": seen,
        "jpeg_bytes": round(sum(sizes) / len(sizes)),
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=384, help="of a turn")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--enlarge", action="store_true", help="to 500 x 375 before")
    parser.add_argument("--size", type=int, default=224, help="of the crops")
    chosen = parser.parse_args()
    root = Path(os.environ.get("KDBENCH_DATA", "data"), "imagenette-mini")
    if not root.is_dir():
        raise SystemExit(f"no {root}: set KDBENCH_DATA to a folder that holds imagenette-mini")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if chosen.enlarge:
            root = enlarged(root, Path(scratch, "folder"))
        batches = max(1, chosen.images // BATCH)
        found = measure(root, Path(scratch), chosen.size, batches, chosen.rounds)
    for name, rate in found["images_per_cpu_second"].items():
        print(line(f"{name}, images per second of CPU time", rate))
    for name, one in found["ratios"].items():
        print(line(f"{name} over ImageFolder, DataLoader and PIL", one))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
