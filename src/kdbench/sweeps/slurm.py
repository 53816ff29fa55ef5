"""A sweep's cohorts as jobs of Slurm."""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, first_line
from kdbench.sweeps.clusters import checked, is_line, missing
from kdbench.sweeps.local import Ended, Task
from kdbench.sweeps.worker import Outcome, outcomes, stop_on_sigterm, understood
from kdbench.system.signals import Preemption

# What a configuration may ask of a cluster: amounts and names, nothing that would run there.
# submitit's setup, python and srun_args are commands, as is much of what Ray's runtime_env holds.
SUBMITIT = (
    *("cluster", "name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node"),
    *("stderr_to_stdout", "slurm_partition", "slurm_account", "slurm_qos", "slurm_constraint"),
    *("slurm_signal_delay_s", "slurm_gres", "slurm_exclude", "slurm_nodelist", "slurm_exclusive"),
    *("slurm_mem_per_gpu", "slurm_cpus_per_gpu", "slurm_comment", "slurm_mail_type"),
    *("slurm_mail_user", "slurm_dependency", "slurm_wckey"),
)
TIMEOUTS = 100  # how often a job may reach its time limit; submitit's 3 are too few for weeks


class Submission:
    """A cohort as submitit runs it.

    A job that is preempted or comes to its time limit writes checkpoints and is queued again; its
    runs go on from there.
    """

    def __init__(self, folder: Path, text: str) -> None:
        self.folder, self.text = str(folder), text

    def __call__(self) -> list[Outcome]:
        """Train the cohort."""
        os.chdir(self.folder)
        stop_on_sigterm()
        preemption = Preemption()
        try:
            return outcomes(understood(self.text))
        except KeyboardInterrupt:
            preemption.queue_again()
            raise

    def checkpoint(self) -> Any:
        """Return the work that submitit requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SubmititExecutor:
    """Cohorts as submitit jobs.

    Args:
        folder: where submitit keeps its files.
        parameters: of `AutoExecutor.update_parameters`, and `cluster`: slurm, local, debug, or None
            for Slurm where there is one.
        processes: how many jobs at a time; None: all.

    Raises:
        KdbenchError: submitit is not installed.
        ConfigError: the parameters are not allowed, or submitit refuses them.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, Any], processes: int | None) -> None:
        settings = checked("hydra.launcher.submitit", parameters, SUBMITIT)
        try:
            import submitit
        except ModuleNotFoundError:
            raise missing("submitit", "slurm") from None
        cluster = settings.pop("cluster", None)
        if not is_line(str(folder)):  # it stands in jobs' scripts
            raise ConfigError(f"runs_dir must be a line of text, not {str(folder.parent)!r}")
        python = f"{shlex.quote(sys.executable)} -P"  # as `executors.Worker`
        try:
            self.executor = submitit.AutoExecutor(
                folder,
                cluster=cluster,
                slurm_max_num_timeout=TIMEOUTS,
                slurm_python=python,
                local_python=python,
            )
            self.executor.update_parameters(**{"name": "kdbench", **settings})
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"hydra.launcher.submitit: {first_line(error)}") from None
        self.processes = processes
        self.running: list[tuple[Task, Any]] = []
        self.stopped = False

    def room(self) -> bool:
        """Return whether another job may be queued."""
        return self.processes is None or len(self.running) < self.processes

    def start(self, task: Task) -> None:
        """Queue a job."""
        job = self.executor.submit(Submission(Path.cwd(), task.text))
        task.log = job.paths.stdout
        self.running.append((task, job))

    def ended(self) -> list[Ended]:
        """The cohorts whose jobs have ended."""
        found = [self._ended(task, job) for task, job in self.running if job.done()]
        tasks = [ended.task for ended in found]
        self.running = [(task, job) for task, job in self.running if task not in tasks]
        return found

    def _ended(self, task: Task, job: Any) -> Ended:
        if self.stopped:
            return Ended(task, None, "its job was cancelled")
        try:
            return Ended(task, job.result())
        except Exception:  # submitit raises several types, with the log as text
            why = f"its job {job.job_id} ended without a result ({job.state})"
            return Ended(task, None, why)

    def stop(self) -> None:
        """Cancel the jobs; Slurm gives them the time to write checkpoints."""
        self.stopped = True
        for _, job in self.running:
            job.cancel(check=False)

    def close(self) -> None:
        """Cancel the jobs that are left."""
        self.stop()
        self.running = []
