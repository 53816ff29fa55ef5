"""Folders that others can write to, and what lies there: links, pipes, forged measurements."""

import io
import json
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from kdbench.records.notices import EVENTS_FILE, tell, told
from kdbench.records.record import checksum
from kdbench.sweeps import local
from kdbench.sweeps.launch import Settings, open_executor
from kdbench.sweeps.local import Task, Worker
from kdbench.sweeps.ray import RayExecutor
from kdbench.system.files import make_folder
from kdbench.system.locks import RunLock
from kdbench.teachers.output_cache import OutputCache
from kdbench.tracking.run_logger import MetricsFile
from kdbench.tracking.sending import State
from kdbench.tracking.wandb_mirror import Target
from support.hostile import soon
from support.records import record_at
from support.runs import config

SMALL = ["dataset=synthetic", "dataset.num_train=40", "dataset.num_test=20", "runtime=cpu"]
SMALL += ["schedule.epochs=1", "schedule.milestones=[]", "student=resnet8"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def run_folder() -> Path:
    (folder,) = Path("runs").glob("*-s*")
    return folder


# What a sweep hands over.


class Process:
    """A worker's process that only listens."""

    def __init__(self, words: list[str], **given: object) -> None:
        self.words, self.given, self.stdin = words, given, io.BytesIO()
        self.stdin.close = lambda: None  # type: ignore[method-assign]

    def poll(self) -> int | None:
        return None

    def wait(self) -> int:
        return 0

    def kill(self) -> None:
        pass


def test_a_cohort_reaches_its_process_through_a_pipe_and_no_file(here, monkeypatch):
    """A file could be replaced before it is read: it names what is called."""
    monkeypatch.setattr(local.subprocess, "Popen", Process)
    sweeps = Path("runs", ".sweeps")
    sweeps.mkdir(parents=True)
    worker = Worker(sweeps, {}, shown=False)
    given = config("runs_dir=x")
    worker.give(Task(1, [SimpleNamespace(config=given)]))
    with soon():
        while not worker.process.stdin.getvalue().endswith(b"\n"):
            pass
    assert json.loads(worker.process.stdin.getvalue()) == [given.spelt()]
    assert [path.name for path in sweeps.iterdir()] == ["1.log"]
    worker.close()


def test_the_log_of_a_process_is_its_own(here):
    victim = Path("victim")
    victim.write_text("mine")
    sweeps = Path("runs", ".sweeps")
    sweeps.mkdir(parents=True)
    (sweeps / "1.log").symlink_to(victim.resolve())
    assert local.claim_log(sweeps) == sweeps / "2.log"
    assert victim.read_text() == "mine"


# Whose folder it is.


@pytest.mark.parametrize("kind", ["link", "writable", "another user's"])
def test_a_run_folder_is_ours_alone(command, monkeypatch, kind):
    assert command("train", *SMALL).code == 0
    folder, victim = run_folder(), Path("victim")
    folder.rename(victim)
    (victim / "record.json").unlink()
    kept = {path.name: path.read_bytes() for path in victim.iterdir()}
    if kind == "link":
        folder.symlink_to(victim.resolve())
    else:
        victim.rename(folder)
        victim = folder
        folder.chmod(0o777 if kind == "writable" else 0o755)
        if kind != "writable":
            monkeypatch.setattr(os, "geteuid", lambda: 12345)
    result = command("train", *SMALL)
    assert result.code == 1
    assert str(folder) in result.error_line
    assert {path.name: path.read_bytes() for path in victim.iterdir()} == kept


def test_a_folder_of_runs_that_others_can_change_is_refused_or_sticky(command):
    Path("runs").mkdir()
    Path("runs").chmod(0o777)
    assert "chmod go-w runs" in command("train", *SMALL).error_line
    assert not list(Path("runs").glob("*-s*"))
    Path("runs").chmod(0o1777)
    assert command("train", *SMALL).code == 0
    assert stat.S_IMODE(run_folder().stat().st_mode) & 0o022 == 0


def test_asking_whether_a_folder_can_be_written_follows_no_link(here):
    Path("runs").mkdir()
    Path("runs", ".writable").symlink_to(Path("executed").resolve())
    make_folder(Path("runs"))
    assert not Path("executed").exists()
    assert Path("runs", ".writable").is_symlink()


def test_each_of_several_people_has_own_folders_beside_the_runs(here, monkeypatch):
    from kdbench.system.private import private_folder

    first = private_folder(Path(), ".tables")
    assert (first, stat.S_IMODE(first.stat().st_mode)) == (Path(".tables"), 0o700)
    first.chmod(0o777)
    second = private_folder(Path(), ".tables")
    assert second == Path(f".tables-{os.geteuid()}")
    second.chmod(0o777)
    with pytest.raises(KdbenchError, match="other users can write to"):
        private_folder(Path(), ".tables")


def test_pickles_of_a_cluster_lie_where_nobody_can_replace_them(tmp_path):
    """Not even by another name for a folder above."""
    shared = tmp_path / "shared"
    (shared / "me" / "runs").mkdir(parents=True)
    settings = Settings(executor="submitit", submitit={"cluster": "local"})
    shared.chmod(0o777)
    with pytest.raises(KdbenchError, match="other users can replace what is in"):
        open_executor([], settings, shared / "me" / "runs", False)
    shared.chmod(0o755)
    pytest.importorskip("submitit")
    executor = open_executor([], settings, shared / "me" / "runs", False)
    (folder,) = (shared / "me" / "runs" / ".submitit").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    executor.close()


# What lies in a folder.

FACTS = {"dtype": "float32", "teacher": "x"}


def test_metrics_follow_no_link(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(victim)
    with pytest.raises(KdbenchError, match="cannot write"):
        MetricsFile(tmp_path).epoch({"epoch": 1})
    assert victim.read_text() == "mine"


def test_what_a_run_tells_its_launcher_follows_no_link_and_waits_for_no_pipe(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / EVENTS_FILE).symlink_to(victim)
    with pytest.raises(KdbenchError, match="cannot write"):
        tell(tmp_path, "a line")
    assert victim.read_text() == ""
    (tmp_path / EVENTS_FILE).unlink()
    os.mkfifo(tmp_path / EVENTS_FILE)
    with soon():
        assert told(tmp_path) == []
        with pytest.raises(KdbenchError, match="cannot write"):
            tell(tmp_path, "a line")


def test_rows_of_a_table_follow_no_link_that_came_later(tmp_path):
    table = OutputCache(tmp_path, FACTS, 2, 2, 3)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine" * 20)
    (table.folder / "rows").unlink()
    (table.folder / "rows").symlink_to(victim)
    index = torch.arange(2).numpy()
    with pytest.raises(KdbenchError, match="cannot keep"):
        table.write(index, index, torch.ones(2, 3).numpy())
    assert victim.read_bytes() == b"mine" * 20


def test_a_table_s_folder_is_no_link(tmp_path):
    folder = OutputCache(tmp_path / "a", FACTS, 2, 2, 3).folder
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / folder.name).symlink_to(folder)
    with pytest.raises(KdbenchError, match="is no folder but a link"):
        OutputCache(tmp_path / "b", FACTS, 2, 2, 3)


def test_the_files_of_wandb_follow_no_link(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "wandb").symlink_to(tmp_path / "victim")
    with pytest.raises(KdbenchError, match="is a link"):
        Target("x", None, "offline", tmp_path).start("x", live=False)
    assert not list((tmp_path / "victim").iterdir())


def test_no_pipe_is_waited_for(tmp_path):
    for name in ("checkpoint-000000009.safetensors", ".lock", "metrics.jsonl", "state.json"):
        os.mkfifo(tmp_path / name)
    good = Checkpoint({"w": torch.zeros(1)}, {"step": 1})
    save_checkpoint(tmp_path, 1, good)
    with soon():
        found, damaged = load_checkpoint(tmp_path)
        assert found is not None
        assert damaged == [tmp_path / "checkpoint-000000009.safetensors"]
        with pytest.raises(OSError, match="not a regular file"):
            RunLock(tmp_path)
        with pytest.raises(KdbenchError, match="cannot write"):
            MetricsFile(tmp_path).epoch({"epoch": 1})
        state = State(Target("x", None, "offline", tmp_path))
        assert not state.has("x", "y")
        table = OutputCache(tmp_path, FACTS, 2, 2, 3)
        (table.folder / "rows").unlink()
        os.mkfifo(table.folder / "rows")
        with pytest.raises(KdbenchError, match="not a regular file"):
            OutputCache(tmp_path, FACTS, 2, 2, 3)


# What was measured of a teacher.


def test_a_forged_measurement_is_made_again(command):
    """Its checksum holds: everybody can make one."""
    assert command("train", *SMALL, "student=resnet14").code == 0
    (teacher,) = Path("runs").glob("*-s*")
    kd = [*SMALL, "method=kd", "teacher=resnet14", f"teacher.resnet14.checkpoint={teacher}"]
    kd.append("teacher.resnet14.allow_chance=true")
    assert command("train", *kd).code == 0
    (measurement,) = Path("runs/.teachers").glob("*.json")
    honest = json.loads(measurement.read_text())
    forged = {"chosen": [label + 1 for label in honest["chosen"]]}
    seal = {key: value for key, value in honest.items() if key == "seal"}
    measurement.write_text(json.dumps({**forged, **seal, "checksum": checksum(forged)}))

    assert command("train", *kd, "seed=1").code == 0
    top1 = {
        record["teachers"][0]["top1"]
        for path in Path("runs").glob("*kd*/record.json")
        for record in [record_at(path)]
    }
    assert len(top1) == 1
    assert json.loads(measurement.read_text())["chosen"] == honest["chosen"]


def test_a_measurement_that_is_a_pipe_or_deep_is_made_again(tmp_path):
    from kdbench.teachers.loading import read_measurement

    os.mkfifo(tmp_path / "x.json")
    (tmp_path / "y.json").write_text("[" * 100_000)
    with soon():
        assert read_measurement(tmp_path / "x.json", 3) is None
        assert read_measurement(tmp_path / "y.json", 3) is None


def test_the_key_of_measurements_is_read_by_nobody_else(tmp_path, monkeypatch):
    from kdbench.system import private

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for cached in (private.key, private.user_folder):
        cached.cache_clear()
    try:
        first = private.key()
        kept = tmp_path / "kdbench" / "key"
        assert (kept.read_bytes(), stat.S_IMODE(kept.stat().st_mode)) == (first, 0o600)
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
        private.key.cache_clear()
        assert private.key() == first
        kept.chmod(0o644)
        private.key.cache_clear()
        assert private.key() != first, "somebody may have read it"
    finally:
        for cached in (private.key, private.user_folder):
            cached.cache_clear()


# What other libraries trust.


@pytest.mark.parametrize("already", ["nothing", "PyTorch's default"])
def test_compiled_code_is_kept_where_only_its_owner_writes(tmp_path, monkeypatch, already):
    """Also where PyTorch has named its default in /tmp, which it does with torchvision's import."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    from kdbench.system import private

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    if already == "nothing":
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    private.user_folder.cache_clear()
    private.keep_compiled_code()
    kept = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    private.user_folder.cache_clear()
    assert kept.is_relative_to(tmp_path)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


def test_compiled_code_is_kept_where_its_owner_says(tmp_path, monkeypatch):
    from kdbench.system import private

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    private.keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "mine")


@pytest.mark.parametrize("named", [None, "", "auto"])
def test_ray_joins_no_cluster_that_nobody_named(monkeypatch, named):
    asked: list[dict] = []
    ray = SimpleNamespace(
        init=lambda **given: asked.append(given),
        cluster_resources=dict,
        remote=lambda **given: lambda _: None,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named is not None:
        monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(ConfigError, match="RAY_ADDRESS"):
        RayExecutor({"address": "auto"}, False, 1, None)
    RayExecutor({}, False, 1, None)._connect()
    RayExecutor({"address": None}, False, 1, None)._connect()
    assert [given["address"] for given in asked] == ["local", "local"]
