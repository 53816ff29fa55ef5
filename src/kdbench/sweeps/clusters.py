"""Where a sweep's cohorts train: as jobs of Slurm, or as tasks of Ray."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdbench.config.run_config import Config
from kdbench.errors import ConfigError, KdbenchError, first_line, nearest
from kdbench.sweeps.local import Ended, Task
from kdbench.sweeps.worker import Outcome, outcomes, stop_on_sigterm
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
RAY = ("address", "num_cpus", "num_gpus", "object_store_memory", "namespace", "include_dashboard")
TIMEOUTS = 100  # how often a job may reach its time limit; submitit's 3 are too few for weeks


def checked(name: str, parameters: Mapping[str, Any], valid: Sequence[str]) -> dict[str, Any]:
    """The parameters of a cluster's library, which come from a configuration.

    Raises:
        ConfigError: one that a configuration may not set, or a text of several lines, of which
            the second would be a line of a job's script.
    """
    for key, value in parameters.items():
        if key not in valid:
            raise ConfigError(f"{name}.{key} is not allowed: {nearest(key, valid)}")
        if not (value is None or isinstance(value, int | float) or is_line(value)):
            raise ConfigError(f"{name}.{key} must be a number or a line of text, not {value!r}")
    return dict(parameters)


def is_line(value: object) -> bool:
    """Whether a value is a text without line breaks and other control characters."""
    return isinstance(value, str) and value.isprintable()


class Submission:
    """A cohort as submitit runs it.

    A job that is preempted or comes to its time limit writes checkpoints and is queued again; its
    runs go on from there.
    """

    def __init__(self, folder: Path, configs: Sequence[Config]) -> None:
        self.folder, self.text = str(folder), json.dumps(configs)

    def __call__(self) -> list[Outcome]:
        """Train the cohort."""
        os.chdir(self.folder)
        stop_on_sigterm()
        preemption = Preemption()
        try:
            return outcomes(json.loads(self.text))
        except KeyboardInterrupt:
            preemption.queue_again()
            raise

    def checkpoint(self) -> Any:
        """What submitit queues again."""
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
        """Whether another job may be queued."""
        return self.processes is None or len(self.running) < self.processes

    def start(self, task: Task) -> None:
        """Queue a job."""
        job = self.executor.submit(Submission(Path.cwd(), task.configs))
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
        except Exception:  # submitit's own, of several kinds; their text is that of the log
            why = f"its job {job.job_id} ended without a result ({job.state})"
            return Ended(task, None, why)

    def stop(self) -> None:
        """Cancel the jobs; Slurm gives them the time to write checkpoints."""
        self.stopped = True
        for _, job in self.running:
            job.cancel(check=False)

    def close(self) -> None:
        """Cancel what is left."""
        self.stop()
        self.running = []


class RayExecutor:
    """Cohorts as Ray tasks, with a GPU each where there are any.

    Args:
        parameters: of `ray.init`.
        needs_gpu: whether the runs use one where the cluster has it.
        threads: CPUs that a cohort takes.
        processes: how many cohorts at a time; None: as many as the cluster has room for.

    Raises:
        KdbenchError: Ray is not installed.
        ConfigError: the parameters are not allowed.
    """

    def __init__(
        self, parameters: Mapping[str, Any], needs_gpu: bool, threads: int, processes: int | None
    ) -> None:
        checked("hydra.launcher.ray", parameters, RAY)
        if parameters.get("address") not in (None, "auto", "local"):
            raise ConfigError(
                "hydra.launcher.ray.address must be auto or local: what a cluster answers is "
                "trusted, so name another in the variable RAY_ADDRESS, with auto here"
            )
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent without being asked
        try:
            import ray
        except ModuleNotFoundError:
            raise missing("ray", "ray") from None
        self.ray, self.parameters = ray, parameters
        self.needs_gpu, self.threads, self.processes = needs_gpu, threads, processes
        self.running: dict[Any, Task] = {}
        self.remote: Any = None

    def room(self) -> bool:
        """Whether another task may be handed over; Ray queues what it has no room for."""
        return self.processes is None or len(self.running) < self.processes

    def start(self, task: Task) -> None:
        """Hand a cohort over; the first one starts Ray, or connects to it."""
        if self.remote is None:
            self._connect()
        self.running[self.remote.remote(os.getcwd(), json.dumps(task.configs))] = task

    def _connect(self) -> None:
        ours = {"log_to_driver": False, "logging_level": "error"}
        try:
            self.ray.init(**{**ours, **self.parameters})
        except (TypeError, ValueError, RuntimeError, ConnectionError) as error:
            raise KdbenchError(
                f"hydra.launcher.ray: Ray does not start: {first_line(error)}"
            ) from None
        found = self.ray.cluster_resources()
        options: dict[str, Any] = {
            "num_cpus": min(self.threads, int(found.get("CPU", 1))),
            "num_gpus": int(self.needs_gpu and found.get("GPU", 0) > 0),
            "max_retries": 0,
        }
        self.remote = self.ray.remote(**options)(ray_outcomes)

    def ended(self) -> list[Ended]:
        """The cohorts whose tasks have ended."""
        references = list(self.running)
        if not references:
            return []
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=0)
        return [self._ended(reference) for reference in ready]

    def _ended(self, reference: Any) -> Ended:
        task = self.running.pop(reference)
        try:
            return Ended(task, self.ray.get(reference))
        except Exception as error:  # Ray's own, of several kinds
            reason = f"its Ray task ended without a result: {first_line(error)}"
            return Ended(task, None, reason)

    def stop(self) -> None:
        """Interrupt the tasks, as Ctrl-C would."""
        for reference in self.running:
            self.ray.cancel(reference)

    def close(self) -> None:
        """Disconnect; a Ray that was started here ends."""
        self.running = {}
        if self.remote is not None:
            self.ray.shutdown()


def ray_outcomes(folder: str, text: str) -> list[Outcome]:
    """Train a cohort in a process of Ray."""
    os.chdir(folder)
    return outcomes(json.loads(text))


def missing(package: str, extra: str) -> KdbenchError:
    """The error for an executor whose package is not installed."""
    return KdbenchError(
        f"hydra.launcher.executor={package} needs {package}: pip install 'kdbench[{extra}]'"
    )
