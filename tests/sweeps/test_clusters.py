"""What a sweep asks of Slurm and of Ray, and how a job leaves that Slurm wants to end."""

import os
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
from kdbench.errors import ConfigError
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.sweeps.local import Task
from kdbench.sweeps.planning import plan
from kdbench.sweeps.ray import RayExecutor
from kdbench.sweeps.slurm import Submission, SubmititExecutor
from kdbench.training.together import train
from support.runs import config, runs, same, weights

IMAGENET = "+experiments=imagenet_resnet34_resnet18"
# Long enough to be preempted, with checkpoints only where a job has to leave.
LONG = ["schedule.epochs=100", "schedule.milestones=[]", "runtime.checkpoint_epochs=100"]
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
    executor.start(Task(1, plan([config("method=ce", *LONG)]).todo))
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


@pytest.mark.parametrize("group", ["cohort_slurm", "cohort_ray"])
@pytest.mark.parametrize("sweep", [IMAGENET, "+experiments=quickstart"])
def test_a_preset_wins_over_what_a_sweeps_file_chooses(sweep, group):
    plain, chosen = launcher(sweep), launcher(sweep, f"hydra/launcher={group}")
    assert plain["executor"] == "local"
    assert chosen["executor"] == {"cohort_slurm": "submitit", "cohort_ray": "ray"}[group]
    assert set(chosen) == set(plain)


def test_the_preset_of_ray_gives_each_cohort_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    ray = SimpleNamespace(
        init=lambda **given: asked.append(given),
        cluster_resources=lambda: {"CPU": 64.0, "GPU": 8.0},
        remote=lambda **given: lambda _: asked.append(given) or SimpleNamespace(remote=tuple),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    settings = launcher(IMAGENET, "hydra/launcher=cohort_ray")
    RayExecutor(settings["ray"], needs_gpu=True, threads=8, processes=None)._connect()
    assert asked[0]["address"] == "auto"
    assert asked[1] == {"num_cpus": 8, "num_gpus": 1, "max_retries": 0}


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
    monkeypatch.setattr("kdbench.sweeps.slurm.stop_on_sigterm", lambda: None)
    monkeypatch.setattr("kdbench.sweeps.slurm.outcomes", interrupt)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield Submission(tmp_path, "[]")
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(configs: list) -> None:
    raise KeyboardInterrupt


def test_a_job_that_was_not_asked_to_leave_ends_at_once(interrupted):
    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_job_that_is_asked_leaves_by_submitits_own_way(interrupted, monkeypatch):
    came = []
    signal.signal(signal.SIGUSR2, lambda number, frame: came.append(number))
    monkeypatch.setattr(
        "kdbench.sweeps.slurm.outcomes", lambda _: signal.raise_signal(signal.SIGUSR2)
    )
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert came == [signal.SIGUSR2], "once, after the runs had ended"


def start_job() -> subprocess.Popen:
    """What the job's script has Slurm start."""
    job = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "1", "SUBMITIT_EXECUTOR": "slurm"}
    command = [sys.executable, "-u", "-m", "submitit.core._submit", "runs/.submitit"]
    with Path("job.log").open("a") as log:
        return subprocess.Popen(command, env={**os.environ, **job}, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGUSR2"], ["SIGTERM", "SIGUSR2"]])
def test_a_preempted_job_writes_checkpoints_is_queued_again_and_ends_alike(slurm, signals):
    """SIGUSR2 alone is a time limit; Slurm sends SIGTERM first when it preempts."""
    train(config("method=ce", *LONG, "runs_dir=undisturbed"))
    executor = submit({"cluster": "slurm"})
    (folder,) = [job.folder for task, _ in executor.running for job in task.jobs]
    process = start_job()
    try:
        while not (folder / "metrics.jsonl").is_file():
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
