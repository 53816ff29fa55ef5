"""A checkpoint's scores on a data set's test images."""

from pathlib import Path

from kdbench.assembly.build import build_network
from kdbench.assembly.evaluation import evaluate
from kdbench.assembly.make import make
from kdbench.config.run_config import Config
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.records.weights import find_checkpoint, load_weights
from kdbench.system.precision import allow_tf32
from kdbench.system.runtime import Runtime


def score_checkpoint(config: Config) -> dict[str, float]:
    """The scores of the checkpoint that `config` names, as the command prints them.

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
    return {
        "top1": round(scores.top1, 4),
        "top5": round(scores.top5, 4),
        "loss": round(scores.loss, 6),
        "n": scores.n,
    }
