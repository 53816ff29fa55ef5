"""The launcher of sweeps: runs that can share batches and teachers train side by side.

Hydra imports every plugin at every start, so what training needs is imported when it launches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore

from kdbench.records.settings import TrainSettings


@dataclass
class CohortLauncherConf:
    """Settings of `hydra/launcher=cohort`."""

    _target_: str = "hydra_plugins.kdbench_cohort.launcher.CohortLauncher"
    size: int = 16  # runs side by side at most; each needs its student in memory
    executor: str = "local"  # local: processes of this machine; submitit: Slurm; ray: Ray
    processes: int | None = None  # cohorts at a time; null: one on each GPU, or one on the CPU
    fail_fast: bool = False  # whether the first failure stops the sweep, resumable
    minutes: float | None = None  # after these it stops, resumable; null: when all is done
    order: str = "given"  # value: the runs that give verdicts soonest come first
    headline: int | None = None  # with order=value: methods that come first; null: all
    submitit: dict[str, Any] = field(  # a day, where submitit would give five minutes
        default_factory=lambda: {"cluster": None, "timeout_min": 1440}
    )
    ray: dict[str, Any] = field(default_factory=dict)  # parameters of ray.init


@dataclass
class BasicLauncherConf:
    """Settings of `hydra/launcher=basic`, in place of Hydra's own, which has none."""

    _target_: str = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    fail_fast: bool = False  # whether the first failure stops the sweep


ConfigStore.instance().store(group="hydra/launcher", name="cohort", node=CohortLauncherConf)
ConfigStore.instance().store(group="hydra/launcher", name="basic", node=BasicLauncherConf)


class CohortLauncher:
    """Groups the sweep's runs into cohorts and trains each in a process of its own.

    Runs that are done are skipped, incomplete ones go on. A run that fails is reported at once
    and leaves the others untouched; the command ends with an error if any run has no result.
    Hydra does not make it, kdbench does: from settings that it has checked.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def launch(self, configs: Sequence[TrainSettings]) -> None:
        """Train the runs of these checked configurations.

        Raises:
            KdbenchError: some runs have no result.
        """
        from kdbench.sweeps.launch import launch
        from kdbench.sweeps.settings import Settings

        launch(configs, Settings(**self.settings))
