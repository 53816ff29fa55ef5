"""What was tried, and what became of it, in Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from chaos.arena import Fault
from chaos.compare import CLOSE
from chaos.trials import Trial


def kills(trials: Sequence[Trial]) -> int:
    """How many processes were killed."""
    return sum(len(trial.kills) for trial in trials)


class Section(NamedTuple):
    """A part of the page: kinds of trials, and how they must end."""

    mark: str
    kinds: dict[str, str]  # as it is counted
    wanted: str


SECTIONS = (
    Section(
        "chaos",
        {"run": "runs alone", "cohort": "cohorts", "sweep": "sweeps of the launcher"},
        "ended with the bits of the undisturbed run",
    ),
    Section(
        "chaos-fused",
        {"fused": "cohorts as one network"},
        "ended with every record, none of them made twice, and with the weights of the undisturbed "
        f"cohort to {CLOSE:g} of their norm",
    ),
    Section(
        "chaos-clusters",
        {"slurm": "sweeps on Slurm", "agents": "runs of two torchrun agents"},
        "ended with the bits of the undisturbed run",
    ),
)


def report(
    trials: Sequence[Trial], faults: Sequence[Fault], command: str, skipped: Mapping[str, str]
) -> dict[str, str]:
    """The results of kills and of other faults, by the mark of their section.

    Args:
        trials, faults: what was tried.
        command: which tried it.
        skipped: the kinds of trials that were left out, with the reason.
    """
    found = {}
    for section in SECTIONS:
        those = [trial for trial in trials if trial.kind in section.kinds]
        lines = section_of(section, those, command) if those else []
        for kind, words in section.kinds.items():
            if kind in skipped:
                lines += ["", f"Left out: {words} ({skipped[kind]})."]
        if section is SECTIONS[0] and faults:
            lines += [*([""] if lines else []), *outcomes(faults)]
        if lines:
            found[section.mark] = "\n".join(lines).strip()
    return found


def section_of(section: Section, trials: Sequence[Trial], command: str) -> list[str]:
    """The results of a section's kills."""
    kinds = Counter(trial.kind for trial in trials)
    counted = ", ".join(f"{kinds[k]} {words}" for k, words in section.kinds.items() if kinds[k])
    bad = [trial for trial in trials if trial.differences]
    deaths = Counter(kill for trial in trials for kill in trial.kills)
    stops = Counter(stop for trial in trials for stop in trial.stops)
    methods = sorted({name for trial in trials for name in trial.methods})
    apart = [trial.apart for trial in trials if trial.apart is not None]
    farthest = f" (the farthest: {max(apart):.1g})" if apart else ""
    return [
        f"`{command}`, torch {torch.__version__}, one thread: {kills(trials)} kills and "
        f"{stops.total()} requests to stop in {len(trials)} trials ({counted}) of "
        f"{len(methods)} methods; **{len(trials) - len(bad)} of {len(trials)} {section.wanted}**"
        f"{farthest}.",
        "",
        *([*table("killed with SIGKILL", deaths), ""] if deaths else []),
        *([*table("asked to stop", stops), ""] if stops else []),
        f"Methods: {', '.join(methods)}.",
        *(f"\n- trial {trial.number}: {'; '.join(trial.differences)}" for trial in bad),
    ]


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
