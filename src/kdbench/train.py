"""The entry: one command is one run, found again by the same command.

    python -m kdbench.train method=kd teacher=resnet32 teacher.resnet32.checkpoint=FILE \
        student=resnet8 dataset=cifar100 seed=0
"""

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_train
from kdbench.parallel.ranks import leave
from kdbench.tasks.dispatch import train


def main() -> None:
    """`kdbench-train`."""
    try:
        hydra_cli.run("config", check_train, train)
    finally:
        leave()


if __name__ == "__main__":
    main()
