"""What the ImageNet table would cost on GPUs: measured on this CPU, predicted from there.

    python -m benchmarks.scaling --measure > results/benchmarks/scaling.json  # minutes, one core
    python -m benchmarks.scaling  # the tables of docs/scaling.md, from that file

Measured are CPU seconds per image of both pairs' networks at 224 x 224, their floating-point
operations, and what a core decodes. Predicted is everything about GPUs: one does what this core
does, faster by the factor that its peak and an assumed utilisation give for ResNet34's forward
pass. So what a counter of operations cannot see, as the memory traffic of depthwise convolutions,
is as costly beside the rest as it is here.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import streamed
from kdbench.assembly.build import build_method
from kdbench.assembly.make import make
from kdbench.config.hydra_cli import compose_group
from kdbench.config.kinds import SHAPED_BY_DATA
from kdbench.networks.forward import teacher_outputs
from kdbench.parallel.overlap import SIZES
from kdbench.schema.check import check_node
from kdbench.system.hardware import hardware, versions
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.training.step import train_step
from kdbench.types import Batch

FILE = Path(__file__).resolve().parents[1] / "results" / "benchmarks" / "scaling.json"
PAIRS = {
    "ResNet34 -> ResNet18": ("imagenet_ResNet34", "imagenet_ResNet18"),
    "ResNet50 -> MobileNetV1": ("imagenet_ResNet50", "MobileNetV1"),
}
BATCH, STEPS = 8, 9  # of what is measured
CLASSES, SIDE = 1000, 224

# The table: experiments/imagenet_*.yaml, conf/schedule/imagenet.yaml.
METHODS, SEEDS, EPOCHS, TRAIN, TEST, GLOBAL_BATCH = 16, 3, 100, 1_281_167, 50_000, 512
# An H100 SXM by its data sheet, dense: operations a second, and the share assumed to be reached.
PRECISIONS = {"fp32": (67e12, 0.5), "tf32": (494e12, 0.15), "bf16": (989e12, 0.15)}
CORES = 8  # assumed beside each GPU, and a process each
GIL = 7000  # images a second that one process can pass on, docs/performance.md
NVLINK, NETWORK = 450e9, 50e9  # bytes a second and GPU, each way, by their data sheets


def network(name: str) -> nn.Module:
    """A network of conf/student for ImageNet, with random weights."""
    node = check_node("student", compose_group("student", name), given=SHAPED_BY_DATA)
    built: nn.Module = make(node, num_classes=CLASSES, in_channels=3)
    return built.to(memory_format=torch.channels_last)


def cpu_seconds(call: Callable[[], object]) -> float:
    """The least CPU time of `STEPS` calls: other work on a machine only adds to it."""
    call()
    times = []
    for _ in range(STEPS):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def gflop(module: nn.Module, images: Tensor) -> float:
    """Floating-point operations of a forward pass's convolutions and products, an image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(images)
    return counter.get_total_flops() / len(images) / 1e9


def measure_pair(teacher_name: str, student_name: str) -> dict[str, float]:
    """A KD step's two parts, per image: the teacher's forward pass, and what is the student's."""
    teacher = network(teacher_name).eval().requires_grad_(False)
    student = network(student_name).train()
    images = torch.randn(BATCH, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    index = torch.arange(BATCH)
    batch = Batch(images, index, index, torch.tensor(1.0))
    method = build_method(check_node("method", compose_group("method", "kd")), seed=0)
    optimizer = Optimizer(Schedule(1, BATCH, 1e-4, []), student, method)
    answers = teacher_outputs([teacher], batch)
    generator = torch.Generator().manual_seed(0)
    given = optimizer, batch, generator, losses_and_sums
    parts = {
        "teacher": lambda: teacher_outputs([teacher], batch),
        "student": lambda: train_step(student, method, answers, *given),
    }
    found: dict[str, float] = {"parameters": sum(p.numel() for p in student.parameters())}
    for name, call in parts.items():
        found[f"{name}_cpu_ms"] = 1000 * cpu_seconds(call) / BATCH
    found["teacher_gflop"] = gflop(teacher, images)
    found["student_gflop"] = 3 * gflop(student, images)  # backward: twice; see the page
    return {key: round(value, 3) for key, value in found.items()}


def measure() -> dict[str, Any]:
    """All that the predictions start from, on one thread."""
    torch.set_num_threads(1)
    pairs = {name: measure_pair(*pair) for name, pair in PAIRS.items()}
    root = Path(os.environ.get("KDBENCH_DATA", "data"), "imagenette-mini")
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        large = streamed.enlarged(root, Path(scratch, "folder"))
        rates = streamed.measure(large, Path(scratch), SIDE, batches=4, rounds=6)
    loader = {k: v["max"] for k, v in rates["images_per_cpu_second"].items() if k != "plain"}
    facts = {"hardware": hardware(torch.device("cpu")), "versions": versions()}
    return {"pairs": pairs, "loader": loader, "load": os.getloadavg()[1], **facts}


def speed_up(found: dict[str, Any], precision: str) -> float:
    """How many of this core a GPU is."""
    pair = found["pairs"]["ResNet34 -> ResNet18"]
    peak, utilisation = PRECISIONS[precision]
    return peak * utilisation / (pair["teacher_gflop"] * 1e12 / pair["teacher_cpu_ms"])


def gpu_rate(found: dict[str, Any], pair: str, size: int, precision: str) -> float:
    """Images a second that a GPU trains a cohort of `size` on."""
    one = found["pairs"][pair]
    cpu_ms = one["teacher_cpu_ms"] + size * one["student_cpu_ms"]
    return 1000 * speed_up(found, precision) / cpu_ms


def loader_rate(found: dict[str, Any], source: str) -> float:
    """Images a second that a process with `CORES` cores decodes."""
    return min(GIL, CORES * found["loader"][source])


def cohort_hours(found: dict[str, Any], pair: str, size: int, precision: str, source: str) -> float:
    """Hours of a cohort on one GPU: an image costs what its slowest resource takes."""
    rate = min(gpu_rate(found, pair, size, precision), loader_rate(found, source))
    scored = gpu_rate(found, pair, size, precision) * 3  # a forward pass, not three
    return EPOCHS * (TRAIN / rate + TEST / min(scored, loader_rate(found, source))) / 3600


def table_hours(found: dict[str, Any], gpus: int, precision: str, size: int, source: str) -> float:
    """Hours until both pairs' tables are done: the longest cohorts first, each on a free GPU."""
    cohorts = [
        cohort_hours(found, pair, size, precision, source)
        for pair in PAIRS
        for _ in range(SEEDS * METHODS // size)
    ]
    busy = [0.0] * gpus
    for hours in sorted(cohorts, reverse=True):
        busy[busy.index(min(busy))] += hours
    return max(busy)


def reduce_ms(found: dict[str, Any], pair: str, gpus: int, bandwidth: float) -> float:
    """Milliseconds to add up a student's gradients over `gpus` in a ring, fp32."""
    sent = 4 * found["pairs"][pair]["parameters"] * 2 * (gpus - 1) / gpus
    return 1000 * sent / bandwidth


def waited_ms(found: dict[str, Any], pair: str, gpus: int, bandwidth: float) -> float:
    """The part of `reduce_ms` for which a step in bf16 waits.

    Gradients are added up while the student's backward pass runs, two thirds of its step; those of
    the last message come when it ends.
    """
    added, one = reduce_ms(found, pair, gpus, bandwidth), found["pairs"][pair]
    backward = 2 / 3 * one["student_cpu_ms"] * GLOBAL_BATCH / gpus / speed_up(found, "bf16")
    last = min(1.0, SIZES[1] / (4 * one["parameters"]))
    return max(added - backward, last * added)


def table(head: str, rows: Iterator[tuple[object, ...]]) -> str:
    """Markdown."""
    columns = head.count("|") + 1
    lines = [f"| {head} |", "|---" * columns + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


def measured(found: dict[str, Any]) -> str:
    """What was measured."""

    def steps() -> Iterator[tuple[object, ...]]:
        for pair, one in found["pairs"].items():
            for part in ("teacher", "student"):
                gflop, ms = one[f"{part}_gflop"], one[f"{part}_cpu_ms"]
                what = "forward" if part == "teacher" else "forward, backward, update"
                yield (
                    pair,
                    f"{part}: {what}",
                    f"{gflop:.2f}",
                    f"{ms:.0f}",
                    f"{gflop / ms * 1000:.0f}",
                )

    names = {"folder": "folders", "tar": "tar", "parquet": "Parquet (its copy)"}
    names["pixels"] = "`dataset.resized=256`"
    loader = ((names[name], f"{rate:,.0f}") for name, rate in found["loader"].items())
    return "\n\n".join(
        (
            table("pair | part | GFLOP an image | CPU ms an image | GFLOP/s", steps()),
            table("images out of | images/s and core", loader),
        )
    )


def predicted(found: dict[str, Any]) -> str:
    """What follows from it and from the assumptions."""

    def rates() -> Iterator[tuple[object, ...]]:
        for pair in PAIRS:
            for size in (1, 4, 16):
                each = [gpu_rate(found, pair, size, precision) for precision in PRECISIONS]
                cores = [max(each) / found["loader"][source] for source in ("folder", "pixels")]
                yield pair, size, *(f"{x:,.0f}" for x in each), *(f"{x:.1f}" for x in cores)

    def hours() -> Iterator[tuple[object, ...]]:
        for gpus in (1, 8, 64):
            for precision in PRECISIONS:
                cost = partial(table_hours, found, gpus, precision)
                best = min((16, 8, 4, 2, 1), key=lambda size: cost(size, "folder"))
                alone = f"{cost(1, 'folder'):,.0f}", f"{cost(1, 'pixels'):,.0f}"
                binds = binding(found, 1, precision), binding(found, best, precision)
                hours = f"**{cost(best, 'folder'):,.0f}**"
                yield gpus, precision, *alone, binds[0], best, hours, binds[1]

    def ranks() -> Iterator[tuple[object, ...]]:
        for pair in PAIRS:
            for gpus, bandwidth in ((1, NVLINK), (8, NVLINK), (64, NETWORK)):
                share = GLOBAL_BATCH / gpus
                compute = 1000 * share / gpu_rate(found, pair, 1, "bf16")
                decode = 1000 * share / loader_rate(found, "folder")
                added = reduce_ms(found, pair, gpus, bandwidth)
                waited = waited_ms(found, pair, gpus, bandwidth)
                step = max(compute + waited, decode)
                hours = step * EPOCHS * TRAIN / GLOBAL_BATCH / 3.6e6
                times = (f"{ms:.1f}" for ms in (compute, decode, added, waited))
                yield pair, gpus, *times, f"{hours:.1f}"

    return "\n\n".join(
        (
            table(
                "pair | runs in a cohort | fp32: images/s of a GPU | tf32 | bf16 "
                "| cores it needs (bf16): folders | resized",
                rates(),
            ),
            table(
                "GPUs | precision | each run alone: hours | resized | what binds "
                "| best size of cohorts | hours | what binds",
                hours(),
            ),
            table(
                "pair | GPUs | ms of a step: computing | decoding | adding up gradients "
                "| of which it waits for | hours",
                ranks(),
            ),
        )
    )


def binding(found: dict[str, Any], size: int, precision: str) -> str:
    """The resource that cohorts of a size wait for, for each pair where they differ."""
    decoded = loader_rate(found, "folder")
    waits = [
        "GPU" if gpu_rate(found, pair, size, precision) < decoded else "loader" for pair in PAIRS
    ]
    return " / ".join(dict.fromkeys(waits))


def main() -> None:
    """Measure and print JSON, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true")
    if parser.parse_args().measure:
        print(json.dumps(measure(), indent=1))
        return
    found = json.loads(FILE.read_text())
    print(f"{measured(found)}\n\n{predicted(found)}")


if __name__ == "__main__":
    main()
