"""A sweep's cohorts as tasks of Ray."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.errors import ConfigError, KdbenchError, first_line
from kdbench.sweeps.clusters import checked, missing
from kdbench.sweeps.local import Ended, Task
from kdbench.sweeps.worker import Outcome, outcomes, understood

TASK = "accelerator_type"  # asked of the node that a task is given to, and not of `ray.init`
RAY = (
    *("address", "num_cpus", "num_gpus", "object_store_memory", "namespace", "include_dashboard"),
    TASK,
)


class RayExecutor:
    """Cohorts as Ray tasks, with a GPU each where there are any.

    Args:
        parameters: the arguments of `ray.init`, and accelerator_type, Ray's name for the GPUs of
            the nodes to train on.
        needs_gpu: the runs use a GPU where the cluster has one.
        threads: the CPUs of a cohort.
        processes: cohorts at a time; None: as many as the cluster has room for.

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
        # Without an address Ray joins any process of this machine that claims to be a cluster.
        named = os.environ.get("RAY_ADDRESS", "") not in ("", "auto")
        if parameters.get("address") == "auto" and not named:
            raise ConfigError(
                "hydra.launcher.ray.address=auto joins the cluster of RAY_ADDRESS: set that "
                "variable to its host:port"
            )
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics without consent
        try:
            import ray
        except ModuleNotFoundError:
            raise missing("ray", "ray") from None
        self.ray, self.named = ray, named
        given = {key: value for key, value in parameters.items() if value is not None}
        self.kind = given.pop(TASK, None)
        self.parameters = given
        self.needs_gpu, self.threads, self.processes = needs_gpu, threads, processes
        self.running: dict[Any, Task] = {}
        self.remote: Any = None

    def room(self) -> int:
        """Return how many more tasks may be handed over; Ray queues what it has no room for."""
        return (self.processes or sys.maxsize) - len(self.running)

    def start(self, tasks: Sequence[Task]) -> int:
        """Hand cohorts over; the first one starts Ray, or connects to it."""
        if self.remote is None:
            self._connect()
        for task in tasks:
            self.running[self.remote.remote(os.getcwd(), task.text)] = task
        return len(tasks)

    def _connect(self) -> None:
        ours: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if not self.named and self.parameters.get("address") is None:
            ours["address"] = "local"  # a new cluster for this command
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
        if self.kind is not None:
            options[TASK] = self.kind
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
        except Exception as error:  # Ray raises several types
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
    return outcomes(understood(text))
