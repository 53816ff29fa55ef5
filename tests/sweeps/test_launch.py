"""`hydra/launcher=cohort`: what a sweep does in other processes, and what it survives."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import kdbench.sweeps.clusters
import kdbench.sweeps.launch
import kdbench.sweeps.local
import kdbench.sweeps.worker
from kdbench.config.hydra_cli import compose_group
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.records.failures import failure, tell_failure
from kdbench.schema.node import Node
from kdbench.sweeps.local import Ended, LocalExecutor, Task, Worker, claim_log, death, environments
from kdbench.sweeps.planning import plan
from kdbench.sweeps.running import Sweep
from kdbench.sweeps.worker import Outcome
from kdbench.system.console import Console
from kdbench.training.jobs import Job
from kdbench.training.together import train, train_together
from support.in_this_process import train_here
from support.kills import at_first_checkpoint
from support.records import record_at
from support.runs import SMALL, TWO_EPOCHS, assert_same_runs, config, runs, same, weights

SWEEP = ["-m", *SMALL, "hydra/launcher=cohort", "student=resnet8"]
LABELS = "method=ce,label_smoothing"
OF_SOMEONE_ELSE = "raise SystemExit('it was imported from the folder of the command')\n"
LONG = ["schedule.epochs=8", "schedule.milestones=[]"]  # long enough to be stopped on the way


@pytest.fixture
def here(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


def undisturbed(*overrides: str) -> None:
    """The sweep's runs trained in this process, each alone."""
    for method in ("ce", "label_smoothing"):
        train(config(f"method={method}", *overrides, "runs_dir=undisturbed"))


def test_a_sweep_trains_side_by_side_to_the_bits_of_single_runs(command):
    Path("torch.py").write_text(OF_SOMEONE_ELSE)
    assert command("train", *SMALL, *TWO_EPOCHS, "student=resnet14").code == 0
    (teacher,) = runs().values()
    named = [
        "teacher=resnet14",
        f"teacher.resnet14.checkpoint={teacher}",
        "teacher.resnet14.allow_chance=true",
    ]
    sweep = [*SWEEP, *TWO_EPOCHS, *named, "method=ce,kd,dkd", "seed=0,1,0"]
    result = command("train", *sweep)
    assert result.code == 0, result.err
    assert "6 runs: 6 to train, 3 named twice" in result.out
    assert "cohort 1 starts: 3 runs, synthetic-none-resnet8-ce-s0" in result.out
    assert "cohort 1 has ended: 3 of 6 runs done, about" in result.out
    assert "cohort 2 has ended: 6 of 6 runs done\n" in result.out
    assert "sweep: 6 done, 0 done before, 0 failed" in result.out
    records = {name: record_at(folder / "record.json") for name, folder in runs().items()}
    assert all(r["companions"] == 2 for name, r in records.items() if "resnet8" in name)
    assert [path.name for path in Path("runs/.sweeps").glob("1.*")] == ["1.log"]
    again = command("train", *sweep)
    assert "6 runs: 6 done before" in again.out
    assert not Path("runs/.sweeps/2.log").exists(), "nothing to do starts no process"
    alone = ["runs_dir=alone", "hydra/launcher=basic", "seed=0"]
    assert command("train", *sweep[:-1], *alone).code == 0
    students = {name: folder for name, folder in runs("alone").items() if "resnet8" in name}
    assert len(students) == 3
    for name, folder in students.items():
        assert same(weights(folder), weights(runs()[name])), name


def test_a_killed_process_is_replaced_and_its_runs_go_on_to_the_same_bits(command, monkeypatch):
    undisturbed(*LONG)
    at_first_checkpoint(monkeypatch, lambda worker: worker.process.kill())
    result = command("train", *SWEEP, *LONG, LABELS)
    assert result.code == 0, result.err
    assert "its process was killed by SIGKILL" in result.err
    assert "0 of 2 runs done, 2 runs to be tried once more" in result.out
    assert "sweep: 2 done, 0 done before, 0 failed" in result.out
    assert_same_runs("undisturbed", "runs")


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
def test_a_stopped_sweep_goes_on_to_the_same_bits(command, monkeypatch, number):
    undisturbed(*LONG)
    with monkeypatch.context() as patch:
        at_first_checkpoint(patch, lambda worker: os.kill(os.getpid(), number))
        result = command("train", *SWEEP, *LONG, LABELS, "hydra.launcher.size=1")
    assert result.code == 130
    assert result.error_line == (
        "stopped with 0 of 2 runs done; the same command goes on from there"
    )
    assert "stopped in epoch" in Path("runs/.sweeps/1.log").read_text()
    again = command("train", *SWEEP, *LONG, LABELS)
    assert again.code == 0, again.err
    assert "2 runs: 1 go on from a checkpoint, 1 to train" in again.out
    assert_same_runs("undisturbed", "runs")


def test_a_second_ctrl_c_does_not_wait(here, monkeypatch):
    """The process that trains is killed; its checkpoints stay."""
    before = signal.getsignal(signal.SIGINT)  # a shell ignores it for what runs in the background
    signals = iter([signal.SIGINT, signal.SIGINT])
    monkeypatch.setattr(LocalExecutor, "stop", lambda self: os.kill(os.getpid(), next(signals)))
    at_first_checkpoint(monkeypatch, lambda worker: os.kill(os.getpid(), next(signals)))
    configs = [config("method=ce", "schedule.epochs=2000")]
    with pytest.raises(KeyboardInterrupt):
        kdbench.sweeps.launch.launch(configs, kdbench.sweeps.launch.Settings())
    (folder,) = runs().values()
    assert checkpoint_paths(folder)
    assert signal.getsignal(signal.SIGINT) is before


def test_runs_stop_when_whoever_started_them_is_gone(here):
    """A sweep that is killed leaves no process that writes to its runs."""
    task = Task(1, plan([config("method=ce", "schedule.epochs=2000")]).todo)
    Path("sweeps").mkdir()
    worker = Worker(Path("sweeps"), {}, shown=False)
    worker.give(task)
    try:
        while not checkpoint_paths(task.jobs[0].folder):
            assert worker.ended() is None
        worker.process.stdin.close()  # as the kernel does when the parent dies
        assert worker.process.wait(timeout=60) == 130
    finally:
        worker.close()
    assert "the same command goes on from there" in task.log.read_text()


def test_a_run_that_fails_leaves_the_others_and_is_named(command, monkeypatch):
    train_here(monkeypatch)
    result = command("train", *SWEEP, "method=ce", "schedule.lr=0.05,1e30", "seed=0,1")
    assert result.code == 1
    assert "sweep: 2 done, 0 done before, 2 failed" in result.out
    assert "tried once more" not in result.out, "it would diverge again"
    *said, last = result.err.strip().splitlines()
    assert last == (
        "kdbench: error: 2 of 4 runs have no result; the same command tries them again and leaves "
        "the others alone"
    )
    assert len(said) >= 2
    assert all("diverged in epoch 1" in line and "synthetic-none" in line for line in said)


def test_what_may_be_an_accident_is_tried_once_more(command, monkeypatch):
    train_here(monkeypatch)
    (job,) = plan([config("method=ce")]).todo
    job.folder.parent.mkdir()
    job.folder.touch()  # in the way of the run's folder
    result = command("train", *SWEEP, *TWO_EPOCHS, LABELS)
    assert result.code == 1
    assert "1 of 2 runs done, 1 run to be tried once more" in result.out
    assert "cohort 2 starts: tried once more, synthetic-none-resnet8-ce-s0" in result.out
    assert "sweep: 1 done, 0 done before, 1 failed" in result.out
    lines = [line for line in result.err.splitlines() if "is no folder but a link" in line]
    assert len(lines) == 3, "at once, after the second try, and in the summary"
    assert all(job.identity.run_id in line for line in lines)


def test_what_cannot_be_trained_is_said_before_anything_is(command, monkeypatch):
    train_here(monkeypatch)
    result = command("train", *SWEEP, *TWO_EPOCHS, "method=kd,dkd,ce", "seed=0")
    assert result.code == 1
    first, second, *again, last = result.err.strip().splitlines()
    assert again == [first, second], "and once more at the end"
    assert "synthetic-none-resnet8-kd-s0: method kd reads 1 teacher(s), not 0" in first
    assert "synthetic-none-resnet8-dkd-s0: method dkd reads" in second
    assert "2 of 3 runs have no result; the same command tries them again" in last
    assert "3 runs: 1 to train, 2 cannot be trained" in result.out
    assert "sweep: 1 done, 0 done before, 2 failed" in result.out


def test_every_failed_run_is_named_at_the_end_whatever_kept_it(command, monkeypatch):
    train_here(monkeypatch)
    result = command("train", *SWEEP, *TWO_EPOCHS, "method=kd,ce", "schedule.lr=0.05,1e30")
    *said, last = result.err.strip().splitlines()
    assert "3 of 4 runs have no result" in last
    assert "-kd-s0" in said[-2]
    assert "-ce-s0" in said[-1]


@pytest.mark.parametrize(
    ("size", "tried"), [(1, "one"), pytest.param(3, "all three", marks=pytest.mark.long)]
)
def test_fail_fast_stops_at_the_first_failure(command, size, tried):
    """Also while the others of its cohort train on; they leave checkpoints."""
    settings = ["hydra.launcher.fail_fast=true", f"hydra.launcher.size={size}"]
    epochs = ["schedule.epochs=3000", "schedule.milestones=[]"]
    result = command("train", *SWEEP, *epochs, *settings, "method=ce", "schedule.lr=1e30,0.01,0.02")
    assert result.code == 1
    assert "sweep: 0 done, 0 done before, 1 failed, 2 not tried" in result.out
    assert "diverged" in result.err.splitlines()[-2]
    assert "3 of 3 runs have no result" in result.err.splitlines()[-1]
    assert len(runs_at("runs")) == {"one": 1, "all three": 3}[tried]


def runs_at(folder: str) -> list[Path]:
    return [path for path in Path(folder).iterdir() if (path / "config.json").is_file()]


def test_fail_fast_trains_nothing_where_a_run_cannot_be_trained(command):
    result = command("train", *SWEEP, "method=kd,ce", "hydra.launcher.fail_fast=true")
    assert "0 done, 0 done before, 1 failed, 1 not tried" in result.out
    assert result.err.count("reads 1 teacher(s)") == 1


def test_what_is_missing_is_a_reason_for_each_run_that_needs_it(here):
    data = Node.read(compose_group("dataset", "cifar100", "dataset.root=nowhere"))
    nowhere = replace(config("method=ce"), dataset=data)
    untaught = config("method=tfkd_self", "teacher=self", "teacher.self.allow_chance=true")
    found = plan([nowhere, replace(nowhere, seed=1), untaught])
    assert (found.todo, found.done) == ([], 0)
    assert [failure.name.split("-")[0] for failure in found.failures] == ["cifar100"] * 2 + [
        "synthetic"
    ]
    first, second, teacher = (failure.reason for failure in found.failures)
    assert first == second
    assert "cifar100 is not in" in first
    assert "its teacher synthetic-none-resnet8-ce-s1000" in teacher
    assert teacher.endswith("has no result")


def test_a_teacher_that_is_trained_on_the_way_comes_first_and_once(command, monkeypatch):
    """Two processes would otherwise train it at the same time, in one folder."""
    train_here(monkeypatch)
    sweep = [
        *SWEEP,
        *TWO_EPOCHS,
        "method=tfkd_self",
        "teacher=self",
        "teacher.self.allow_chance=true",
        "seed=0,1",
    ]
    result = command("train", *sweep)
    assert result.code == 0, result.err
    assert "teachers first: 1 run: 1 to train, 1 named twice" in result.out
    assert "sweep: 2 done, 0 done before, 0 failed" in result.out
    assert sorted(runs()) == [
        "synthetic-none-resnet8-ce-s1000",
        "synthetic-self_resnet8-resnet8-tfkd_self-s0",
        "synthetic-self_resnet8-resnet8-tfkd_self-s1",
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("size=0", "hydra.launcher.size must be 1 or more, not 0"),
        ("processes=-1", "hydra.launcher.processes must be 1 or more, not -1"),
        ("order=worth", "unknown hydra.launcher.order 'worth': choose from given, value"),
        ("headline=0", "hydra.launcher.headline must be 1 or more, not 0"),
        ("minutes=0", "hydra.launcher.minutes must be above 0, not 0"),
        ("minutes=inf", "hydra.launcher.minutes must be above 0, not inf"),
        ("executor=locl", "unknown hydra.launcher.executor 'locl': did you mean 'local'?"),
        ("submitit={cluster: local, timeout_min: x}", "hydra.launcher.submitit: Parameter"),
    ],
)
def test_settings_that_make_no_sense(command, setting, said):
    executor = ["hydra.launcher.executor=submitit"] if "submitit" in setting else []
    if executor:
        pytest.importorskip("submitit")
    result = command("train", *SWEEP, "method=ce", *executor, f"hydra.launcher.{setting}")
    assert result.code == 2
    assert said in result.error_line
    assert not runs()


@pytest.mark.parametrize(("package", "extra"), [("submitit", "slurm"), ("ray", "ray")])
def test_an_executor_that_is_not_installed(command, monkeypatch, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    result = command("train", *SWEEP, "method=ce", f"hydra.launcher.executor={package}")
    assert result.code == 1
    assert f"needs {package}: pip install 'kdbench[{extra}]'" in result.error_line


def runtimes(device: str) -> list:
    return [SimpleNamespace(device=torch.device(device))]


def test_a_process_for_each_gpu_that_may_be_seen(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    shared = {"OMP_NUM_THREADS": "3"}
    assert environments(runtimes("cuda"), None) == [
        {"CUDA_VISIBLE_DEVICES": "0", **shared},
        {"CUDA_VISIBLE_DEVICES": "1", **shared},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert environments(runtimes("cuda"), 1) == [{"CUDA_VISIBLE_DEVICES": "3"}]
    assert environments(runtimes("cuda"), 2)[1] == {"CUDA_VISIBLE_DEVICES": "GPU-5", **shared}
    with pytest.raises(ConfigError, match="processes=3, but there are 2 GPUs"):
        environments(runtimes("cuda"), 3)
    assert environments(runtimes("cpu"), None) == [{}]
    assert environments(runtimes("cpu"), 9) == [{"OMP_NUM_THREADS": "1"}] * 9
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environments(runtimes("cpu"), 2) == [{}, {}], "what the user says is each process's"


def test_deaths_are_named():
    assert death(3) == "its process ended with exit code 3"
    assert death(-signal.SIGSEGV) == "its process was killed by SIGSEGV"
    assert "too little memory" in death(-signal.SIGKILL)


def test_logs_are_numbered_and_never_overwritten(tmp_path):
    assert claim_log(tmp_path) == tmp_path / "1.log"
    (tmp_path / "7.log").touch()
    (tmp_path / "notes.log").touch()
    assert claim_log(tmp_path) == tmp_path / "8.log"


def test_two_sweeps_that_number_at_once_have_a_log_each(tmp_path, monkeypatch):
    (tmp_path / "1.log").touch()
    monkeypatch.setattr(Path, "glob", lambda *_: [])  # it looked before the other one wrote
    assert claim_log(tmp_path) == tmp_path / "2.log"


def fail_with(error: Exception) -> Callable[..., None]:
    def fail(*_, **__):
        raise error

    return fail


def test_a_job_that_dies_has_a_reason(tmp_path):
    pytest.importorskip("submitit")
    executor = kdbench.sweeps.slurm.SubmititExecutor(tmp_path, {"cluster": "debug"}, None)
    result = fail_with(RuntimeError("no result"))
    job = SimpleNamespace(done=lambda: True, result=result, job_id="7", state="OUT_OF_MEMORY")
    executor.running = [("task", job)]
    reason = "its job 7 ended without a result (OUT_OF_MEMORY)"
    assert executor.ended() == [Ended("task", None, reason)]


@pytest.mark.parametrize("starts", [False, True])
def test_what_ray_does_not_do_is_one_line(monkeypatch, starts):
    ray = SimpleNamespace(
        init=(lambda **_: None) if starts else fail_with(ConnectionError("no head\nat all")),
        cluster_resources=lambda: {"CPU": 1.0},
        remote=lambda **_: lambda _: SimpleNamespace(remote=lambda *_: "reference"),
        wait=lambda references, **_: (references, []),
        get=fail_with(RuntimeError("\nthe node is gone\nand more")),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    executor = kdbench.sweeps.ray.RayExecutor({}, needs_gpu=False, threads=1, processes=None)
    task = Task(1, [])
    if not starts:
        with pytest.raises(KdbenchError, match=r"ray: Ray does not start: no head$"):
            executor.start([task])
        return
    executor.start([task])
    reason = "its Ray task ended without a result: the node is gone"
    assert executor.ended() == [Ended(task, None, reason)]


def test_whatever_ends_a_cohort_is_each_of_its_runs_outcome(monkeypatch, capsys):
    error = ZeroDivisionError("of nothing\nat all")
    monkeypatch.setattr(kdbench.sweeps.worker, "train_together", fail_with(error))
    line = "ZeroDivisionError: of nothing"
    assert kdbench.sweeps.worker.outcomes([{}, {}]) == [Outcome(line)] * 2
    assert capsys.readouterr().err.count("Traceback") == 1


def test_a_worker_that_is_interrupted_says_so_and_leaves(monkeypatch, capsys):
    monkeypatch.setattr(kdbench.sweeps.worker, "stop_on_sigterm", lambda: None)
    stop = fail_with(KeyboardInterrupt("stopped in epoch 2"))
    monkeypatch.setattr(kdbench.sweeps.worker, "Tasks", stop)
    with pytest.raises(SystemExit) as left:
        kdbench.sweeps.worker.main()
    assert (left.value.code, capsys.readouterr().err) == (130, "stopped in epoch 2\n")


class OneByOne:
    """An executor whose cohorts end when the test says so."""

    def __init__(self, script: Iterator[list[Outcome] | None], log: Path | None) -> None:
        self.script, self.log, self.task = script, log, None

    def room(self) -> int:
        return int(self.task is None)

    def start(self, tasks: Sequence[Task]) -> int:
        (self.task,) = tasks
        self.task.log, self.task.shown = self.log, self.log is None
        return 1

    def ended(self) -> list[Ended]:
        found, ended = next(self.script), self.task
        if found is None:
            return []
        self.task = None
        return [Ended(ended, found)]


def test_a_failure_is_said_while_the_others_train(here, capsys, monkeypatch):
    jobs = plan([config("method=ce"), config("method=label_smoothing")]).todo
    name, log = jobs[0].identity.run_id, Path("1.log")
    for job in jobs:
        job.folder.mkdir(parents=True)
    tell_failure(jobs[1].folder, OSError("of an earlier try"))

    def script():
        log.write_text(f"{name} failed: a line of anybody's\n")
        yield None
        assert not capsys.readouterr().err, "a log is read by people alone"
        tell_failure(jobs[0].folder, OSError("the disk is full"))
        yield None
        yield None
        assert capsys.readouterr().err == f"kdbench: error: {name} failed: the disk is full\n"
        yield [Outcome("the disk is full"), Outcome()]
        said = capsys.readouterr()
        assert "1 of 2 runs done, 1 run to be tried once more, about" in said.out
        assert not said.err, "it was said"
        yield [Outcome("the disk is full")]

    sweep = Sweep(OneByOne(script(), log), Console(), threading.Event(), 16)
    assert sweep.train(jobs) == 1
    assert sweep.failures == [(name, "the disk is full")]
    assert name in capsys.readouterr().err, "the second failure is said too"
    assert [failure(job.folder) for job in jobs] == [None, None]


def test_where_a_cohort_draws_its_table_a_failure_is_said_at_its_end(here, capsys):
    (job,) = plan([config("method=ce")]).todo
    job.folder.mkdir(parents=True)

    def script():
        yield None
        tell_failure(job.folder, OSError("the disk is full"))
        yield None
        yield None
        assert not capsys.readouterr().err, "its own process has said so"
        yield [Outcome("the disk is full", final=True)]

    sweep = Sweep(OneByOne(script(), None), Console(), threading.Event(), 16)
    assert sweep.train([job]) == 0
    said = capsys.readouterr().err
    assert said == f"kdbench: error: {job.identity.run_id} failed: the disk is full\n"


@pytest.mark.parametrize("log", [None, Path("1.log")])
@pytest.mark.parametrize("why", ["Ctrl-C", "fail_fast"])
def test_where_a_cohort_draws_its_table_a_stop_is_said_at_its_end(here, capsys, log, why):
    (job,) = plan([config("method=ce")]).todo
    job.folder.mkdir(parents=True)
    stop, before = threading.Event(), []

    def script():
        yield None
        if why == "Ctrl-C":
            stop.set()
        else:
            tell_failure(job.folder, OSError("the disk is full"))
        yield None
        yield None

    class Stopped(OneByOne):
        def stop(self) -> None:
            before.append("stopping" in capsys.readouterr().out)
            self.script = iter([[Outcome("stopped")]])

    sweep = Sweep(Stopped(script(), log), Console(), stop, 16, fail_fast=why == "fail_fast")
    with suppress(KeyboardInterrupt):
        sweep.train([job])
    assert before == [log is not None]
    late = "stopping at the first failure" in capsys.readouterr().out
    assert late == (why == "fail_fast" and log is None)


def test_what_is_no_event_is_none(tmp_path):
    for content in ("{", "[]", '{"error": 1}', "null", "[" * 100_000):
        (tmp_path / "failure.json").write_text(content)
        assert failure(tmp_path) is None


def fake_job(name: str, epochs: int) -> Job:
    schedule = Node("Schedule", {"epochs": epochs})
    own = SimpleNamespace(schedule=schedule)
    return SimpleNamespace(config=own, identity=SimpleNamespace(run_id=name), record=None)


def test_time_left_goes_by_what_was_finished():
    sweep = Sweep(OneByOne(iter([]), None), Console(), threading.Event(), 16)
    assert sweep.left() is None
    for number, epochs in enumerate((10, 20)):
        sweep.add([fake_job(f"run{number}", epochs)])
    assert sweep.left() is None, "nothing is finished yet"
    sweep.epochs, sweep.seconds = 10, 50.0
    assert sweep.left() == pytest.approx(5 * 30)
    sweep.running.append(sweep.waiting.popleft())
    sweep.running[0].started -= 20
    assert sweep.left() == pytest.approx(100, abs=1), "two at a time: the longer one's"
    sweep.add([fake_job("run2", 20)])
    assert sweep.left() == pytest.approx((50 - 20 + 200) / 2, abs=1)
    sweep.running[0].started -= 60
    assert sweep.left() is None, "it takes longer than was thought, and no one knows how long"


def test_jobs_of_submitit(command):
    pytest.importorskip("submitit")
    Path("torch.py").write_text(OF_SOMEONE_ELSE)
    train_together([config(f"method={m}", "runs_dir=here") for m in ("ce", "label_smoothing")])
    cluster = ["hydra.launcher.executor=submitit", "hydra.launcher.submitit.cluster=local"]
    sweep = [*SWEEP, *TWO_EPOCHS, *cluster, "+hydra.launcher.submitit.mem_gb=4"]
    result = command("train", *sweep, LABELS)
    assert result.code == 0, result.err
    assert "cohort 1 starts: 2 runs" in result.out
    assert "sweep: 2 done, 0 done before, 0 failed" in result.out
    assert list(Path("runs/.submitit").glob("*/*_result.pkl"))
    for name, folder in runs("here").items():
        assert same(weights(folder), weights(runs()[name]))


CLUSTERS = {
    "submitit": ["hydra.launcher.submitit.cluster=local"],
    "ray": ["+hydra.launcher.ray.num_cpus=2"],
}


@contextmanager
def sweep_on(executor: str, folder: Path, *arguments: str) -> Iterator[subprocess.Popen]:
    """A sweep in a process of its own, which Ray needs."""
    pytest.importorskip(executor, reason=f"{executor} is not installed")
    given = [f"hydra.launcher.executor={executor}", *CLUSTERS[executor], *arguments]
    command = [sys.executable, "-m", "kdbench.train", *SWEEP, *given]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.long
def test_tasks_of_ray(tmp_path):
    with sweep_on("ray", tmp_path, *TWO_EPOCHS, LABELS, "seed=0,1") as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "sweep: 4 done, 0 done before, 0 failed" in out
    record = record_at(runs(tmp_path / "runs")["synthetic-none-resnet8-ce-s0"] / "record.json")
    assert record["companions"] == 1


@pytest.mark.long
@pytest.mark.parametrize("executor", CLUSTERS)
def test_a_stopped_sweep_on_a_cluster_leaves_checkpoints(tmp_path, executor):
    with sweep_on(executor, tmp_path, "method=ce", "schedule.epochs=3000") as process:
        while not list(tmp_path.glob("runs/*/checkpoint-*")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.endswith(
        "kdbench: error: stopped with 0 of 1 run done; the same command goes on from there\n"
    )
    (folder,) = runs(tmp_path / "runs").values()
    rows = len((folder / "metrics.jsonl").read_text().splitlines())
    newest = checkpoint_paths(folder)[-1].stem.rpartition("-")[2]
    assert int(newest) >= 3 * rows, "written when it was stopped, not an epoch before"
