"""What a sweep would cost on this machine, before anything starts.

    python -m kdbench.estimate +experiments=smoke_cifar100 teacher.resnet32.checkpoint=FILE

The command is that of `kdbench-train`; every job is composed, none is run.
"""

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_train
from kdbench.sweeps.cost import estimate


def main() -> None:
    """`kdbench-estimate`."""
    hydra_cli.run_together("config", check_train, estimate)


if __name__ == "__main__":
    main()
