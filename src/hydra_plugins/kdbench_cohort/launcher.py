"""The launcher of sweeps: runs that can share batches and teachers train side by side.

Hydra imports every plugin at every start, so what training needs is imported when it launches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


ConfigStore.instance().store(group="hydra/launcher", name="cohort", node=CohortLauncherConf)


class CohortLauncher(Launcher):
    """Groups the sweep's runs into cohorts and trains one cohort after the other.

    Runs that are done are recognised, incomplete ones go on. A run that fails is reported at once
    and leaves the others untouched; the command ends with an error if any run has no result.
    """

    def __init__(self, size: int) -> None:
        self.size = size

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
        from kdbench.cli import print_error
        from kdbench.cohorts import group_alike
        from kdbench.config import check_train
        from kdbench.errors import ConfigError, KdbenchError
        from kdbench.train import train_together

        setup_globals()
        if self.size < 1:
            raise ConfigError(f"hydra.launcher.size must be 1 or more, not {self.size}")
        configs = [check_train(self.compose(overrides)) for overrides in job_overrides]
        missing = 0
        for group in group_alike(configs, self.size):
            try:
                failures = [one for one in train_together(group) if isinstance(one, Exception)]
            except KdbenchError as error:
                failures = [error] * len(group)
            for line in dict.fromkeys(str(failure) for failure in failures):
                print_error(line)
            missing += len(failures)
        if missing:
            raise KdbenchError(
                f"{missing} of {len(configs)} runs have no result; the same command tries them "
                "again and leaves the others alone"
            )
        return [_done() for _ in configs]

    def compose(self, overrides: Sequence[str]) -> dict:
        """One job's configuration as plain containers."""
        loader = self.hydra_context.config_loader
        composed = loader.load_sweep_config(self.config, list(overrides))
        plain = OmegaConf.to_container(composed, resolve=False)
        del plain["hydra"]
        return OmegaConf.to_container(OmegaConf.create(plain), resolve=True, throw_on_missing=True)


def _done() -> JobReturn:
    result = JobReturn()
    result.status = JobStatus.COMPLETED
    return result
