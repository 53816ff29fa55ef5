"""Scoring of a checkpoint on a data set's test images."""

from pathlib import Path

from kdbench.assembly.make import make
from kdbench.errors import ConfigError
from kdbench.records.settings import EvaluateSettings
from kdbench.records.weights import find_checkpoint, load_weights
from kdbench.system.runtime import Runtime
from kdbench.tasks.dispatch import task_called
from kdbench.tasks.task import Measured


def score_checkpoint(config: EvaluateSettings) -> Measured:
    """Score the checkpoint that `config` names.

    Raises:
        KdbenchError: something is wrong that the user can mend.
    """
    if config.checkpoint is None:
        raise ConfigError("no checkpoint is named: set checkpoint=FILE, or a run's folder or name")
    kind = task_called(config.task)
    runtime: Runtime = make(config.runtime, "runtime")
    kind.check(runtime)
    runtime.apply()
    path = find_checkpoint(config.checkpoint, Path(config.runs_dir))
    task = kind(make(config.dataset, "dataset"), runtime, "fp32")
    network = task.build_network(config.student)
    notices = load_weights(network, path, config.student.name, config.checkpoint_key)
    network.to(runtime.device).to(memory_format=runtime.memory_format)
    found = task.measure(network, str(path))
    return Measured([*task.notes, *notices, *found.notices], found.scores)
