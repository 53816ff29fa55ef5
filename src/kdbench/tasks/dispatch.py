"""Dispatch of a run to its task."""

from pathlib import Path

from kdbench.records.settings import TrainSettings
from kdbench.training.together import train as train_classifier


def train(config: TrainSettings) -> Path:
    """Train or resume the run of `config`, unless it is done already; return its folder.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    if config.task == "detection":
        from kdbench.tasks.detection.run import train_detector  # slow to import

        return train_detector(config)
    return train_classifier(config)
