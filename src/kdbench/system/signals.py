"""A job that a cluster wants to end writes checkpoints, and is queued again where it may be."""

import os
import signal
import time
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
