"""Sweeps on a real Slurm, which the tests start on this machine."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chaos import slurm_cluster
from chaos.compare import differences
from chaos.processes import PATIENCE, free_ports, wait_until
from chaos.slurm_cluster import SlurmCluster
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.sweeps import slurm_queue
from kdbench.training.together import train
from support.commands import ROOT
from support.runs import SMALL, TWO_EPOCHS, assert_same_runs, config, runs

LONG = ["schedule.epochs=60", "schedule.milestones=[]", "runtime.checkpoint_epochs=60"]
SWEEP = [
    *("-m", *SMALL, "student=resnet8", "hydra/launcher=cohort_slurm", "hydra.launcher.size=1"),
    *("hydra.launcher.submitit.gpus_per_node=null", "hydra.launcher.submitit.mem_gb=null"),
    *("hydra.launcher.submitit.cpus_per_task=1", "hydra.launcher.submitit.slurm_partition=low"),
]
# Imported by every Python that starts; where a job first comes to the named function, it says so
# and waits for leave to go on.
MOMENTS = """
import os, time
from pathlib import Path
if "SUBMITIT_EXECUTOR" in os.environ:
    import {module} as room
    original = {owner}.{name}
    def slow(*arguments, **named):
        if not Path("{folder}/reached").exists():
            Path("{folder}/reached").touch()
            while not Path("{folder}/leave").exists():
                time.sleep(0.05)
        return original(*arguments, **named)
    {owner}.{name} = slow
"""
PLACES = {
    "training": ("kdbench.training.member", "room", "train_step"),
    "scoring": ("kdbench.assembly.evaluation", "room", "cross_entropy"),
    "checkpoint": ("kdbench.records.checkpoint", "room", "write_atomically"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if why := slurm_cluster.missing():
        pytest.skip(why)
    found = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def cluster(
    whole: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmCluster]:
    """The cluster, without jobs; this test's own folder is the current one."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    yield whole
    whole.clear()


Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(cluster: SlurmCluster) -> Iterator[Launch]:
    """Types a sweep's command."""
    started = []

    def launch(*overrides: str, **changed: str) -> "subprocess.Popen[str]":
        found = {"PYTHONPATH": f"{Path.cwd() / 'site'}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "kdbench.train", *SWEEP, *overrides],
            env={**cluster.environment, **found, **changed},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        with process:
            process.kill()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, output and errors."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def reached(launcher: "subprocess.Popen[str]") -> None:
    """Wait until a job comes to where it was told to wait."""
    wait_until(Path("reached").exists, lambda: death(launcher))


def death(launcher: "subprocess.Popen[str]") -> str | None:
    """What a launcher has said that has ended."""
    return None if launcher.poll() is None else "".join(launcher.communicate())


def hold(place: str) -> None:
    """Let jobs wait where they first come to a place of `PLACES`."""
    module, owner, name = PLACES[place]
    Path("site").mkdir()
    text = MOMENTS.format(module=module, owner=owner, name=name, folder=Path.cwd())
    Path("site/sitecustomize.py").write_text(text)


def test_a_sweep_is_one_array_of_jobs(cluster, launch):
    code, out, err = ended(launch(*TWO_EPOCHS, "method=ce,label_smoothing"))
    assert (code, err) == (0, "")
    assert "sweep: 2 done, 0 done before, 0 failed" in out
    (log, other) = sorted(Path("runs/.submitit").glob("*/*_log.out"))
    assert [path.name.partition("_")[2] for path in (log, other)] == ["0_0_log.out", "1_0_log.out"]
    assert f"output in {log.resolve()}" in out
    assert "submitit INFO" not in out, "what it says stands in the logs"
    for method in ("ce", "label_smoothing"):
        train(config(f"method={method}", "runs_dir=undisturbed"))
    assert_same_runs("undisturbed", "runs")


@pytest.mark.long  # tests/sweeps/test_clusters.py sends a job the same signals
@pytest.mark.parametrize("place", ["training", "scoring", "checkpoint"])
def test_a_preempted_job_is_queued_again_to_the_same_bits(cluster, launch, place):
    hold(place)
    often = ["runtime.checkpoint_epochs=1"] if place == "checkpoint" else []
    launcher = launch(*LONG, *often, "method=ce")
    reached(launcher)
    (job,) = [name for name, state in cluster.states().items() if state == "RUNNING"]
    preempting = cluster.run(
        *("sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null"),
        *("--wrap", "true"),
    ).strip()
    wait_until(lambda: cluster.states()[job] not in ("RUNNING", "PENDING"))
    Path("leave").touch()
    wait_until(lambda: cluster.states()[preempting] == "COMPLETED")
    (folder,) = runs().values()
    assert checkpoint_paths(folder) or (folder / "record.json").exists()
    code, out, err = ended(launcher)
    assert (code, err) == (0, "")
    assert "sweep: 1 done, 0 done before, 0 failed" in out
    assert "cohort 2" not in out, "Slurm has queued it again, not the launcher"
    train(config("method=ce", *LONG, "runs_dir=undisturbed"))
    assert_same_runs("undisturbed", "runs")


@pytest.mark.long
def test_a_stopped_launcher_leaves_when_its_jobs_have_written_checkpoints(cluster, launch):
    hold("training")
    launcher = launch(*LONG, "method=ce,label_smoothing")
    reached(launcher)
    launcher.send_signal(signal.SIGTERM)
    Path("leave").touch()
    code, out, err = ended(launcher)
    assert (code, err) == (
        130,
        "kdbench: error: stopped with 0 of 2 runs done; the same command goes on from there\n",
    )
    assert "stopping: what trains now writes checkpoints\n" in out
    assert not cluster.run("squeue", "--noheader"), "no job is left"
    again = ended(launch(*LONG, "method=ce,label_smoothing"))
    assert again[0] == 0, again
    assert "go on from a checkpoint" in again[1]
    for method in ("ce", "label_smoothing"):
        train(config(f"method={method}", *LONG, "runs_dir=undisturbed"))
    assert_same_runs("undisturbed", "runs")


def in_front(cluster: SlurmCluster) -> str:
    """The job that runs."""
    (job,) = [name for name, state in cluster.states().items() if state == "RUNNING"]
    return job


@pytest.mark.long
def test_a_job_that_someone_cancels_is_tried_once_more(cluster, launch):
    hold("training")
    launcher = launch(*LONG, "method=ce")
    reached(launcher)
    cluster.run("scancel", in_front(cluster))
    Path("leave").touch()
    code, out, err = ended(launcher)
    assert code == 0, err
    assert "ended without a result (CANCELLED)" in err
    assert "cohort 2 starts: tried once more" in out
    assert "sweep: 1 done, 0 done before, 0 failed" in out


@pytest.mark.long
@pytest.mark.parametrize("name", ["-D", "n1"], ids=["controller", "node"])
def test_the_daemons_may_be_killed_and_started_again(cluster, launch, name):
    hold("training")
    launcher = launch(*LONG, "method=ce,label_smoothing")
    reached(launcher)
    cluster.kill(name)
    Path("leave").touch()
    wait_until(lambda: any(checkpoint_paths(folder) for folder in runs().values()))
    if name == "-D":
        cluster.start_controller()
    else:
        cluster.start_node(name)
    code, out, err = ended(launcher)
    assert (code, err) == (0, "")
    assert "sweep: 2 done, 0 done before, 0 failed" in out
    assert "tried once more" not in out


@pytest.mark.long
def test_a_node_that_is_drained_ends_its_jobs_first(cluster, launch):
    hold("training")
    launcher = launch(*LONG, "method=ce", "hydra.launcher.submitit.slurm_partition=both")
    reached(launcher)
    node = cluster.run("squeue", "--noheader", "--format=%N").strip()
    try:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
        Path("leave").touch()
        code, out, err = ended(launcher)
    finally:
        cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert (code, err) == (0, "")
    assert "sweep: 1 done, 0 done before, 0 failed" in out


@pytest.mark.long
def test_where_fewer_jobs_may_be_submitted_the_others_wait(cluster, launch):
    """MaxSubmitJobs is accounting's; here sbatch is replaced by one that counts."""
    Path("bin").mkdir()
    Path("bin/sbatch").write_text(
        """#!/bin/sh
asked=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
if [ $(( ${asked:-0} + 1 + $(squeue --noheader --array | wc -l) )) -gt 2 ]; then
  echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2
  echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2
  exit 1
fi
PATH=${PATH#*:} exec sbatch "$@"
"""
    )
    Path("bin/sbatch").chmod(0o755)
    path = f"{Path.cwd() / 'bin'}:{cluster.environment['PATH']}"
    code, out, err = ended(launch(*TWO_EPOCHS, "method=ce", "seed=0,1,2", PATH=path))
    assert (code, err) == (0, "")
    assert out.index("cohort 2 starts") < out.index("has ended") < out.index("cohort 3 starts")
    assert "sweep: 3 done, 0 done before, 0 failed" in out


@pytest.mark.long
def test_a_launcher_that_is_killed_leaves_its_jobs_and_is_typed_again(cluster, launch):
    hold("training")
    first = launch(*LONG, "method=ce")
    reached(first)
    first.kill()
    job = in_front(cluster)
    code, _, err = ended(launch(*LONG, "method=ce"))
    assert code == 1
    assert "is being trained by process" in err
    Path("leave").touch()
    wait_until(lambda: cluster.states()[job] == "COMPLETED")
    code, out, err = ended(launch(*LONG, "method=ce"))
    assert (code, err) == (0, "")
    assert "1 run: 1 done before" in out


@pytest.mark.long
def test_two_launchers_on_one_folder_do_nothing_twice(cluster, launch):
    """The second is told who holds a run, and the first ends with all."""
    sweep = [*TWO_EPOCHS, "method=ce,label_smoothing"]
    hold("training")
    first = launch(*sweep)
    reached(first)
    code, second, err = ended(launch(*sweep))
    assert code == 1
    named = [line for line in err.splitlines() if "is being trained by process" in line]
    assert named, err
    assert all(line.startswith("kdbench: error: ") for line in err.splitlines()), err
    before = {path: path.stat().st_mtime_ns for path in Path("runs").glob("*-s*-*/record.json")}
    Path("leave").touch()
    code, out, err = ended(first)
    assert code == 0, err
    done = [int(re.search(r"sweep: (\d+) done, ", said)[1]) for said in (out, second)]
    assert sum(done) == 2, "each run was trained once"
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    for method in ("ce", "label_smoothing"):
        train(config(f"method={method}", "runs_dir=undisturbed"))
    assert_same_runs("undisturbed", "runs")


@pytest.mark.long
def test_a_launcher_may_itself_be_a_job(cluster, launch, monkeypatch):
    """What its job has in its environment is not handed to theirs."""
    inside = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_CPU": "100", "SLURM_MEM_PER_NODE": "1000"}
    code, out, err = ended(launch(*TWO_EPOCHS, "method=ce", **inside))
    assert (code, err) == (0, "")
    assert "sweep: 1 done, 0 done before, 0 failed" in out


@pytest.mark.long
def test_a_time_limit_queues_a_job_again(cluster, launch):
    """The signal comes 45 s before, or up to a minute earlier (sbatch(1), --signal).

    With a limit of one minute it could come before anyone listens, which ends a job.
    """
    limits = ["timeout_min=2", "slurm_signal_delay_s=45"]
    given = [f"hydra.launcher.submitit.{limit}" for limit in limits]
    hold("training")
    launcher = launch(*LONG, *given, "method=ce")
    reached(launcher)
    job = in_front(cluster)
    wait_until(lambda: cluster.run("squeue", "-h", "-j", job, "-o", "%M").strip() > "1:20")
    Path("leave").touch()
    code, out, err = ended(launcher)
    assert (code, err) == (0, "")
    (log,) = Path("runs/.submitit").glob("*/*_log.out")
    assert "Requeued job" in log.read_text()
    assert "cohort 2" not in out


@pytest.mark.long
def test_srun_starts_an_agent_of_torchrun_on_each_node(cluster):
    """As docs/distributed.md has it, on two nodes with a rank each."""
    train_one = [*SMALL, *TWO_EPOCHS, "student=resnet8", "method=ce", "schedule.micro_batches=2"]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    (port,) = free_ports(1)
    meeting = ["--rdzv-id=$SLURM_JOB_ID", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    command = [*agent, *meeting, f"--rdzv-endpoint=127.0.0.1:{port}", "-m", "kdbench.train"]
    cluster.run(
        *("sbatch", "--wait", "--partition=both", "--nodes=2", "--ntasks-per-node=1"),
        *("--output=job.log", "--wrap", " ".join(["srun", *command, *train_one])),
        PYTHONPATH=str(ROOT / "src"),
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    )
    assert len(runs()) == 1, Path("job.log").read_text()
    expected = train(config("method=ce", "schedule.micro_batches=2", "runs_dir=alone"))
    (folder,) = runs().values()
    assert set(differences(expected, folder)) <= {"record: hardware"}


@pytest.mark.parametrize(
    ("squeue", "line"),
    [
        (None, "No such file or directory: 'squeue'"),
        ("#!/bin/sh\nexec sleep 60\n", "timed out after 0.2 seconds"),
    ],
    ids=["missing", "silent"],
)
def test_a_queue_that_cannot_be_asked_is_a_complaint_and_no_end(
    tmp_path, monkeypatch, squeue, line
):
    monkeypatch.setattr(slurm_queue, "PATIENCE", 0.2)
    if squeue is not None:
        (tmp_path / "squeue").write_text(squeue)
        (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if squeue is None else f"{tmp_path}:/usr/bin:/bin")
    queue = slurm_queue.Queue()
    queue.look(every=0)
    queue._asking.join()
    assert line in queue.complaint
    assert "\n" not in queue.complaint
    assert queue.end("1_0", since=0) is None, "a job that nobody has asked for may go on"
