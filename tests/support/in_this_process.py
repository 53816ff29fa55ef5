"""An executor of sweeps that trains in this process: another takes seconds to import PyTorch."""

from collections.abc import Sequence

import pytest

import kdbench.sweeps.launch
from kdbench.sweeps.local import Ended, Task
from kdbench.sweeps.worker import outcomes


class InThisProcess:
    """Trains each cohort as it is handed over."""

    def __init__(self) -> None:
        self.done: list[Ended] = []

    def room(self) -> int:
        return 1

    def start(self, tasks: Sequence[Task]) -> int:
        task = tasks[0]
        task.shown = True
        self.done.append(Ended(task, outcomes([job.config for job in task.jobs])))
        return 1

    def ended(self) -> list[Ended]:
        found, self.done = self.done, []
        return found

    def stop(self) -> None:
        pass

    def close(self) -> None:
        pass


def train_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sweeps of `hydra/launcher=cohort` start no process."""
    monkeypatch.setattr(kdbench.sweeps.launch, "open_executor", lambda *given: InThisProcess())
