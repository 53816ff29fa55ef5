"""Where a step gets the teachers' outputs from: the live networks, or a table of their answers."""

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
    TeacherTable,
    bytes_touched,
)
from kdbench.types import Batch, Output

FILL_BATCH = 256  # an answer does not depend on the batch it is computed in, from 16 images up
TABLED_TAPS = ("pooled",)  # what a table can hold beside logits
OTHER_TABLE = "name another runtime.table_dir, or set runtime.teacher=live"  # a full disk
AUTO_BYTES = 20e9  # runtime.teacher=auto keeps no table that may grow beyond


class Use(NamedTuple):
    """How the runs of a cohort use their teachers."""

    methods: Sequence[Method]
    epochs: int
    precision: Precision
    table_precision: TablePrecision


class LiveTeachers:
    """Every batch is shown to the frozen networks."""

    def __init__(
        self, networks: Sequence[FrozenTeacher], runtime: Runtime, report: Callable[[str], None]
    ) -> None:
        self.networks = networks
        recorder = recorder_for(runtime) if networks else None
        self.replayed = (
            Replayed(self._by_views, recorder, "the teacher", report) if recorder else None
        )

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Nothing is prepared."""

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """All teachers' outputs on the first view, the first two, ... of a batch, each shown once.

        On a GPU they are to be read before the next call.
        """
        return (self.replayed or self._by_views)(batch)

    def outputs(self, batch: Batch) -> tuple[Output, ...]:
        """All teachers' outputs on all views of a batch."""
        return self.by_views(batch)[1 if batch.images.ndim == 4 else len(batch.images)]

    def _by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        views = [batch.images] if batch.images.ndim == 4 else batch.images.unbind()
        seen = [teacher_outputs(self.networks, batch._replace(images=view)) for view in views]
        counts = range(1, len(seen) + 1)
        return {n: tuple(map(stacked, zip(*seen[:n], strict=True))) for n in counts}


@dataclass
class TabledTeacher:
    """A network, and the table of its answers: logits, and behind them the taps `answers` names."""

    network: FrozenTeacher
    table: TeacherTable
    taps: dict[str, int]  # name -> width


class TabledTeachers:
    """An epoch's answers are gathered before it starts; those missing are computed and kept.

    The views of an epoch are known by then, so a step only picks rows on the device.
    """

    def __init__(
        self,
        teachers: Sequence[TabledTeacher],
        images: TrainImages | StreamedImages,
        memory_format: torch.memory_format,
    ) -> None:
        self.teachers, self.images, self.memory_format = teachers, images, memory_format
        self.epoch: list[Tensor] = []  # for each teacher [N, K + D], row i for image i

    def start_epoch(self, view: Tensor, stopped: Callable[[], bool]) -> None:
        """Gather the answers to every image's view [N] (CPU); returns early when `stopped` says."""
        index = torch.arange(len(view)).numpy()
        self.epoch = []
        for teacher in self.teachers:
            answers, holds = teacher.table.read(index, view.numpy())
            teacher.network.watch(torch.from_numpy(answers[holds]))
            missing = index[~holds]
            for start in range(0, len(missing), FILL_BATCH):
                if stopped():
                    return
                rows = missing[start : start + FILL_BATCH]
                found = self.compute(teacher, torch.from_numpy(rows), view[rows]).cpu()
                answers[rows] = found.numpy().astype(answers.dtype)
                teacher.table.write(rows, view.numpy()[rows], answers[rows])
            self.epoch.append(torch.from_numpy(answers).to(self.images.device))

    def compute(self, teacher: TabledTeacher, index: Tensor, view: Tensor) -> Tensor:
        """The network's answers [n, K + D], in a batch of the one size filled up with repeats."""
        count = len(index)
        padded = torch.arange(FILL_BATCH) % count
        images = self.images.batch(
            index[padded].to(self.images.device), view[padded].to(self.images.device)
        )
        with torch.no_grad():
            output: Output = teacher.network(images.to(memory_format=self.memory_format))
        parts = [output.logits, *(output.taps[name] for name in teacher.taps)]
        return torch.cat(parts, dim=1)[:count]

    def by_views(self, batch: Batch) -> dict[int, tuple[Output, ...]]:
        """As `outputs`: no table serves a second view."""
        return {1: self.outputs(batch)}

    def outputs(self, batch: Batch) -> tuple[Output, ...]:
        """All teachers' outputs on a batch; of the taps only those that the tables hold."""
        return tuple(
            self._output(teacher, answers[batch.index].float())
            for teacher, answers in zip(self.teachers, self.epoch, strict=True)
        )

    def _output(self, teacher: TabledTeacher, rows: Tensor) -> Output:
        widths = [rows.shape[1] - sum(teacher.taps.values()), *teacher.taps.values()]
        logits, *taps = rows.split(widths, dim=1)
        return Output(logits, dict(zip(teacher.taps, taps, strict=True)))


def untabled(methods: Sequence[Method], views: AnyViews) -> list[str]:
    """What these methods read of a teacher that no table holds."""
    taps = {tap for method in methods if method.num_teachers != 0 for tap in method.taps}
    unheld = sorted(taps - set(TABLED_TAPS))
    unheld += ["several views"] * any(method.views > 1 for method in methods)
    return unheld if views.finite else [*unheld, "views out of a continuum"]


def wants_tables(runtime: Runtime, methods: Sequence[Method], views: AnyViews) -> bool:
    """Whether `runtime.teacher` asks for tables, or allows them and there can be some.

    Raises:
        ConfigError: it asks for them, and there can be none.
    """
    unheld, count, why = untabled(methods, views), runtime.ranks.count, None
    if unheld:
        why = f"the method reads {', '.join(unheld)}, which no table holds"
    elif count > 1:
        why = f"a table is filled by one process, not by {count} ranks"
    if why is not None and runtime.teacher == "table":
        raise ConfigError(f"runtime.teacher=table, but {why}: set runtime.teacher=auto")
    # On a GPU a table's answers differ from live ones by rounding, and whether a run is beside one
    # that no table serves may change when it is resumed.
    alike = runtime.device.type == "cpu" or not runtime.exact
    return why is None and (runtime.teacher == "table" or (runtime.teacher == "auto" and alike))


def choose_answers(
    use: Use,
    teachers: Mapping[str, nn.Module],
    facts: Mapping[str, Facts],
    dataset: Dataset,
    images: TrainImages | StreamedImages,
    runtime: Runtime,
    runs_dir: Path,
    report: Callable[[str], None],
) -> tuple[LiveTeachers | TabledTeachers, Callable[[], list[str]]]:
    """Tables where `runtime.teacher` and the members' methods allow them, else the live networks.

    Args:
        use: what the runs read of their teachers, for how long and in which precision.
        teachers: the networks by name, in eval mode, probed and measured.
        facts: what names each teacher's table, besides data, device and how it is called.
        report: takes the lines that the user is to read.

    Returns:
        Where steps get the outputs from, and what names the teachers whose outputs were not finite.

    Raises:
        ConfigError: runtime.teacher=table, and a method reads what no table holds, or there are
            several ranks.
        KdbenchError: runtime.teacher=table, and there is no room for it.
    """
    methods, count = use.methods, len(dataset.train.labels)
    sample = _sample(images, count)
    settings = use.precision, runtime, count * use.epochs, report
    networks = [freeze(network, sample, *settings) for network in teachers.values()]
    by_name = dict(zip(teachers, networks, strict=True))
    watch = partial(infinite, by_name, runtime)
    live = LiveTeachers(networks, runtime, report)
    if not networks or not wants_tables(runtime, methods, dataset.views):
        return live, watch
    taps = sorted({tap for method in methods for tap in method.taps})
    widths = [_widths(network, sample, taps) for network in networks]
    root = table_root(runtime, runs_dir)
    views = dataset.views.count
    dtype = TABLE_DTYPES[use.table_precision]
    number = np.dtype(dtype).itemsize
    rows = [number * sum(width.values()) + CHECKSUM_BYTES for width in widths]
    needed = sum(bytes_touched(count, views, row, use.epochs) for row in rows)
    if runtime.teacher == "auto" and (needed > AUTO_BYTES or free_bytes(root) < needed):
        return live, watch
    check_room(root, needed, "the teacher table", OTHER_TABLE)
    shared = _shared_facts(dataset, runtime, taps) | {"dtype": dtype}
    tabled = []
    for name, network, width in zip(teachers, networks, widths, strict=True):
        named = shared | facts[name] | network.facts
        table = TeacherTable(root, named, count, views, sum(width.values()))
        del width["logits"]
        tabled.append(TabledTeacher(network, table, width))
    return TabledTeachers(tabled, images, runtime.memory_format), watch


def table_root(runtime: Runtime, runs_dir: Path) -> Path:
    """Where the tables are."""
    if runtime.table_dir is not None:
        return Path(runtime.table_dir)
    return private_folder(runs_dir, ".tables")


def infinite(networks: Mapping[str, FrozenTeacher], runtime: Runtime) -> list[str]:
    """The names of those whose outputs were not all finite, on any rank."""
    return [name for name, one in networks.items() if runtime.ranks.any(one.was_infinite())]


def _shared_facts(dataset: Dataset, runtime: Runtime, taps: Sequence[str]) -> Facts:
    """What an answer depends on besides the teacher."""
    return {
        "data": dataset.fingerprint,
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "views": {"pad": dataset.views.pad, "flip": dataset.views.flip},
        "answers": ["logits", *taps],
        "device": runtime.device.type,
        "channels_last": runtime.memory_format == torch.channels_last,
        **({"exact": exact_facts(runtime)} if runtime.exact else {}),
    }


def _sample(images: TrainImages | StreamedImages, count: int) -> Tensor:
    """The first training images, [B, C, H, W] of at most `CHUNK`."""
    first = torch.arange(min(CHUNK, count), device=images.device)
    return images.batch(first, torch.zeros_like(first))


def _widths(network: FrozenTeacher, sample: Tensor, taps: Sequence[str]) -> dict[str, int]:
    """How many numbers the logits and each tap have."""
    with torch.no_grad():
        output: Output = network(sample[:1])
    return {"logits": output.logits.shape[1]} | {tap: output.taps[tap].shape[1] for tap in taps}
