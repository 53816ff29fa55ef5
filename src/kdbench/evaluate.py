"""Score a checkpoint on a data set's test images; prints one JSON line last.

python -m kdbench.evaluate student=resnet32 checkpoint=FILE dataset=cifar100 dataset.root=DIR
"""

import json
from pathlib import Path

from kdbench.assembly.build import build_network
from kdbench.assembly.evaluation import evaluate
from kdbench.assembly.make import make
from kdbench.config import hydra_cli
from kdbench.config.run_config import Config, check_evaluate
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.records.weights import find_checkpoint, load_weights
from kdbench.system.precision import allow_tf32
from kdbench.system.runtime import Runtime


def evaluate_checkpoint(config: Config) -> None:
    """Print the scores of the checkpoint that `config` names.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    if config["checkpoint"] is None:
        raise ConfigError("no checkpoint is named: set checkpoint=FILE, or a run's folder or name")
    runtime: Runtime = make(config["runtime"], "runtime")
    runtime.apply()
    allow_tf32(False)
    path = find_checkpoint(config["checkpoint"], Path(config["runs_dir"]))
    dataset: Dataset = make(config["dataset"], "dataset")
    network = build_network(config["student"], dataset)
    load_weights(network, path, config["student"]["name"])
    network.to(runtime.device).to(memory_format=runtime.memory_format)
    scores = evaluate(network, dataset.test, dataset, runtime.device, runtime.memory_format)
    print(
        json.dumps(
            {
                "top1": round(scores.top1, 4),
                "top5": round(scores.top5, 4),
                "loss": round(scores.loss, 6),
                "n": scores.n,
            }
        )
    )


def main() -> None:
    """`kdbench-evaluate`."""
    hydra_cli.run("evaluate", check_evaluate, evaluate_checkpoint)


if __name__ == "__main__":
    main()
