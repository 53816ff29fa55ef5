"""Scoring of a checkpoint on a data set's test images."""

import math
from pathlib import Path

from kdbench.assembly.build import build_network
from kdbench.assembly.evaluation import evaluate
from kdbench.assembly.make import make
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.records.settings import EvaluateSettings
from kdbench.records.weights import find_checkpoint, load_weights
from kdbench.system.runtime import Runtime


def score_checkpoint(config: EvaluateSettings) -> tuple[list[str], dict[str, float | None]]:
    """Score the checkpoint that `config` names.

    Returns:
        Lines for the user, and the scores as the command prints them; a loss that is not finite is
        None.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    if config.checkpoint is None:
        raise ConfigError("no checkpoint is named: set checkpoint=FILE, or a run's folder or name")
    runtime: Runtime = make(config.runtime, "runtime")
    runtime.apply()
    path = find_checkpoint(config.checkpoint, Path(config.runs_dir))
    dataset: Dataset = make(config.dataset, "dataset")
    network = build_network(config.student, dataset)
    notices = load_weights(network, path, config.student.name, config.checkpoint_key)
    network.to(runtime.device).to(memory_format=runtime.memory_format)
    scores = evaluate(network, dataset.test, dataset, runtime.device, runtime.memory_format)
    if scores.infinite:
        notices.append(
            f"{path} has outputs that are not finite, for {scores.infinite} of {scores.n} images"
        )
    return notices, {
        "top1": round(scores.top1, 4),
        "top5": round(scores.top5, 4),
        "loss": round(scores.loss, 6) if math.isfinite(scores.loss) else None,
        "n": scores.n,
    }
