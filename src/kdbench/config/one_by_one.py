"""The runs of a command, one after the other, and their failures."""

from collections.abc import Callable, Sequence

from kdbench.config.composing import ComposedJob
from kdbench.errors import KdbenchError, RankError


def run_jobs(
    jobs: Sequence[ComposedJob],
    run: Callable[[ComposedJob], KdbenchError | None],
    say: Callable[[str], None],
    fail_fast: bool,
) -> list[KdbenchError]:
    """Run each job, go on after those that fail, and name these at the end.

    Args:
        jobs: the jobs of one command.
        run: runs a job, and returns its error, if any.
        say: prints an error line.
        fail_fast: end the sweep at the first failure.

    Returns:
        The errors, in order.
    """
    failed: list[tuple[ComposedJob, KdbenchError]] = []
    tried = 0
    for job in jobs:
        tried += 1
        error = run(job)
        if error is not None:
            failed.append((job, error))
            say(str(error))  # at once; the other jobs of a sweep go on
            if fail_fast or isinstance(error, RankError):
                break  # without the other ranks no further job can be done
    if failed and len(jobs) > 1:
        common = set.intersection(*(set(job.overrides) for job in jobs))
        for job, error in failed:
            own = [override for override in job.overrides if override not in common]
            say(f"{' '.join(own)}: {error}")
        skipped = f", {len(jobs) - tried} were not tried" if tried < len(jobs) else ""
        say(f"{len(failed)} of {len(jobs)} runs have failed{skipped}")
    return [error for _, error in failed]
