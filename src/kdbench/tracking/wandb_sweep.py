"""A sweep of Weights & Biases with the jobs of a kdbench sweep."""

from collections.abc import Sequence
from typing import Any

import yaml

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_train
from kdbench.errors import ConfigError
from kdbench.tracking.wandb_names import place_of

# An agent starts one job at a time, which W&B chooses; both need W&B online.
AGENT = ["hydra.mode=RUN", "logger=wandb", "logger.mode=online"]


def sweep(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the W&B sweep of a `kdbench-train` command, whose swept keys are its parameters.

    Raises:
        ConfigError: nothing is swept, or a job's configuration is wrong.
    """
    overrides = hydra_cli.understood("config", ["-m", *arguments, *AGENT])
    configs = [check_train(raw) for raw in hydra_cli.compose_jobs("config", overrides)]
    by_key = hydra_cli.swept("config", overrides)
    parameters = {
        key: {"values": [value_of(override) for override in values]}
        for key, values in by_key.items()
        if len(values) > 1
    }
    if not parameters:
        raise ConfigError("nothing is swept: give a key several values, such as seed=0,1,2")
    fixed = [values[0] for values in by_key.values() if len(values) == 1]
    logger = configs[0].logger.settings
    project, entity = place_of(logger["project"], logger["entity"])
    return {
        "program": "kdbench.train",
        "method": "grid",
        "project": project,
        **({"entity": entity} if entity else {}),
        "parameters": parameters,
        "command": ["${env}", "${interpreter}", "-m", "${program}", *fixed, "${args_no_hyphens}"],
    }


def value_of(override: str) -> int | float | str:
    """Return an override's value, as a number if W&B would write it back in the same way."""
    text = override.partition("=")[2]
    value = yaml.safe_load(text)
    is_number = isinstance(value, int | float) and str(value) == text
    return value if is_number else text
