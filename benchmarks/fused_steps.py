"""Second question on a GPU: what does a step cost a run, one by one and as one stacked network?

    python -m benchmarks.fused_steps FILE [--tiny]

For 1, 8 and 20 methods with a filled table and with a live teacher, in bf16: the milliseconds of a
step, the kernels that it launches, the peak of memory, and the kernels by name that take the most
time. FILE is JSON, written anew after every row.
"""

import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import common
from benchmarks.common import DEVICE, FULL, TINY, Rows, Sizes, asked, seconds
from benchmarks.engine import ANSWERS, LOGIT_METHODS, Answers, Bench, Choice, Contestant
from kdbench.system.hardware import peak_memory_mb, reset_peak_memory
from kdbench.system.precision import Precision

MORE = ("ce", "wsld", "ea_kd", "dr_kd", "rld", "wttm", "pld", "ikl", "normkd", "logit_l2")
METHODS = (*LOGIT_METHODS, *MORE, "label_smoothing", "ctkd")  # twenty, that can all be stacked
STEPS, TURNS, NAMES = 50, 3, 30


# As it is, with compiled losses, and stacked with compiled losses: fused, compile.
Ways = Sequence[tuple[Choice, Choice]]
WAYS: Ways = (("off", "auto"), ("off", "on"), ("on", "on"))


def measure(rows: Rows, counts: Sequence[int], sizes: Sizes, steps: int, ways: Ways = WAYS) -> None:
    """Measure every number of methods in every way; one alone cannot be stacked."""
    for count in counts:
        for answers in ANSWERS:
            for way in [one for one in ways if count > 1 or one[0] == "off"]:
                rows.add(timed(count, answers, way, sizes, steps))


def timed(
    count: int, answers: Answers, way: tuple[Choice, Choice], sizes: Sizes, steps: int
) -> dict[str, Any]:
    """Time a cohort's steps."""
    precision: Precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    data = common.dataset(sizes.batch * steps)
    with tempfile.TemporaryDirectory() as folder:
        given = data, sizes.batch, Path(folder), sizes.run_images, precision, *way
        bench = Bench(sizes.student, common.teacher(sizes.teacher, data), *given)
        reset_peak_memory(DEVICE)
        one = Contestant(METHODS[:count], bench, answers)
        compiling = seconds(one.epoch)
        taken = statistics.median(seconds(one.epoch) for _ in range(TURNS))
        names = kernels(one) if DEVICE.type == "cuda" else []
    return {
        "methods": count,
        "answers": answers,
        "compile": way[1],
        "fused": [member.fused for member in one.members],
        "ms_run_step": 1000 * taken / steps / count,
        "first_epoch_seconds": compiling,
        "peak_memory_mb": peak_memory_mb(DEVICE),
        "kernels_step": sum(number for _, number, _ in names) / steps,
        "kernels": names[:NAMES],
    }


def kernels(one: Contestant) -> list[tuple[str, int, float]]:
    """Name the kernels of an epoch, with their number and microseconds, the longest first."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        one.epoch()
        common.synchronise()
    numbers: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for event in profiler.events() or []:
        numbers[event.name] += 1
        spent[event.name] += event.device_time
    return [(name, numbers[name], time) for name, time in spent.most_common()]


if __name__ == "__main__":
    torch.backends.cudnn.benchmark_limit = 0  # tries every plan of a convolution
    rows, tiny = asked(__doc__)
    if tiny:
        measure(rows, (1, 2), TINY, 2, (("off", "off"), ("on", "off")))
    else:
        measure(rows, (1, 8, 20), FULL, STEPS)
