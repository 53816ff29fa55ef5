"""Students, teachers and methods from a checked configuration."""

from collections.abc import Mapping

import torch
from torch import nn

from kdbench.assembly.make import make
from kdbench.assembly.probes import (
    TrainingSet,
    check_taps,
    probe_network,
    run_blank,
    training_set,
)
from kdbench.data.augmentation.strong import check_views
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.networks.own_input import adapt_input
from kdbench.schema.node import Node
from kdbench.seeds import derive
from kdbench.types import Output, Probe


def build_network(node: Node, dataset: Dataset) -> nn.Module:
    """Build a network for the data set's classes and channels.

    Raises:
        ConfigError: it cannot take images of the data set's size, like some transformers.
    """
    shape = dataset.train.images.shape[1:]
    network: nn.Module = make(
        node, "network", num_classes=dataset.num_classes, in_channels=shape[0]
    )
    adapt_input(network, dataset.mean, dataset.std)
    try:
        output: object = run_blank(network, shape)
    except Exception as error:  # a network may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        size = " x ".join(map(str, shape[1:]))
        raise ConfigError(
            f"{node.name or 'the network'} cannot take images of {size} ({said}): set the size "
            "of a timm or torchvision network, as student.size=224 or "
            "teacher.NAME.network.size=224, or choose another network or dataset.image_size"
        ) from error
    if not isinstance(output, Output):
        raise ConfigError(
            f"{node.name or 'the network'} returns a {type(output).__name__}: let its forward "
            "return kdbench.types.Output(logits, taps), as docs/tutorials.md shows"
        )
    return network


def build_student(node: Node, dataset: Dataset, seed: int) -> nn.Module:
    """Build a student whose initial weights depend on the seed alone, so methods share them."""
    torch.manual_seed(derive(seed, "student"))
    return build_network(node, dataset)


def build_method(node: Node, seed: int) -> Method:
    """Build a method, not yet set up for any networks."""
    torch.manual_seed(derive(seed, "method"))
    return make(node, "method")


def set_up(
    method: Method,
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    dataset: Dataset,
    seed: int,
) -> nn.Module:
    """Let a method build what it needs from these networks and a data set; as `fit`."""
    return fit(method, student, teachers, training_set(dataset), seed)


def fit(
    method: Method,
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    training: TrainingSet,
    seed: int,
) -> nn.Module:
    """Let a method build what it needs from these networks.

    Returns:
        The network to train: the student, or its adaptation by the method.

    Raises:
        ConfigError: the method wants more views than the data set has, or reads a tap that a
            network lacks.
    """
    check_views(method.views)
    probes = {name: probe_network(teacher, training) for name, teacher in teachers.items()}
    probe = Probe(
        student=probe_network(student, training),
        teachers=tuple(probes.values()),
        num_classes=training.num_classes,
        labels=training.labels,
    )
    check_taps(method, {"the student": probe.student, **probes})
    return settle(method, student, probe, seed)


def settle(method: Method, student: nn.Module, probe: Probe, seed: int) -> nn.Module:
    """Let a method build what it needs from what is known of the networks; as `fit`."""
    torch.manual_seed(derive(seed, "setup"))
    method.setup(probe)
    return method.adapt(student, probe)


def check_teachers(name: str, method: Method, found: int, way: str = "set teacher=NAME") -> None:
    """Refuse a method without the teachers that it reads.

    Args:
        name: the method's, for the error line.
        method: the method.
        found: how many teachers there are.
        way: how a user names one.

    Raises:
        ConfigError: there are too few or too many.
    """
    wanted = method.num_teachers
    if (found < 1) if wanted is None else (found != wanted):
        need = "one or more teachers" if wanted is None else f"{wanted} teacher(s)"
        raise ConfigError(f"method {name} reads {need}, not {found}: {way}")


def check_task(node: Node, method: Method, task: str) -> None:
    """Refuse a method that is a recipe for another task.

    Raises:
        ConfigError: the method is not for `task`.
    """
    if task not in method.tasks:
        raise ConfigError(
            f"method {node.name} is for task={' or '.join(method.tasks)}, not for task={task}: "
            "choose another one"
        )
