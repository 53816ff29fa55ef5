"""A Weights & Biases sweep with the jobs of a kdbench sweep.

    python -m kdbench.sweep_yaml +experiments=quickstart > sweep.yaml && wandb sweep sweep.yaml

Its agents run one job's command each, whereas kdbench's own launcher trains jobs side by side.
"""

import sys

import yaml

from kdbench.config import hydra_cli
from kdbench.config.run_config import check_train
from kdbench.tracking.wandb_sweep import sweep


def main() -> None:
    """`kdbench-sweep-yaml`."""
    with hydra_cli.one_line_errors("config", check_train):
        print(yaml.safe_dump(sweep(sys.argv[1:]), sort_keys=False), end="")


if __name__ == "__main__":
    main()
