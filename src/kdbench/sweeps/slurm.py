"""A sweep's cohorts as jobs of Slurm."""

import io
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, KdbenchError, first_line
from kdbench.sweeps.clusters import checked, is_line, missing
from kdbench.sweeps.local import Ended, Task
from kdbench.sweeps.slurm_queue import array_limit
from kdbench.sweeps.watching import CANCELLED, SlurmWatch, SubmititWatch, Watch
from kdbench.sweeps.worker import Outcome, outcomes, understood
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
MANY = 1_000_000  # jobs: no limit of ours
RETRY = 60.0  # seconds until Slurm is asked again that has refused a job while others run
SOON = 5.0  # ... where none does: one that has left its result still counts until it is gone
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
        preemption = Preemption()
        try:
            try:
                return outcomes(understood(self.text))
            finally:  # a signal that comes later only says how to leave
                preemption.leaving = True
        except KeyboardInterrupt:
            preemption.queue_again(is_cancelled)
            raise

    def checkpoint(self) -> Any:
        """Return the work that submitit requeues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def is_cancelled() -> bool:
    """Return whether the launcher of this job has cancelled it."""
    return Path(os.environ["SUBMITIT_FOLDER"], CANCELLED).exists()


class SubmititExecutor:
    """Cohorts as submitit jobs, those that start together as one array of Slurm's.

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
        logging.getLogger("submitit").setLevel(logging.CRITICAL)  # jobs' logs keep what it says
        settings = {"name": "kdbench", "slurm_array_parallelism": MANY, **settings}
        try:
            self.executor = submitit.AutoExecutor(
                folder,
                cluster=cluster,
                slurm_max_num_timeout=TIMEOUTS,
                slurm_python=python,
                local_python=python,
            )
            self.executor.update_parameters(**settings)
        except (NameError, ValueError, AssertionError, RuntimeError) as error:
            raise ConfigError(f"hydra.launcher.submitit: {first_line(error)}") from None
        self.processes = MANY if processes is None else processes
        self.watch: Watch = SlurmWatch(folder) if self.on_slurm else SubmititWatch()
        self.running: list[tuple[Task, Any]] = []
        self.largest: int | None = None  # array that Slurm takes, once it is known
        self.next_try = 0.0  # when Slurm is asked again that has refused a job
        self.last_end = -math.inf
        self.stopped = False

    @property
    def on_slurm(self) -> bool:
        """Return whether the jobs are Slurm's and not processes of this machine."""
        return bool(self.executor.cluster == "slurm")

    def room(self) -> int:
        """Return how many more jobs may be queued."""
        return 0 if time.monotonic() < self.next_try else self.processes - len(self.running)

    def start(self, tasks: Sequence[Task]) -> int:
        """Queue jobs for the first of the tasks; return for how many.

        Raises:
            KdbenchError: Slurm takes no job, and there is none whose end could change that.
        """
        count = len(tasks)
        if count > 1 and self.on_slurm:
            self.largest = self.largest or array_limit()
            count = min(count, self.largest)
        while True:
            try:
                jobs = self._submit(tasks[:count])
                break
            except KdbenchError:
                now = time.monotonic()
                if count == 1 and not self.running and now - self.last_end > RETRY:
                    raise
                if count == 1:
                    self.next_try = now + (RETRY if self.running else SOON)
                    return 0
                count = (count + 1) // 2  # MaxSubmitJobs counts an array's elements
        for task, job in zip(tasks, jobs, strict=False):
            task.log = job.paths.stdout
            self.running.append((task, job))
        return len(jobs)

    def _submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        from submitit.core.utils import FailedJobError

        submissions = [Submission(Path.cwd(), task.text) for task in tasks]
        try:
            with outside_jobs(), redirect_stderr(io.StringIO()):  # submitit repeats sbatch's there
                return self.executor.submit_array(submissions)
        except FailedJobError as error:
            lines = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
            raise KdbenchError(f"Slurm takes no job: {'; '.join(lines)}") from None

    def ended(self) -> list[Ended]:
        """Return the cohorts whose jobs have ended.

        Raises:
            KdbenchError: jobs that were cancelled do not end.
        """
        ends = self.watch.ends([job for _, job in self.running])
        over = [pair for pair in self.running if pair[1].job_id in ends]
        self.running = [pair for pair in self.running if pair not in over]
        if over:
            self.next_try, self.last_end = 0.0, time.monotonic()
        return [self._ended(task, job, ends[job.job_id]) for task, job in over]

    def _ended(self, task: Task, job: Any, state: str) -> Ended:
        if self.stopped:
            return Ended(task, None, "its job was cancelled")
        reason = f"its job {job.job_id} ended without a result ({state})"
        if not self.watch.has_result(job):
            return Ended(task, None, reason)
        try:
            return Ended(task, job.result())
        except Exception:  # submitit raises several types, with the log as text
            return Ended(task, None, reason)

    def stop(self) -> None:
        """Cancel the jobs; Slurm gives them the time to write checkpoints."""
        self.stopped = True
        self.watch.cancel([job for _, job in self.running])

    def close(self) -> None:
        """Cancel the jobs that are left."""
        if not self.stopped:
            self.stop()
        self.running = []


@contextmanager
def outside_jobs() -> Iterator[None]:
    """Hide the environment of this process's own job, if it is in one, from submitted jobs."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield  # and what a user has set for sbatch stays
        return
    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        if conf is not None:
            os.environ["SLURM_CONF"] = conf
        yield
