"""What a sweep asks of Slurm and of Ray, and how a job leaves that Slurm wants to end."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from kdbench.config.hydra_cli import compose_head
from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.sweeps.local import Ended, Task
from kdbench.sweeps.planning import plan
from kdbench.sweeps.ray import TASK, RayExecutor
from kdbench.sweeps.slurm import Submission, SubmititExecutor
from kdbench.sweeps.watching import CANCELLED
from kdbench.sweeps.worker import Outcome
from kdbench.system.signals import STOPS, stop_requests
from kdbench.training.together import train
from support.runs import config, runs, same, weights

IMAGENET = "+experiments=imagenet_resnet34_resnet18"
# Long enough to be preempted, with checkpoints only where a job has to leave.
LONG = ["schedule.epochs=40", "schedule.milestones=[]", "runtime.checkpoint_epochs=40"]
SLURM = {
    "sbatch": 'cp "$1" sbatch.sh; echo Submitted batch job 12',
    "srun": "",
    "scontrol": 'echo "$@" >> scontrol.log',
}


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> None:
    """Commands of Slurm that write down what they are asked."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    Path("bin").mkdir()
    for name, script in SLURM.items():
        Path("bin", name).write_text(f"#!/bin/sh\n{script}\n")
        Path("bin", name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def launcher(*overrides: str) -> dict:
    """`hydra.launcher` of a command."""
    node = compose_head("config", list(overrides)).hydra.launcher
    return OmegaConf.to_container(node, resolve=True)


def submit(parameters: dict) -> SubmititExecutor:
    executor = SubmititExecutor(Path("runs", ".submitit"), parameters, None)
    executor.start([Task(1, plan([config("method=ce", *LONG)]).todo)])
    return executor


def test_the_preset_of_slurm_reaches_the_jobs_script(slurm):
    given = [f"hydra.launcher.submitit.slurm_{key}=x" for key in ("partition", "constraint")]
    settings = launcher(IMAGENET, "hydra/launcher=cohort_slurm", *given)
    assert (settings["executor"], settings["size"], settings["processes"]) == ("submitit", 16, None)
    executor = submit(settings["submitit"])
    (task,) = (task for task, _ in executor.running)
    script = Path("sbatch.sh").read_text().splitlines()
    flags = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in script
        if line.startswith("#SBATCH")
    )
    asked = {
        "job-name": "kdbench",
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "mem": "64GB",
        "time": "1440",
        "signal": "USR2@300",
        "partition": "x",
        "constraint": "x",
        "open-mode": "append",
        "output": str(Path.cwd() / "runs/.submitit/%j_0_log.out"),
    }
    assert {key: flags.get(key) for key in asked} == asked
    assert not {"account", "qos", "error"} & set(flags)
    assert task.log == Path.cwd() / "runs/.submitit/12_0_log.out"
    assert executor.executor._executor.max_num_timeout == 100


def test_what_slurm_refuses_is_one_line(slurm, capfd):
    refusal = "echo sbatch: error: invalid partition specified: x >&2; exit 1"
    Path("bin/sbatch").write_text(f"#!/bin/sh\n{refusal}\n")
    with pytest.raises(KdbenchError, match=r"Slurm takes no job: invalid partition specified: x$"):
        submit({"cluster": "slurm"})
    assert capfd.readouterr() == ("", "")


def test_what_is_refused_waits_while_others_run(slurm):
    """MaxSubmitJobs counts an array's elements: fewer are tried, then one, then none."""
    scripts = {
        "sbatch": 'echo "$1" >> asked; grep -q array "$1" && exit 1; test -e full && exit 1; '
        "touch full; echo Submitted batch job 12",
        "scontrol": "echo MaxArraySize = 3",
        "squeue": "echo '12|RUNNING'",
    }
    for name, script in scripts.items():
        Path("bin", name).write_text(f"#!/bin/sh\n{script}\n")
        Path("bin", name).chmod(0o755)
    executor = SubmititExecutor(Path("runs", ".submitit"), {"cluster": "slurm"}, None)
    tasks = [Task(number, plan([config("method=ce")]).todo) for number in range(4)]
    assert executor.start(tasks) == 1
    assert len(Path("asked").read_text().splitlines()) == 3, "arrays of 3 and 2, then one job"
    assert executor.start(tasks[1:2]) == 0
    assert executor.room() == 0
    (job,) = [job for _, job in executor.running]
    job.paths.result_pickle.write_bytes(pickle.dumps(("success", [Outcome()])))
    (ended,) = executor.ended()
    assert ended == Ended(tasks[0], [Outcome()])
    assert executor.start(tasks[1:2]) == 0, "it may still count, though its result is there"
    assert executor.room() == 0


def test_a_job_inherits_nothing_of_the_launchers_own_job(slurm, monkeypatch):
    Path("bin/sbatch").write_text("#!/bin/sh\nenv > env.txt; echo Submitted batch job 12\n")
    monkeypatch.setenv("SBATCH_ACCOUNT", "lab")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/here.conf")
    submit({"cluster": "slurm"})
    assert "SBATCH_ACCOUNT=lab" in Path("env.txt").read_text(), "what a user has set stays"
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    submit({"cluster": "slurm"})
    found = [line for line in Path("env.txt").read_text().splitlines() if line.startswith("SLURM")]
    assert found == ["SLURM_CONF=/etc/slurm/here.conf"]


@pytest.mark.parametrize("group", ["cohort_slurm", "cohort_ray"])
@pytest.mark.parametrize("sweep", [IMAGENET, "+experiments=quickstart"])
def test_a_preset_wins_over_what_a_sweeps_file_chooses(sweep, group):
    plain, chosen = launcher(sweep), launcher(sweep, f"hydra/launcher={group}")
    assert plain["executor"] == "local"
    assert chosen["executor"] == {"cohort_slurm": "submitit", "cohort_ray": "ray"}[group]
    assert set(chosen) == set(plain)


@pytest.mark.parametrize("kind", [{}, {"accelerator_type": "A100"}])
def test_the_preset_of_ray_gives_each_cohort_a_gpu(monkeypatch, kind):
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    ray = SimpleNamespace(
        init=lambda **given: asked.append(given),
        cluster_resources=lambda: {"CPU": 64.0, "GPU": 8.0},
        remote=lambda **given: lambda _: asked.append(given) or SimpleNamespace(remote=tuple),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    given = [f"hydra.launcher.ray.{key}={value}" for key, value in kind.items()]
    settings = launcher(IMAGENET, "hydra/launcher=cohort_ray", *given)
    RayExecutor(settings["ray"], needs_gpu=True, threads=8, processes=None)._connect()
    assert asked[0]["address"] == "auto"
    assert TASK not in asked[0]
    assert asked[1] == {"num_cpus": 8, "num_gpus": 1, "max_retries": 0, **kind}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("submitit.slurm_setup=[touch executed]", "slurm_setup is not allowed"),
        ("submitit.slurm_python=./evil", "slurm_python is not allowed"),
        ("submitit.slurm_srun_args=['--prolog=./evil']", "slurm_srun_args is not allowed"),
        ("submitit.slurm_additional_parameters={export: x}", "parameters is not allowed"),
        ("submitit.local_setup=[touch executed]", "local_setup is not allowed"),
        ("submitit.slurm_partitoin=x", "did you mean 'slurm_partition'?"),
        ("submitit.slurm_partition='x\ntouch executed #'", "must be a number or a line of text"),
        ("submitit.slurm_exclude=[a,b]", "must be a number or a line of text"),
        ("ray.runtime_env={py_executable: ./evil}", "runtime_env is not allowed"),
        ("ray.address='ray://evil:10001'", "address must be auto or local"),
    ],
)
def test_what_a_cluster_would_run_is_no_setting(command, setting, said):
    executor = setting.partition(".")[0]
    settings = [f"executor={executor}", setting]
    given = [f"++hydra.launcher.{setting}" for setting in settings]
    result = command("train", "-m", "dataset=synthetic", "hydra/launcher=cohort", *given)
    assert result.code == 2
    assert said in result.error_line
    assert not runs()


def test_a_folder_of_two_lines_is_no_line_of_a_script(slurm):
    with pytest.raises(ConfigError, match="runs_dir must be a line of text"):
        SubmititExecutor(Path("x\ntouch executed #", ".submitit"), {"cluster": "slurm"}, None)


@pytest.fixture
def interrupted(monkeypatch, tmp_path) -> Iterator[Submission]:
    """A job whose training is interrupted; the signals' handlers are as before afterwards."""
    monkeypatch.delenv("SUBMITIT_EXECUTOR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdbench.sweeps.slurm.outcomes", interrupt)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, *STOPS)}
    yield Submission(tmp_path, "[]")
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(configs: list) -> None:
    raise KeyboardInterrupt


def test_a_job_that_was_not_asked_to_leave_ends_at_once(interrupted):
    with pytest.raises(KeyboardInterrupt):
        interrupted()


def ask_twice(configs: list) -> None:
    """As where the signal comes while what SIGTERM has stopped is still on its way out."""
    try:
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    "outcomes", [lambda _: signal.raise_signal(signal.SIGUSR2), ask_twice], ids=["once", "twice"]
)
def test_a_job_that_is_asked_leaves_by_submitits_own_way(interrupted, monkeypatch, outcomes):
    came = []
    signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))
    monkeypatch.setattr("kdbench.sweeps.slurm.outcomes", outcomes)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert came == [signal.SIGUSR2], "once, after the runs had ended"


@pytest.mark.parametrize("number", STOPS)
def test_the_runs_of_a_job_hear_what_asks_them_to_stop(interrupted, monkeypatch, number):
    def outcomes(configs: list) -> None:
        with stop_requests() as stop:
            signal.raise_signal(number)
            assert stop.is_set()
        raise KeyboardInterrupt

    monkeypatch.setattr("kdbench.sweeps.slurm.outcomes", outcomes)
    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_job_that_its_launcher_has_cancelled_does_not_wait(interrupted, monkeypatch, tmp_path):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: (tmp_path / CANCELLED).touch())
    with pytest.raises(KeyboardInterrupt):
        interrupted()


def start_job() -> subprocess.Popen:
    """What the job's script has Slurm start."""
    job = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1", "SUBMITIT_EXECUTOR": "slurm"}
    command = [sys.executable, "-u", "-m", "submitit.core._submit", "runs/.submitit"]
    with Path("job.log").open("a") as log:
        return subprocess.Popen(command, env={**os.environ, **job}, stdout=log, stderr=log)


def lines(path: Path) -> int:
    """How many lines a file has; none where there is no file."""
    return path.read_text().count("\n") if path.is_file() else 0


@pytest.mark.long
@pytest.mark.parametrize("signals", [["SIGUSR2"], ["SIGTERM", "SIGUSR2"]])
def test_a_preempted_job_writes_checkpoints_is_queued_again_and_ends_alike(slurm, signals):
    """SIGUSR2 alone is a time limit; Slurm sends SIGTERM first when it preempts."""
    train(config("method=ce", *LONG, "runs_dir=undisturbed"))
    executor = submit({"cluster": "slurm"})
    (folder,) = [job.folder for task, _ in executor.running for job in task.jobs]
    process = start_job()
    try:
        while not lines(folder / "metrics.jsonl"):  # before the first epoch no one listens yet
            assert process.poll() is None, Path("job.log").read_text()
            time.sleep(0.05)
        for name in signals:
            process.send_signal(signal.Signals[name])
            time.sleep(0.2)  # far less than the run takes
        assert process.wait(timeout=60) != 0
    finally:
        process.kill()
    assert Path("scontrol.log").read_text() == "requeue 12\n"
    assert checkpoint_paths(folder), "written when it was asked to leave"
    assert start_job().wait(timeout=120) == 0, Path("job.log").read_text()
    assert same(weights(folder), weights(*runs("undisturbed").values()))
