"""The training command: one command is one run, and the same command finds it again.

    python -m kdbench.train method=kd teacher=resnet32 teacher.resnet32.checkpoint=FILE \
        student=resnet8 dataset=cifar100 seed=0
"""

import sys

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_train
from kdbench.records.settings import TrainSettings


def run(config: TrainSettings) -> None:
    """Train; torch, slow to import, is imported once the command has been understood."""
    from kdbench.training.together import train

    train(config)


def main() -> None:
    """`kdbench-train`."""
    try:
        hydra_cli.run("config", check_train, run)
    finally:
        if "kdbench.parallel.ranks" in sys.modules:
            from kdbench.parallel.ranks import leave

            leave()


if __name__ == "__main__":
    main()
