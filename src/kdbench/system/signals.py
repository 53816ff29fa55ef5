"""Requests to stop: Ctrl-C, SIGTERM, and the signals of clusters before they preempt a job."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KILLED_AFTER = 600  # seconds after SIGTERM by which Slurm has killed a job that it wants to end


class Preemption:
    """The signal on which submitit requeues a job: SIGUSR2, unless its variable names another.

    submitit itself would requeue in the middle of a step and lose the steps since the last
    checkpoint. Make an instance before training, in a job of submitit's.
    """

    def __init__(self) -> None:
        name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
        self.number = signal.Signals[f"SIG{name}"]
        self.asked = self.leaving = False
        self.submitits = signal.signal(self.number, self.ask)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Let the runs write checkpoints and end, as on SIGTERM."""
        self.asked = True
        if not self.leaving:
            signal.raise_signal(signal.SIGTERM)

    def queue_again(self) -> None:
        """Requeue the job as submitit does, if the signal has come; checkpoints are written.

        Slurm sends SIGTERM both when it cancels a job and when it preempts one, and does not
        requeue a job that ends by itself. After a SIGTERM a job of Slurm therefore waits for the
        signal or for its end.
        """
        self.leaving = True
        slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        until = time.monotonic() + (KILLED_AFTER if slurm else 0)
        while not self.asked and time.monotonic() < until:
            time.sleep(0.1)
        if self.asked and callable(self.submitits):
            self.submitits(self.number, None)


# Clusters can be told to send the last one before they preempt a job.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Provide an event that the first of `STOPS` sets; a second Ctrl-C stops at once."""
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
    """Return whether kdbench may handle a signal: submitit may use SIGUSR1 itself."""
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    return number != signal.SIGUSR1 or signal.getsignal(number) in defaults
