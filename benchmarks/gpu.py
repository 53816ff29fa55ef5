"""(f) A GPU: ms a step against batch and cohort, how near to its ceilings, what a table would cost.

The ceilings are measured in the same run: large matrix products, and copies of a large tensor. The
operations of a step are counted on the plain loop's step; the bytes are those that its operators
read and write one by one, so that a step which fuses operators may exceed the measured bandwidth.
"""

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]  # torch does not export it
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import common
from benchmarks.common import DEVICE, Sizes, seconds
from benchmarks.engine import ANSWERS, LOGIT_METHODS, Answers, Bench, Contestant
from benchmarks.plain_loop import PlainLoop
from kdbench.assembly.build import build_method, set_up
from kdbench.assembly.evaluation import evaluate
from kdbench.config.conf_files import conf_dir
from kdbench.config.hydra_cli import compose_group
from kdbench.schema.check import check_node
from kdbench.system.precision import Precision, allow_tf32
from kdbench.tasks.classification.task import at_hand
from kdbench.teachers.outputs import uncached

STEPS, TURNS = 50, 3
EPOCHS, STEPS_PER_EPOCH, SEEDS, TEST_IMAGES = 240, 782, 3, 10_000  # CIFAR-100, batch 64
MATRIX, COPIED = 8192, 2**28  # side; numbers of four bytes


class Traffic(TorchDispatchMode):
    """Sums the bytes of every operator's inputs and outputs; views move nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            leaves = tree_leaves([args, kwargs, result])
            self.bytes += sum(x.numel() * x.element_size() for x in leaves if isinstance(x, Tensor))
        return result


def ceilings(side: int = MATRIX, numbers: int = COPIED) -> dict[str, float]:
    """FLOP/s of matrix products by precision, and bytes/s of a copy, read and written."""
    found = {}
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        one = torch.randn(side, side, device=DEVICE).to(dtype)
        found[name] = 2 * side**3 / _best(lambda matrix=one: matrix @ matrix)
    torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.randn(numbers, device=DEVICE)
    target = torch.empty_like(source)
    found["bytes"] = 2 * source.numel() * 4 / _best(lambda: target.copy_(source))
    return found


def _best(call: Any) -> float:
    call()
    return min(seconds(call) for _ in range(10))


def demands(sizes: Sizes, batch: int) -> dict[str, dict[str, float]]:
    """FLOP and bytes of the student's part of a KD step, and of the teacher's forward."""
    data = common.dataset(batch)
    student, teacher = common.network(sizes.student, data), common.teacher(sizes.teacher, data)
    plain = PlainLoop(student, teacher)
    images = torch.randn(batch, 3, 32, 32, device=DEVICE)
    labels = data.train.labels[:batch].to(DEVICE)
    plain.step(images, labels)

    def forward() -> None:
        with torch.no_grad():
            plain.teacher(images)

    found = {}
    for name, call in (("step", lambda: plain.step(images, labels)), ("teacher", forward)):
        with FlopCounterMode(display=False) as flops:
            call()
        with Traffic() as traffic:
            call()
        found[name] = {"flop": float(flops.get_total_flops()), "bytes": float(traffic.bytes)}
    found["student"] = {key: found["step"][key] - found["teacher"][key] for key in found["step"]}
    return found


class Case(NamedTuple):
    """What a row of the grid is about."""

    batch: int
    cohort: int
    answers: Answers
    precision: Precision


def cases(every: bool) -> list[Case]:
    """In bf16 every batch and cohort, or the recipe's batch alone; that in the other precisions."""
    batches, cohorts = ((64, 128, 256, 512), (1, 2, 4, 8)) if every else ((64,), (1, 8))
    found = [Case(b, k, kind, "bf16") for b in batches for k in cohorts for kind in ANSWERS]
    others: tuple[Precision, ...] = ("tf32", "fp32")
    return found + [Case(64, k, "table", p) for p in others for k in (1, 8)]


def timed(case: Case, pair: tuple[str, str], sizes: Sizes, folder: Path) -> dict[str, float]:
    """ms a step of a cohort, kernels a step, and the seconds of a student's evaluation."""
    data = common.dataset(case.batch * STEPS, TEST_IMAGES)
    teacher = common.teacher(pair[0], data)
    given = data, case.batch, folder, sizes.run_images, case.precision
    one = Contestant(LOGIT_METHODS[: case.cohort], Bench(pair[1], teacher, *given), case.answers)
    one.epoch()
    taken = statistics.median(seconds(one.epoch) for _ in range(TURNS))
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        one.epoch()
        common.synchronise()
    kernels = sum(event.device_type == DeviceType.CUDA for event in profiler.events() or [])
    member = one.members[0]
    scored = (
        member.state.student,
        at_hand(data.test, DEVICE),
        data,
        DEVICE,
        one.runtime.memory_format,
    )
    evaluate(*scored)
    return {
        "ms": 1000 * taken / STEPS,
        "kernels": kernels / STEPS,
        "evaluation_seconds": seconds(lambda: evaluate(*scored)),
    }


def grid(sizes: Sizes, folder: Path, ceiling: dict[str, float]) -> list[dict[str, Any]]:
    """Every case, with its share of the ceilings."""
    rows, needs = [], {}
    for case in cases(sizes.every_pair):
        if case.batch not in needs:
            needs[case.batch] = demands(sizes, case.batch)
        need = needs[case.batch]
        row = timed(case, (sizes.teacher, sizes.student), sizes, folder)
        rate = {
            key: (case.cohort * need["student"][key] + (case.answers == "live") * value)
            / (row["ms"] / 1000)
            for key, value in need["teacher"].items()
        }
        row["of_products"] = rate["flop"] / ceiling[case.precision]
        row["of_bandwidth"] = rate["bytes"] / ceiling["bytes"]
        rows.append({**case._asdict(), **row})
        print(
            f"  {case.precision}  batch {case.batch:4d}  cohort of {case.cohort}  "
            f"{case.answers:<5}  {row['ms']:7.2f} ms a step  {row['kernels']:6.0f} kernels  "
            f"{100 * row['of_products']:5.1f}% of products  "
            f"{100 * row['of_bandwidth']:5.1f}% of bandwidth",
            flush=True,
        )
    allow_tf32(False)
    return rows


def recipes() -> tuple[list[str], list[str]]:
    """The recipes of conf/method with one teacher, by whether a table is enough for them."""
    named: dict[tuple[str, ...], str] = {}
    for path in sorted((conf_dir() / "method").glob("*.yaml")):
        node: Any = compose_group("method", path.stem)
        targets: tuple[str, ...] = ()
        while node:
            targets, node = (*targets, node["_target_"]), node.get("inner")
        named.setdefault(targets, path.stem)
    data = common.dataset(2 * common.CLASSES)
    teachers = {"teacher": common.teacher("resnet32x4", data)}
    tabled: list[str] = []
    live: list[str] = []
    for name in named.values():
        method = build_method(check_node("method", compose_group("method", name)), 0)
        if method.num_teachers == 1:  # what it reads may be known after its set-up only
            set_up(method, common.network("resnet8x4", data), teachers, data, 0)
            (live if uncached([method], data.views) else tabled).append(name)
    return tabled, live


def pairs() -> list[tuple[str, str]]:
    """Teacher and student of every pair of CIFAR-100 with one teacher."""
    found = []
    for path in sorted((conf_dir() / "pair").glob("*.yaml")):
        if not path.stem.startswith(("none", "self_", "three_", "imagenet_")):
            with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
                node = hydra.compose("config", [f"pair={path.stem}"])
            found.append((str(next(iter(node.teacher))), str(node.student.name)))
    return found


Costs = dict[tuple[int, str], float]  # hours of a cohort of so many runs, by where answers are from


def costs(rows: Sequence[dict[str, Any]]) -> Costs:
    """Hours of 240 epochs in bf16 at batch 64, every run's evaluations included."""
    found = {}
    for row in rows:
        if (row["batch"], row["precision"]) == (64, "bf16"):
            steps, evaluations = STEPS_PER_EPOCH * row["ms"] / 1000, row["evaluation_seconds"]
            each_epoch = steps + row["cohort"] * evaluations
            found[row["cohort"], row["answers"]] = EPOCHS * each_epoch / 3600
    return found


def projection(
    measured: dict[str, Costs], methods: dict[str, dict[str, float]] | None
) -> dict[str, Any]:
    """GPU-hours of three seeds of every recipe on the pairs that were measured.

    Those that a table is enough for train in cohorts of eight, the others alone and live, with the
    ratio of their step to KD's where part (e) has measured it. Tables are filled already.
    """
    tabled, live = recipes()
    weight = sum((methods or {}).get(name, {}).get("with_teacher", 1.0) for name in live)
    each = {
        pair: SEEDS * (len(tabled) / 8 * hours[8, "table"] + weight * hours[1, "live"])
        for pair, hours in measured.items()
    }
    total = sum(each.values())
    print(f"  {len(each)} pairs, three seeds: {total:.0f} GPU-hours (projected)", flush=True)
    return {"recipes": {"tabled": tabled, "live": live}, "pairs": each, "gpu_hours": total}


def measure(sizes: Sizes, methods: dict[str, dict[str, float]] | None) -> dict[str, Any] | None:
    """Everything about the GPU; None where there is none."""
    if DEVICE.type != "cuda":
        print("(f) no GPU")
        return None
    print(f"(f) {torch.cuda.get_device_name()}")
    ceiling, pair = ceilings(), (sizes.teacher, sizes.student)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = grid(sizes, folder, ceiling)
        measured = {" -> ".join(pair): costs(rows)}
        for other in pairs() if sizes.every_pair else []:
            wanted = [Case(64, 8, "table", "bf16"), Case(64, 1, "live", "bf16")]
            given = [{**case._asdict(), **timed(case, other, sizes, folder)} for case in wanted]
            measured.setdefault(" -> ".join(other), costs(given))
    hours = measured[" -> ".join(pair)]
    minutes = {f"cohort{k}_from_table": 60 * hours[k, "table"] for k in (1, 8)}
    print(f"  240 epochs in bf16 with evaluation, minutes: {minutes}", flush=True)
    projected = projection(measured, methods)
    return {"ceilings": ceiling, "steps": rows, "minutes_240": minutes, "table": projected}
