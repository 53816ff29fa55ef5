"""(b), (c), (d) Training steps of kdbench relative to a step of the plain loop, in alternation.

    lone_live       one KD run, the teacher live (b)
    lone_table      one KD run from a filled table, its reading included (d)
    cohort{K}       K logit methods side by side, one live teacher forward: per method (c)
    cohort8_table   the same from a filled table
    live_bf16       (b) in bf16, relative to the plain loop's fp32; where a processor has bf16
    table_bf16      (d) in bf16, likewise
    torchdistill    its own distillation box, in its own environment (b)

Same pair, same recipe, same first weights; before anything is timed, the losses of the first step
on the same images are compared.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from benchmarks.common import Sizes, line, ratio, spread, turns
from benchmarks.engine import ANSWERS, LOGIT_METHODS, Bench, Contestant
from benchmarks.plain_loop import PictureSet, PlainLoop, loader
from benchmarks.torchdistill_step import Peer
from kdbench.system.precision import notices

COHORTS = (1, 2, 4, 8)
LOSS_TOLERANCE = 1e-3  # relative; layouts and folded teachers round differently
WORDS = {
    "lone_live": "lone KD run, live teacher",
    "lone_table": "lone KD run, filled table (0.45 or less)",
    "live_bf16": "lone KD run, live teacher, bf16",
    "table_bf16": "lone KD run, filled table, bf16",
    "cohort8_table": "cohort of 8 methods, filled table: per method",
    "torchdistill": "torchdistill",
}


def check_losses(found: dict[str, float]) -> dict[str, float]:
    """Hold the losses of the first step against the plain loop's.

    Raises:
        RuntimeError: they differ, so that not the same thing would be timed.
    """
    expected = found["plain"]
    for name, loss in found.items():
        if not abs(loss - expected) <= LOSS_TOLERANCE * abs(expected):
            raise RuntimeError(f"first loss of {name} is {loss}, of the plain loop {expected}")
    return {name: round(loss, 6) for name, loss in found.items()}


def set_up(
    sizes: Sizes, folder: Path, with_torchdistill: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, float], str | None]:
    """All contestants, the losses of their first step, and what is missing."""
    data = common.dataset(sizes.batch * sizes.steps)
    pictures = PictureSet(data.train)
    batches = common.endless(lambda: iter(train_loader))
    train_loader = loader(pictures, sizes.batch)
    plain = PlainLoop(common.network(sizes.student, data), common.teacher(sizes.teacher, data))

    frozen = common.teacher(sizes.teacher, data)
    bench = Bench(sizes.student, frozen, data, sizes.batch, folder, sizes.run_images)
    live, table = (Contestant(LOGIT_METHODS[:1], bench, kind) for kind in ANSWERS)
    engine = {"lone_live": live, "lone_table": table}
    engine |= {f"cohort{n}": Contestant(LOGIT_METHODS[:n], bench, live) for n in COHORTS[1:]}
    engine["cohort8_table"] = Contestant(LOGIT_METHODS, bench, table)
    if not notices("bf16", common.DEVICE):  # emulated, it would take longer than all the others
        half = replace(bench, precision="bf16")
        engine |= {f"{kind}_bf16": Contestant(LOGIT_METHODS[:1], half, kind) for kind in ANSWERS}
    images, labels = (tensor.cpu() for tensor in engine["lone_live"].first_batch())
    peer: Peer | None = None
    missing: str | None = "not asked for: make bench TORCHDISTILL=1"
    if with_torchdistill:
        peer, missing = Peer.open(sizes, plain.student, plain.teacher, images, labels, folder)
    losses = {"plain": plain.step(images, labels)}
    losses |= {name: engine[name].loss_of_first_step() for name in ("lone_live", "lone_table")}
    calls: dict[str, Callable[[], object]] = {"plain": lambda: plain.steps(batches, sizes.steps)}
    if peer is not None:
        losses["torchdistill"] = peer.loss
        calls["torchdistill"] = lambda: peer.steps(sizes.steps)
    calls |= {name: one.epoch for name, one in engine.items()}
    return calls, losses, missing


def measure(sizes: Sizes, with_torchdistill: bool = False) -> dict[str, Any]:
    """Every contestant's time relative to the plain loop's, per method."""
    with tempfile.TemporaryDirectory() as folder:
        calls, losses, missing = set_up(sizes, Path(folder), with_torchdistill)
        losses = check_losses(losses)
        times = turns(calls, sizes.rounds, sizes.seconds)
        del calls
    plain = spread([value / sizes.steps for value in times["plain"]])
    print(
        f"(b, c, d) {sizes.teacher} -> {sizes.student}, batch {sizes.batch}, {common.DEVICE.type}, "
        f"{torch.get_num_threads()} threads; relative to the plain loop, whose step takes "
        f"{1000 * plain['median']:.0f} ms"
    )
    ratios = {}
    for name in times:
        if name == "plain":
            continue
        found = re.match(r"cohort(\d+)", name)
        count = int(found[1]) if found else 1
        ratios[name] = ratio(times, name, "plain", count)
        target = " (0.45 or less)" if name == "cohort8" else ""
        print(line(WORDS.get(name, f"cohort of {count} methods: per method{target}"), ratios[name]))
    ratios["cohort1"] = ratios["lone_live"]
    if missing is not None:
        print(f"  torchdistill: {missing}")
    print(f"  losses of the first step: {losses}", flush=True)
    return {
        "plain_step_seconds": plain,
        "first_losses": losses,
        "ratios": ratios,
        "torchdistill": ratios.get("torchdistill"),
        "torchdistill_missing": missing,
    }
