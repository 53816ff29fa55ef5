"""Which of a sweep's jobs have ended: told by their results, and by whoever runs them."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from kdbench.errors import KdbenchError
from kdbench.sweeps.slurm_queue import Queue, cancel

CANCELLED = "cancelled"  # a file beside the jobs': they are not to wait until they are killed
LOOK = 15.0  # seconds between questions to Slurm; results are seen without
LOOK_CANCELLED = 1.0
LIST = 1.0  # seconds between looks for results
GRACE = 15.0  # seconds in which a result may come up that another node has written
LEAVING = 300.0  # seconds that cancelled jobs have; Slurm's KillWait is 30 s where no one sets it


class Watch(Protocol):
    """Looks after jobs of submitit's."""

    def ends(self, jobs: Sequence[Any]) -> dict[str, str]:
        """The jobs that have ended, by id, and the state in which each has."""

    def has_result(self, job: Any) -> bool:
        """Whether a job that has ended has left a result."""

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Ask jobs to write checkpoints and end."""


class SubmititWatch:
    """Asks submitit, which knows the processes of this machine."""

    def ends(self, jobs: Sequence[Any]) -> dict[str, str]:
        """The jobs that have ended, by id, and the state in which each has."""
        return {job.job_id: job.state for job in jobs if job.done()}

    def has_result(self, job: Any) -> bool:
        """True: submitit finds out for itself."""
        return True

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Send each its signal."""
        for job in jobs:
            job.cancel(check=False)


class SlurmWatch:
    """Asks Slurm's controller, where submitit would ask the accounting that not every site has.

    Args:
        folder: submitit's, in which results come up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.queue = folder, Queue()
        self.files: set[str] = set()
        self.listed = float("-inf")
        self.known: dict[str, float] = {}  # when a job was first looked for
        self.over: dict[str, float] = {}  # when it was first seen to have ended
        self.cancelled: float | None = None
        self.told = 0.0  # when Slurm was last asked to cancel

    def ends(self, jobs: Sequence[Any]) -> dict[str, str]:
        """The jobs that have ended, by id, and the state in which each has.

        Raises:
            KdbenchError: cancelled jobs do not end, or Slurm does not say.
        """
        now = time.monotonic()
        self.queue.look(LOOK if self.cancelled is None else LOOK_CANCELLED)
        self._list(now)
        found = {}
        for job in jobs:
            since = max(self.known.setdefault(job.job_id, now), self.cancelled or 0.0)
            state = self.queue.end(job.job_id, since)
            if self.has_result(job):
                found[job.job_id] = "COMPLETED"
            elif state is None:
                self.over.pop(job.job_id, None)
            elif self.cancelled or now - self.over.setdefault(job.job_id, now) > GRACE:
                found[job.job_id] = state
        if self.cancelled is not None and len(found) < len(jobs):
            self._insist([job.job_id for job in jobs if job.job_id not in found], now)
        return found

    def _list(self, now: float) -> None:
        if now - self.listed < LIST:
            return
        self.listed = now
        with suppress(OSError):  # NFS looks anew after a change of the folder, as submitit knows
            self.folder.chmod(self.folder.stat().st_mode)
        with suppress(OSError):
            self.files = set(os.listdir(self.folder))

    def _insist(self, jobs: Sequence[str], now: float) -> None:
        """Cancel again what is left while Slurm does not answer, and give up in the end."""
        assert self.cancelled is not None
        if now - self.cancelled > LEAVING:
            why = f" ({self.queue.complaint})" if self.queue.complaint else ""
            raise KdbenchError(
                f"not ended {LEAVING:.0f} s after they were cancelled{why}: jobs "
                f"{' '.join(jobs)}; see squeue, and cancel them with scancel"
            )
        if self.queue.complaint and now - self.told > LOOK:
            cancel(jobs)
            self.told = time.monotonic()

    def has_result(self, job: Any) -> bool:
        """Whether a job's result was there at the last look."""
        return job.paths.result_pickle.name in self.files

    def cancel(self, jobs: Sequence[Any]) -> None:
        """Let Slurm send SIGTERM; the jobs see by a file that they are not to be queued again."""
        with suppress(OSError):  # no space: they wait until they are killed
            (self.folder / CANCELLED).touch()
        cancel([job.job_id for job in jobs])
        self.cancelled = self.told = time.monotonic()
