"""Teacher outputs for training steps, from the live networks or from the output cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.data.augmentation.views import AnyViews, TrainImages
from kdbench.data.base import Dataset
from kdbench.data.streaming.streamed import StreamedImages
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.networks.forward import stacked, teacher_outputs
from kdbench.records.reproducibility import exact_facts
from kdbench.system.cuda_graphs import Replayed, recorder_for
from kdbench.system.disk import check_room, free_bytes
from kdbench.system.precision import TABLE_DTYPES, Precision, TablePrecision
from kdbench.system.private import private_folder
from kdbench.system.runtime import Runtime
from kdbench.teachers.frozen import CHUNK, FrozenTeacher, freeze
from kdbench.teachers.output_cache import (
    CHECKSUM_BYTES,
    Facts,
    OutputCache,
    bytes_touched,
)
from kdbench.types import Batch, Output

FILL_BATCH = 256
LEAST = 16  # from so many up, an image's outputs do not depend on the size of its batch (on a CPU)
CACHED_TAPS = ("pooled",)  # the taps that a cache can hold beside logits
OTHER_PLACE = "name another runtime.table_dir, or set runtime.teacher=live"  # a full disk
AUTO_BYTES = 20e9  # runtime.teacher=auto keeps no cache that may grow larger


class Use(NamedTuple):
    """The use of teachers by the runs of a cohort."""

    methods: Sequence[Method]
    epochs: int
    precision: Precision
    table_precision: TablePrecision
    changed: bool = False  # images are mixed or erased, so that no view comes twice


class LiveTeachers:
    """The frozen networks run on every batch."""

    def __init__(
        self, networks: Sequence[FrozenTeacher], runtime: Runtime, report: Callable[[str], None]
    ) -> None:
        self.networks = networks
        recorder = recorder_for(runtime) if networks else None
        self.replayed = (
            Replayed(self._by_views, recorder, "the teacher", report) if recorder else None
        )

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Do nothing: live teachers prepare nothing."""

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """Return all teachers' outputs on the first view of a batch, the first two, and so on.

        Each view passes each teacher once. On a GPU, read the outputs before the next call.
        """
        return (self.replayed or self._by_views)(batch)

    def outputs(self, batch: Batch) -> tuple[Output, ...]:
        """Return all teachers' outputs on all views of a batch."""
        return self.by_views(batch)[1 if batch.images.ndim == 4 else len(batch.images)]

    def _by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        views = [batch.images] if batch.images.ndim == 4 else batch.images.unbind()
        seen = [teacher_outputs(self.networks, batch._replace(images=view)) for view in views]
        counts = range(1, len(seen) + 1)
        return {n: tuple(map(stacked, zip(*seen[:n], strict=True))) for n in counts}


@dataclass
class CachedTeacher:
    """A network and the cache of its outputs: the logits, followed by `taps` in order."""

    network: FrozenTeacher
    cache: OutputCache
    taps: dict[str, int]  # name -> width


class CachedTeachers:
    """Teachers whose outputs for an epoch are gathered before it starts.

    The epoch's views are known by then, so a step only picks rows on the device. Missing outputs
    are computed and kept.
    """

    def __init__(
        self,
        teachers: Sequence[CachedTeacher],
        images: TrainImages | StreamedImages,
        memory_format: torch.memory_format,
    ) -> None:
        self.teachers, self.images, self.memory_format = teachers, images, memory_format
        self.epoch: list[Tensor] = []  # for each teacher [N, K + D], row i for image i

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Gather the outputs on every image's view [N] (CPU); return early once `stopped()`."""
        index = torch.arange(len(view)).numpy()
        self.epoch = []
        for teacher in self.teachers:
            outputs, holds = teacher.cache.read(index, view.numpy())
            teacher.network.watch(torch.from_numpy(outputs[holds]))
            missing = index[~holds]
            for start in range(0, len(missing), FILL_BATCH):
                if stopped():
                    return
                rows = missing[start : start + FILL_BATCH]
                found = self.compute(teacher, torch.from_numpy(rows), view[rows]).cpu()
                outputs[rows] = found.numpy().astype(outputs.dtype)
                teacher.cache.write(rows, view.numpy()[rows], outputs[rows])
            self.epoch.append(torch.from_numpy(outputs).to(self.images.device))

    def compute(self, teacher: CachedTeacher, index: Tensor, view: Tensor) -> Tensor:
        """Compute outputs [n, K + D] in one batch, padded with repeats where it is short."""
        count, device = len(index), self.images.device
        # A GPU's kernels are chosen by the size of the batch, so all have the same.
        size = max(count, LEAST if device.type == "cpu" else FILL_BATCH)
        padded = torch.arange(size) % count
        images = self.images.batch(index[padded].to(device), view[padded].to(device))
        with torch.no_grad():
            output: Output = teacher.network(images.to(memory_format=self.memory_format))
        parts = [output.logits, *(output.taps[name] for name in teacher.taps)]
        return torch.cat(parts, dim=1)[:count]

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """Return `outputs` as those of one view: a cache holds no second view."""
        return {1: self.outputs(batch)}

    def outputs(self, batch: Batch) -> tuple[Output, ...]:
        """Return all teachers' outputs on a batch, with only the taps that the caches hold."""
        return tuple(
            self._output(teacher, rows[batch.index].float())
            for teacher, rows in zip(self.teachers, self.epoch, strict=True)
        )

    def _output(self, teacher: CachedTeacher, rows: Tensor) -> Output:
        widths = [rows.shape[1] - sum(teacher.taps.values()), *teacher.taps.values()]
        logits, *taps = rows.split(widths, dim=1)
        return Output(logits, dict(zip(teacher.taps, taps, strict=True)))


def uncached(methods: Sequence[Method], views: AnyViews, changed: bool = False) -> list[str]:
    """Name what these methods read of a teacher that no output cache can hold.

    Args:
        methods: of the runs.
        views: of the data set.
        changed: images are mixed or erased.
    """
    taps = {tap for method in methods if method.num_teachers != 0 for tap in method.taps}
    unheld = sorted(taps - set(CACHED_TAPS))
    unheld += ["several views"] * any(method.views > 1 for method in methods)
    unheld += ["mixed or erased images"] * changed
    return unheld if views.finite else [*unheld, "views out of a continuum"]


def wants_cache(
    runtime: Runtime, methods: Sequence[Method], views: AnyViews, changed: bool = False
) -> bool:
    """Return whether these methods' teacher outputs come from an output cache.

    They do where `runtime.teacher` asks for one (`table`), or allows one (`auto`) that can hold
    everything the methods read.

    Raises:
        ConfigError: `runtime.teacher` asks for a cache that cannot be.
    """
    unheld, count, why = uncached(methods, views, changed), runtime.ranks.count, None
    if unheld:
        why = f"the method reads {', '.join(unheld)}, which no output cache holds"
    elif count > 1:
        why = f"an output cache is filled by one process, not by {count} ranks"
    if why is not None and runtime.teacher == "table":
        raise ConfigError(f"runtime.teacher=table, but {why}: set runtime.teacher=auto")
    # On a GPU cached outputs differ from live ones by rounding, and a resumed run may join or leave
    # a cohort with a method that needs the live teacher.
    alike = runtime.device.type == "cpu" or not runtime.exact
    return why is None and (runtime.teacher == "table" or (runtime.teacher == "auto" and alike))


def choose_outputs(
    use: Use,
    teachers: Mapping[str, nn.Module],
    facts: Mapping[str, Facts],
    dataset: Dataset,
    images: TrainImages | StreamedImages,
    runtime: Runtime,
    runs_dir: Path,
    report: Callable[[str], None],
) -> tuple[LiveTeachers | CachedTeachers, Callable[[], list[str]]]:
    """Choose cached outputs where `runtime.teacher` and the methods allow them, else live ones.

    Args:
        use: what the runs read of their teachers, for how long and in which precision.
        teachers: the networks by name, in eval mode, probed and measured.
        facts: what identifies each teacher in its cache, besides data, device and precision.
        report: takes the lines that the user should read.

    Returns:
        The source of the teacher outputs, and a function that names the teachers whose outputs
        were not finite.

    Raises:
        ConfigError: runtime.teacher=table, and a method reads what no cache holds, or there are
            several ranks.
        KdbenchError: runtime.teacher=table, and there is no room for the cache.
    """
    methods, count = use.methods, len(dataset.train.labels)
    sample = _sample(images, count)
    settings = use.precision, runtime, count * use.epochs, report
    networks = [freeze(network, sample, *settings) for network in teachers.values()]
    by_name = dict(zip(teachers, networks, strict=True))
    watch = partial(infinite, by_name, runtime)
    live = LiveTeachers(networks, runtime, report)
    if not networks or not wants_cache(runtime, methods, dataset.views, use.changed):
        return live, watch
    taps = sorted({tap for method in methods for tap in method.taps})
    widths = [_widths(network, sample, taps) for network in networks]
    root = cache_root(runtime, runs_dir)
    views = dataset.views.count
    dtype = TABLE_DTYPES[use.table_precision]
    number = np.dtype(dtype).itemsize
    rows = [number * sum(width.values()) + CHECKSUM_BYTES for width in widths]
    needed = sum(bytes_touched(count, views, row, use.epochs) for row in rows)
    if runtime.teacher == "auto" and (needed > AUTO_BYTES or free_bytes(root) < needed):
        return live, watch
    check_room(root, needed, "the output cache", OTHER_PLACE)
    shared = _shared_facts(dataset, runtime, taps) | {"dtype": dtype}
    cached = []
    for name, network, width in zip(teachers, networks, widths, strict=True):
        named = shared | facts[name] | network.facts
        cache = OutputCache(root, named, count, views, sum(width.values()))
        del width["logits"]
        cached.append(CachedTeacher(network, cache, width))
    return CachedTeachers(cached, images, runtime.memory_format), watch


def cache_root(runtime: Runtime, runs_dir: Path) -> Path:
    """Return the folder of the output caches."""
    if runtime.table_dir is not None:
        return Path(runtime.table_dir)
    return private_folder(runs_dir, ".tables")


def infinite(networks: Mapping[str, FrozenTeacher], runtime: Runtime) -> list[str]:
    """Name the teachers whose outputs were not all finite, on any rank."""
    return [name for name, one in networks.items() if runtime.ranks.any(one.was_infinite())]


def _shared_facts(dataset: Dataset, runtime: Runtime, taps: Sequence[str]) -> Facts:
    """Collect what the outputs depend on besides the teacher."""
    return {
        "data": dataset.fingerprint,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "views": {"pad": dataset.views.pad, "flip": dataset.views.flip},
        "answers": ["logits", *taps],  # a key of the cached files
        "device": runtime.device.type,
        "channels_last": runtime.memory_format == torch.channels_last,
        **({"exact": exact_facts(runtime)} if runtime.exact else {}),
    }


def _sample(images: TrainImages | StreamedImages, count: int) -> Tensor:
    """Return the first training images [B, C, H, W], at most `CHUNK`."""
    first = torch.arange(min(CHUNK, count), device=images.device)
    return images.batch(first, torch.zeros_like(first))


def _widths(network: FrozenTeacher, sample: Tensor, taps: Sequence[str]) -> dict[str, int]:
    """Return the widths of the logits and of each tap."""
    with torch.no_grad():
        output: Output = network(sample[:1])
    return {"logits": output.logits.shape[1]} | {tap: output.taps[tap].shape[1] for tap in taps}
