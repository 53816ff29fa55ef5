"""What was tried, and what became of it, in Markdown."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from chaos.arena import Fault
from chaos.trials import Trial


def kills(trials: Sequence[Trial]) -> int:
    """How many processes were killed."""
    return sum(len(trial.kills) for trial in trials)


def report(trials: Sequence[Trial], faults: Sequence[Fault], seed: int) -> str:
    """The results of kills and of other faults."""
    kinds = Counter(trial.kind for trial in trials)
    bad = [trial for trial in trials if trial.differences]
    deaths = Counter(kill for trial in trials for kill in trial.kills)
    stops = Counter(stop for trial in trials for stop in trial.stops)
    methods = sorted({name for trial in trials for name in trial.methods})
    return "\n".join(
        [
            f"`make chaos COUNT={kills(trials)} SEED={seed}`, torch {torch.__version__}, one "
            f"thread: {kills(trials)} kills and {stops.total()} signals that ask to stop in "
            f"{len(trials)} trials ({kinds['run']} runs alone, {kinds['cohort']} cohorts, "
            f"{kinds['sweep']} sweeps of the launcher) of {len(methods)} methods; "
            f"**{len(trials) - len(bad)} of {len(trials)} ended with the bits of the undisturbed "
            "run**.",
            "",
            *table("killed with SIGKILL", deaths),
            "",
            *table("stopped by a signal", stops),
            "",
            f"Methods: {', '.join(methods)}.",
            *(f"\n- trial {trial.number}: {'; '.join(trial.differences)}" for trial in bad),
            "",
            *outcomes(faults),
        ]
    )


def table(head: str, counts: Counter[str]) -> list[str]:
    """How often each of them."""
    return [f"| {head} | times |", "|---|---|", *(f"| {k} | {counts[k]} |" for k in sorted(counts))]


def outcomes(faults: Sequence[Fault]) -> list[str]:
    """A line for each fault."""
    lines = ["| other faults | tried | what became of it |", "|---|---|---|"]
    for fault in faults:
        outcome = fault.outcome if not fault.wrong else f"**wrong**: {'; '.join(fault.wrong)}"
        outcome = f"not tried: {fault.skipped}" if fault.skipped else outcome
        lines.append(f"| {fault.name} | {fault.tried} | {outcome} |")
    return lines


def write_page(path: Path, mark: str, text: str) -> None:
    """Put results between a page's two marks of that name."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, _, rest = path.read_text().partition(begin)
    path.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
