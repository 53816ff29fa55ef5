"""Dispatch of a run to its task."""

from pathlib import Path

from kdbench.config.run_config import Config
from kdbench.training.together import train as train_classifier


def train(config: Config) -> Path:
    """Train or resume the run of `config`, unless it is done already; return its folder.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    if "task" in config:
        from kdbench.tasks.detection.run import train_detector  # slow to import

        return train_detector(config)
    return train_classifier(config)
