"""How jobs are seen to end, with Slurm's commands replaced by scripts."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from chaos.processes import wait_until
from kdbench.errors import KdbenchError
from kdbench.sweeps import watching
from kdbench.sweeps.slurm_queue import GONE, Queue, array_limit
from kdbench.sweeps.watching import CANCELLED, SlurmWatch


@pytest.fixture
def says(tmp_path, monkeypatch):
    """Makes a command of Slurm say something and end with an exit status."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def says(command: str, text: str, code: int = 0) -> None:
        path = tmp_path / "bin" / command
        path.write_text(f"#!/bin/sh\necho '{text}' >&{1 if code == 0 else 2}\nexit {code}\n")
        path.chmod(0o755)

    return says


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def job(folder: Path, name: str) -> SimpleNamespace:
    paths = SimpleNamespace(result_pickle=folder / f"{name}_0_result.pkl")
    return SimpleNamespace(job_id=name, paths=paths)


def answered(queue: Queue) -> float:
    """Ask once more, until there is an answer; returns when it was asked."""
    asked = time.monotonic()
    queue.look(0.0)
    wait_until(lambda: not queue._asking.is_alive())
    return asked


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED"])
def test_what_may_go_on_has_not_ended(says, state):
    says("squeue", f"7_0|{state}\n8|TIMEOUT")
    queue = Queue()
    asked = answered(queue)
    assert [queue.end(name, asked - 1) for name in ("7_0", "8", "9")] == [None, "TIMEOUT", GONE]
    assert queue.end("8", time.monotonic()) is None, "no answer is newer"


def test_a_controller_that_does_not_answer_has_said_nothing(says):
    says("squeue", "7|RUNNING")
    queue = Queue()
    answered(queue)
    says("squeue", "slurm_load_jobs error: Unable to contact slurm controller", 1)
    answered(queue)
    assert "Unable to contact" in queue.complaint
    assert queue.end("7", 0.0) is None


def test_a_job_without_a_result_has_ended_when_none_can_come_any_more(says, folder, monkeypatch):
    monkeypatch.setattr(watching, "LOOK", 0.0)
    monkeypatch.setattr(watching, "LIST", 0.0)
    says("squeue", "7|NODE_FAIL\n8|COMPLETED")
    watch, jobs = SlurmWatch(folder), [job(folder, "7"), job(folder, "8")]
    wait_until(lambda: watch.ends(jobs) or "7" in watch.over)
    assert watch.ends(jobs) == {}, "another node may have written a result that is not seen yet"
    jobs[1].paths.result_pickle.touch()
    assert watch.ends(jobs) == {"8": "COMPLETED"}
    monkeypatch.setattr(watching, "GRACE", 0.0)
    assert watch.ends(jobs[:1]) == {"7": "NODE_FAIL"}
    assert not watch.has_result(jobs[0])


def test_jobs_that_are_cancelled_and_do_not_end_are_named(says, folder, monkeypatch):
    says("scancel", "")
    says("squeue", "Unable to contact slurm controller", 1)
    watch, jobs = SlurmWatch(folder), [job(folder, "7_0"), job(folder, "7_1")]
    watch.cancel(jobs)
    assert (folder / CANCELLED).exists()
    wait_until(lambda: watch.ends(jobs) == {} and watch.queue.complaint)
    says("scancel", "again", 1)
    monkeypatch.setattr(watching, "LOOK", 0.0)
    assert watch.ends(jobs) == {}, "asked once more"
    monkeypatch.setattr(watching, "LEAVING", 0.0)
    with pytest.raises(KdbenchError, match=r"Unable to contact.*: jobs 7_0 7_1; see squeue"):
        watch.ends(jobs)


def test_the_sites_limit_of_arrays(says):
    says("scontrol", "MaxArraySize            = 1001")
    assert array_limit() == 1001
    says("scontrol", "no controller", 1)
    assert array_limit() == 1
