"""What Slurm's controller says of this user's jobs; accounting is not needed."""

import os
import subprocess
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from kdbench.errors import first_line

# squeue(1), "JOB STATE CODES": what does not come back by itself. A job that is queued again is
# REQUEUED or COMPLETING until it is PENDING; PREEMPTED and NODE_FAIL alone are ends.
ENDS = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "TIMEOUT"),
)
GONE = "it is no longer known to Slurm"
PATIENCE = 60.0  # seconds that squeue may take; it tries again by itself while it is not answered


class Queue:
    """The states of jobs, asked of `squeue` beside what else is done.

    Attributes:
        complaint: what squeue said when it did not answer, a line; "" while it does.
    """

    def __init__(self) -> None:
        self.complaint = ""
        self._answered = float("-inf")  # when the last question was asked that has an answer
        self._asked = float("-inf")
        self._states: dict[str, str] = {}
        self._asking: threading.Thread | None = None

    def look(self, every: float) -> None:
        """Ask anew if the last question is so many seconds old and answered; never waits."""
        now = time.monotonic()
        if now - self._asked >= every and (self._asking is None or not self._asking.is_alive()):
            self._asked = now
            self._asking = threading.Thread(target=self._ask, args=(now,), daemon=True)
            self._asking.start()

    def _ask(self, now: float) -> None:
        form = ["--noheader", "--array", "--states=all", "--format=%i|%T"]
        try:
            said = run(["squeue", f"--user={os.getuid()}", *form])
        except (OSError, subprocess.TimeoutExpired) as error:
            self.complaint = first_line(error)
            return
        if said.returncode != 0:
            self.complaint = (said.stderr.strip() or "squeue failed").splitlines()[-1]
            return
        lines = [line.split("|") for line in said.stdout.splitlines() if "|" in line]
        self._states = {name.strip(): state.strip() for name, state in lines}
        self._answered, self.complaint = now, ""

    def end(self, job: str, since: float) -> str | None:
        """How a job that was submitted before `since` has ended; None while it may go on.

        Args:
            job: its id, of an element of an array "<id>_<number>".
            since: by `time.monotonic`; answers to earlier questions count as none.
        """
        if self._answered <= since:
            return None
        state = self._states.get(job, GONE)
        return state if state in (*ENDS, GONE) else None


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """A command of Slurm's, which Ctrl-C on the terminal leaves alone, and what it says."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        start_new_session=True,
    )


def cancel(jobs: Collection[str]) -> None:
    """Cancel jobs; what the controller is not told now may be told again."""
    if jobs:
        with suppress(OSError, subprocess.TimeoutExpired):
            run(["scancel", *jobs])


def array_limit() -> int:
    """How many jobs one array may hold: the site's MaxArraySize, 1 where it does not say."""
    with suppress(OSError, subprocess.TimeoutExpired):
        for line in run(["scontrol", "show", "config"]).stdout.splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "MaxArraySize" and value.strip().isdigit():
                return max(1, int(value))
    return 1
