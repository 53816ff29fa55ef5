"""How long a sweep still takes."""

from collections.abc import Sequence

from kdbench.sweeps.local import Task


def time_left(
    per_epoch: float, running: Sequence[Task], waiting: Sequence[Task], now: float
) -> float | None:
    """Seconds to the end, if every epoch takes as long as those of the cohorts that have ended.

    Args:
        per_epoch: seconds.
        running: cohorts that train; as many train at a time until the end, and one more where one
            has just ended and others wait.
        waiting: cohorts that do not yet.
        now: by `time.monotonic`.

    Returns:
        None where a cohort trains longer than so: how much longer is not known.
    """
    rests = [per_epoch * task.epochs - (now - task.started) for task in running]
    if min(rests, default=0.0) < 0:
        return None
    queued = [per_epoch * task.epochs for task in waiting]
    places = len(running) + min(1, len(waiting))
    return max(sum(rests + queued) / max(1, places), *rests, *queued, 0.0)
