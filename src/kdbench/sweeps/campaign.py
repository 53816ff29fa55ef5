"""A sweep as part of a campaign: what others have done of it, and what it says at its end."""

from collections.abc import Sequence
from pathlib import Path

from kdbench.ledger.cells import left_out, read_records
from kdbench.records.contents import Done
from kdbench.records.settings import TrainSettings
from kdbench.sweeps.budget import Budget
from kdbench.sweeps.planning import Plan, runs
from kdbench.sweeps.running import Sweep
from kdbench.system.console import Console, duration
from kdbench.training.jobs import Job

RESULTS = Path("results/runs")  # in a checkout's root


def recorded_runs(configs: Sequence[TrainSettings], runs_dir: Path, console: Console) -> set[str]:
    """Return the names of runs whose records are there, wherever they were trained.

    Records are looked for in the folder of runs and among those of the checkout. A record that
    cannot be used, and runs of the same student that can never stand in one table with these, are
    a line each.
    """
    students = {(config.dataset.name, config.student.name) for config in configs}
    folders = [folder for folder in (runs_dir, RESULTS) if folder.is_dir()]
    found, problems = read_records(folders)
    ours = [one for one in found if (one.data.name, one.config.student.name) in students]
    for line in [*problems, *left_out(ours)]:
        console.message(line)
    return {record.run_id for record in found if isinstance(record, Done)}


def told(
    sweep: Sweep,
    planned: Plan,
    done: int,
    seconds: float,
    budget: Budget | None,
    late: Sequence[Job],
    untaught: int,
) -> list[str]:
    """Return what a campaign says at its end.

    Args:
        sweep: has ended.
        planned: its runs.
        done: the number of those that it has done.
        seconds: that it took.
        budget: that it had.
        late: the runs that the time did not suffice for, the next one first.
        untaught: the number of runs whose teacher is among `late` or trained by others.
    """
    lines = [
        f"done: {job.identity.run_id}, {job.record.summary}"
        for job in planned.todo
        if job.record is not None
    ]
    lines += [f"elsewhere: {one.reason}" for one in sweep.held]
    failed = len(planned.failures) + len(sweep.failures)
    left = planned.total - planned.done - done - failed + untaught
    lines.append(
        f"campaign: {done} done, {planned.done} done before, {failed} failed, {left} left; "
        f"{duration(seconds)}"
    )
    if budget is not None and late:
        lines += rest(budget, late)
    return lines


def rest(budget: Budget, late: Sequence[Job]) -> list[str]:
    """Return lines on the runs that the time did not suffice for: the next one, and the cost."""
    budget.forget()
    timed, first = budget.timed(late), late[0]
    price = f"about {duration(budget.seconds([first]))} here" if first in timed else "not timed yet"
    lines = [f"next: {first.identity.run_id}, {price}"]
    if len(late) > 1:
        total = duration(sum(budget.seconds([job]) for job in timed))
        words = f"then {runs(len(late) - 1)}"
        if timed:
            words += f"; about {total} here, one after the other"
        if len(timed) < len(late):
            words += f"; {len(late) - len(timed)} not timed yet"
        lines.append(words)
    return [*lines, "the same command goes on from there"]
