"""The launcher of sweeps: runs that can share batches and teachers train side by side.

Hydra imports every plugin at every start, so what training needs is imported when it launches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class CohortLauncherConf:
    """Settings of `hydra/launcher=cohort`."""

    _target_: str = "hydra_plugins.kdbench_cohort.launcher.CohortLauncher"
    size: int = 16  # runs side by side at most; each needs its student in memory
    executor: str = "local"  # local: processes of this machine; submitit: Slurm; ray: Ray
    processes: int | None = None  # cohorts at a time; null: one on each GPU, or one on the CPU
    submitit: dict[str, Any] = field(  # a day, where submitit would give five minutes
        default_factory=lambda: {"cluster": None, "timeout_min": 1440}
    )
    ray: dict[str, Any] = field(default_factory=dict)  # parameters of ray.init


ConfigStore.instance().store(group="hydra/launcher", name="cohort", node=CohortLauncherConf)


class CohortLauncher(Launcher):
    """Groups the sweep's runs into cohorts and trains each in a process of its own.

    Runs that are done are skipped, incomplete ones go on. A run that fails is reported at once
    and leaves the others untouched; the command ends with an error if any run has no result.
    """

    def __init__(
        self,
        size: int,
        executor: str,
        processes: int | None,
        submitit: Mapping[str, Any],
        ray: Mapping[str, Any],
    ) -> None:
        self.settings: dict[str, Any] = {"size": size, "executor": executor, "processes": processes}
        self.settings |= {"submitit": _plain(submitit), "ray": _plain(ray)}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what composing needs."""
        self.hydra_context, self.config = hydra_context, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Train the sweep.

        Raises:
            KdbenchError: some runs have no result.
        """
        from kdbench.config.run_config import check_train
        from kdbench.sweeps.launch import Settings, launch

        setup_globals()
        settings = Settings(**self.settings)
        configs = [check_train(self.compose(overrides)) for overrides in job_overrides]
        launch(configs, settings)
        return [_done() for _ in configs]

    def compose(self, overrides: Sequence[str]) -> dict[str, Any]:
        """One job's configuration as plain containers."""
        from kdbench.config.hydra_cli import plain

        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, list(overrides))
        raw: Any = OmegaConf.to_container(composed, resolve=False)
        del raw["hydra"]
        return plain(OmegaConf.create(raw))


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


def _done() -> JobReturn:
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    return result
