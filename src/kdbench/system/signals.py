"""Requests to stop: Ctrl-C, SIGTERM, and what clusters send before they preempt a job."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KILLED_AFTER = 600  # seconds after SIGTERM; Slurm has long killed what it wants to end


class Preemption:
    """The signal on which submitit queues a job again: SIGUSR2, unless its variable says otherwise.

    submitit would do so in the middle of a step, and what was trained since the last checkpoint
    would be lost. To be made before training, in a job of submitit's.
    """

    def __init__(self) -> None:
        name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
        self.number = signal.Signals[f"SIG{name}"]
        self.asked = self.leaving = False
        self.submitits = signal.signal(self.number, self.ask)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Let the runs write checkpoints and end, as SIGTERM does."""
        self.asked = True
        if not self.leaving:
            signal.raise_signal(signal.SIGTERM)

    def queue_again(self) -> None:
        """With checkpoints written, leave as submitit does, if the signal has come.

        Slurm sends SIGTERM both when it cancels a job and when it preempts one, and does not queue
        again what ends by itself. After a SIGTERM a job of Slurm therefore waits for what comes
        next, the signal or the end.
        """
        self.leaving = True
        slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        until = time.monotonic() + (KILLED_AFTER if slurm else 0)
        while not self.asked and time.monotonic() < until:
            time.sleep(0.1)
        if self.asked and callable(self.submitits):
            self.submitits(self.number, None)


# The last is what clusters can be told to send before they preempt a job.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that the first of `STOPS` sets; a second Ctrl-C stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {number: signal.signal(number, request) for number in STOPS if is_free(number)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_free(number: signal.Signals) -> bool:
    """Whether a signal is ours to take: submitit may have a use of its own for SIGUSR1."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    return number != signal.SIGUSR1 or signal.getsignal(number) in defaults
