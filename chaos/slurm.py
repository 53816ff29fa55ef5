"""Sweeps on a Slurm of this machine's own: jobs, daemons and the launcher go away."""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from random import Random

from chaos.ground import Ground, Process, Result
from chaos.processes import kill, started_with, wait_until
from chaos.slurm_cluster import NODES, SlurmCluster
from chaos.sweeps import Sweep, disturbed, drawn, killed, wait
from chaos.trials import Trial, records

LAUNCHER = [
    *("hydra/launcher=cohort_slurm", "hydra.launcher.submitit.slurm_partition=low"),
    *("hydra.launcher.submitit.gpus_per_node=null", "hydra.launcher.submitit.mem_gb=null"),
    "hydra.launcher.submitit.cpus_per_task=1",
]
AWAY = 5.0  # seconds after which a daemon is started again at the latest; a node is lost after 10


def slurm(ground: Ground, number: int, most: int) -> Trial:
    """Disturb a sweep that trains as jobs, let it end, and compare."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: sockets lie in it
    cluster = SlurmCluster(folder)
    try:
        cluster.start()
        return on_cluster(cluster, ground, number, most)
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def on_cluster(cluster: SlurmCluster, ground: Ground, number: int, most: int) -> Trial:
    """The same on a cluster that has been started."""
    draw = Random(f"{ground.seed} slurm {number}")
    found, given = drawn(
        ground,
        draw,
        Trial(number, "slurm", [], "live"),
        lambda: os.environ.update(cluster.environment),
    )
    given.command.extend(LAUNCHER)
    disturbances = Disturbances(cluster, given)
    return disturbed(found, given, lambda: draw.choice(disturbances.all)(), most)


class Disturbances:
    """What happens to a sweep's command, once in each of its lives."""

    def __init__(self, cluster: SlurmCluster, given: Sweep) -> None:
        self.cluster, self.given, self.draw = cluster, given, given.draw
        self.all = [self.launcher, self.job, self.daemon, self.cancel, self.preempt]

    def launcher(self) -> tuple[str, Result]:
        """Kill the launcher; its jobs go on, and a second one says so and trains nothing twice."""
        process, result, phase, _ = killed(self.given)
        victim = f"launcher on Slurm: {phase}" * (process.code == -signal.SIGKILL)
        if victim and self.draw.random() < 0.5:
            again, out, err = self.given.start()
            said = Result(again.wait(), out.read_text(), err.read_text())
            if said.code != 0 and "is being trained by" not in said.err:
                return victim, said
        wait_until(lambda: not self.queued())
        return victim, result

    def job(self) -> tuple[str, Result]:
        """Kill the process that trains in one of the jobs."""
        process, out, err = self.begin()
        pids = self.training()
        if pids:
            kill(self.draw.choice(pids))
        return self.end("process of a job", bool(pids), process, out, err)

    def daemon(self) -> tuple[str, Result]:
        """Kill a daemon of Slurm's, and start it again."""
        process, out, err = self.begin()
        victim = self.draw.choice(["slurmctld", "slurmd"])
        there = not process.ended()
        self.cluster.kill(NODES[0] if victim == "slurmd" else "-D")
        time.sleep(self.draw.uniform(0, AWAY))
        if victim == "slurmd":
            self.cluster.start_node(NODES[0])
        else:
            self.cluster.start_controller()
        return self.end(victim, there, process, out, err)

    def cancel(self) -> tuple[str, Result]:
        """Let somebody cancel the jobs that run."""
        process, out, err = self.begin()
        running = [name for name, state in self.cluster.states().items() if state == "RUNNING"]
        if running:
            self.cluster.run("scancel", *running)
        return self.end("job cancelled", bool(running), process, out, err)

    def preempt(self) -> tuple[str, Result]:
        """Let a job of another partition take the node."""
        process, out, err = self.begin()
        running = "RUNNING" in self.cluster.states().values()
        self.cluster.run(
            *("sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null"),
            *("--wrap", "true"),
        )
        return self.end("job preempted", running, process, out, err)

    def begin(self) -> tuple[Process, Path, Path]:
        """Give the command, and wait for any moment after a job has started."""
        process, out, err = self.given.start()
        while not process.ended() and not self.training():
            time.sleep(0.05)
        wait(process, self.given.where, self.draw)
        return process, out, err

    def end(
        self, victim: str, happened: bool, process: Process, out: Path, err: Path
    ) -> tuple[str, Result]:
        """Wait for the command, which must end well by itself."""
        happened = happened and len(records(self.given.where)) < len(self.given.expected)
        result = Result(process.wait(), out.read_text(), err.read_text())
        return victim * happened, result

    def training(self) -> list[int]:
        """The processes that train in jobs."""
        setting = f"SLURM_CONF={self.cluster.environment['SLURM_CONF']}"
        return started_with(setting, "submitit.core._submit")

    def queued(self) -> str:
        """The jobs that have not ended, as squeue lists them."""
        return self.cluster.run("squeue", "--noheader")
