"""What every fault needs: a folder of its own, commands in it, and a list of what went wrong."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from chaos.compare import differences
from chaos.ground import Act, Ground, Result, run_folder
from chaos.killer import Kill, arm

METHOD = "crd"  # has a bank, and reads a live teacher


@dataclass
class Fault:
    """A fault that was tried."""

    name: str
    tried: int  # times
    outcome: str  # what became of it, in a few words
    wrong: list[str] = field(default_factory=list)  # wanted: nothing
    skipped: str = ""  # why it could not be tried here


class Arena:
    """One fault's folder, commands and verdict."""

    def __init__(self, ground: Ground, name: str) -> None:
        self.ground, self.draw = ground, Random(f"{ground.seed} {name}")
        self.folder = ground.folder / "faults" / name
        self.runs = self.folder / "runs"
        self.wrong: list[str] = []
        self.tried = 0
        shutil.rmtree(self.folder, ignore_errors=True)
        self.runs.mkdir(parents=True)

    @property
    def run(self) -> Path:
        """The folder of the one run."""
        return run_folder(self.runs)

    def arguments(self, method: str = METHOD, teacher: str = "live") -> list[str]:
        """A run in this arena."""
        return [*self.ground.settings(method, teacher=teacher), f"runs_dir={self.runs}"]

    def train(
        self, method: str = METHOD, teacher: str = "live", prepare: Act | None = None
    ) -> Result:
        """Give the run's command."""
        return self.ground.command("train", *self.arguments(method, teacher), prepare=prepare)

    def kill_at(self, step: int, method: str = METHOD, teacher: str = "live") -> None:
        """Give the run's command, and kill it in a step (from 1)."""
        kill = Kill("training", "before the update", step)
        self.train(method, teacher, prepare=lambda: arm(kill, self.draw))

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong."""
        if not holds:
            self.wrong.append(otherwise)

    def refused(self, result: Result, words: str) -> None:
        """A command must have ended with one line that says so."""
        lines = result.err.splitlines()
        single = len(lines) == 1 and lines[0].startswith("kdbench: error: ") and words in lines[0]
        self.expect(result.code in (1, 2) and single, f"exit {result.code}, said {result.err!r}")

    def ends_same(self, result: Result, method: str = METHOD) -> None:
        """A command must have ended the run with the undisturbed bits, and no complaint."""
        said = f"exit {result.code}, said {result.err!r}"
        self.expect(result.code == 0 and not result.err, said)
        if result.code == 0:
            expected = self.ground.undisturbed(method)
            self.wrong += differences(expected, self.runs / expected.name)

    def verdict(self, name: str, outcome: str) -> Fault:
        """The result; the folder stays where something is wrong."""
        if not self.wrong:
            shutil.rmtree(self.folder)
        return Fault(name, self.tried, outcome, self.wrong)


Damage = Callable[[Path, Random], None]


def tear(path: Path, draw: Random) -> None:
    """Cut a file off."""
    os.truncate(path, draw.randrange(path.stat().st_size))


def flip(path: Path, draw: Random) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


DAMAGES: tuple[Damage, ...] = (tear, flip)
