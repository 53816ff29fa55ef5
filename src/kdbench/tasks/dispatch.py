"""Which task a run is of."""

from pathlib import Path

from kdbench.config.run_config import Config
from kdbench.training.together import train as train_classifier


def train(config: Config) -> Path:
    """Train, resume or recognise as done the run that `config` describes; returns its folder.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    if "task" in config:
        from kdbench.tasks.detection.run import train_detector  # torchvision's models take a second

        return train_detector(config)
    return train_classifier(config)
