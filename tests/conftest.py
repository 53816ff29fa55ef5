import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from support import finished
from support.commands import SHARED, Command, Result

# Nothing in a test may reach a network, and the W&B of the person who runs it stays untouched.
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)
# Nor does the key of the user's own, by which kdbench knows what it has measured.
os.environ["XDG_STATE_HOME"] = STATE = tempfile.mkdtemp(prefix="kdbench-tests-")
atexit.register(shutil.rmtree, STATE, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Keep Python's collector from walking all that was imported, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_unconfigure() -> None:
    """Libraries that look for leaks at the end find none."""
    gc.unfreeze()


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Run an entry of kdbench as the shell would, in this process and in an empty folder."""
    from kdbench import analyse, estimate, evaluate, export, report, submit, table, train, verify

    modules = (train, evaluate, table, estimate, report, analyse, export, submit, verify)
    entries = {module.__name__.split(".")[1]: module.main for module in modules}
    monkeypatch.chdir(tmp_path)

    def run(entry: str, *arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", [f"kdbench-{entry}", *arguments])
        code = 0
        try:
            entries[entry]()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def cifar100_root() -> Path:
    """The folder that holds cifar-100-python; skips where there is none."""
    root = Path(os.environ.get("KDBENCH_DATA", SHARED / "data"))
    if not (root / "cifar-100-python" / "train").is_file():
        pytest.skip(f"no CIFAR-100 in {root}: set KDBENCH_DATA to a folder that holds it")
    return root


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session keeps what `trained` has trained."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def trained(command: Command, finished_runs: Path) -> Path:
    """A copy of `support.finished`'s runs in this test's folder."""
    return finished.train(command, finished_runs)
