"""Requests to stop: Ctrl-C, SIGTERM, and the signals of clusters before they preempt a job."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

KILLED_AFTER = 600  # seconds after SIGTERM by which Slurm has killed a job that it wants to end


class Preemption:
    """The signal on which submitit requeues a job: SIGUSR2, unless its variable names another.

    submitit itself would requeue in the middle of a step and lose the steps since the last
    checkpoint. Make an instance before training, in a job of submitit's. The runs handle the
    signals of `STOPS` while they train; at other times the first one interrupts the job.
    """

    def __init__(self) -> None:
        name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
        self.number = signal.Signals[f"SIG{name}"]
        self.asked = self.leaving = False
        for number in STOPS:
            if is_free(number):
                signal.signal(number, self.stop)
        self.submitits = signal.signal(self.number, self.ask)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """Let the runs write checkpoints and end, as on SIGTERM."""
        self.asked = True
        signal.raise_signal(signal.SIGTERM)

    def stop(self, signum: int, frame: FrameType | None) -> None:
        """Interrupt the job as Ctrl-C does, once: its way out must not be interrupted.

        Raises:
            KeyboardInterrupt: the first time, unless the job is leaving.
        """
        if not self.leaving:
            self.leaving = True
            raise KeyboardInterrupt

    def queue_again(self, cancelled: Callable[[], bool]) -> None:
        """Requeue the job as submitit does, if the signal has come; checkpoints are written.

        Slurm sends SIGTERM both when it cancels a job and when it preempts one, and does not
        requeue a job that ends by itself. After a SIGTERM a job of Slurm therefore waits for the
        signal or for its end.

        Args:
            cancelled: returns whether the launcher has cancelled the job, which then need not wait.
        """
        slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        until = time.monotonic() + (KILLED_AFTER if slurm else 0)
        while not self.asked and time.monotonic() < until and not cancelled():
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
    handler = signal.getsignal(number)
    ours = isinstance(getattr(handler, "__self__", None), Preemption)
    free = ours or handler in (signal.SIG_DFL, signal.default_int_handler)
    return number != signal.SIGUSR1 or free
