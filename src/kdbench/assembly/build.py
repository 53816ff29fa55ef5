"""Students, teachers and methods from a checked configuration."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.assembly.make import make
from kdbench.assembly.probes import EVALUATION_BATCH, check_taps, probe_network, run_blank
from kdbench.data.augmentation.strong import check_views
from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.seeds import derive
from kdbench.types import Output, Probe


def build_network(node: Mapping[str, Any], dataset: Dataset) -> nn.Module:
    """A network for the data set's classes and channels.

    Raises:
        ConfigError: it cannot take images of the data set's size, as a transformer of another.
    """
    shape = dataset.train.images.shape[1:]
    network: nn.Module = make(
        node, "network", num_classes=dataset.num_classes, in_channels=shape[0]
    )
    try:
        output: object = run_blank(network, dataset)
    except Exception as error:  # whatever its author thought of
        said = " ".join(str(error).split()) or type(error).__name__
        size = " x ".join(map(str, shape[1:]))
        raise ConfigError(
            f"{node.get('name', 'the network')} cannot take images of {size} ({said}): choose "
            "another network or dataset.image_size"
        ) from error
    if not isinstance(output, Output):
        raise ConfigError(
            f"{node.get('name', 'the network')} returns a {type(output).__name__}: let its forward "
            "return kdbench.types.Output(logits, taps), as docs/tutorials.md shows"
        )
    return network


def build_student(node: Mapping[str, Any], dataset: Dataset, seed: int) -> nn.Module:
    """A student whose first weights depend on the seed alone: methods of one seed start equal."""
    torch.manual_seed(derive(seed, "student"))
    return build_network(node, dataset)


def class_features(network: nn.Module, dataset: Dataset, tap: str) -> Tensor:
    """A tap [B, D] of each class's first training images, unaugmented: [K, N, D] on the CPU.

    N is the size of the smallest class, so 0 where one has no image.
    """
    labels = dataset.train.labels
    count = int(torch.bincount(labels, minlength=dataset.num_classes).min())
    firsts = [(labels == label).nonzero()[:count, 0] for label in range(dataset.num_classes)]
    chosen = torch.cat(firsts)
    found = [feature for _, feature in unaugmented(network, dataset, tap, chosen)]
    if not found:
        return torch.zeros(dataset.num_classes, 0, 1)
    return torch.cat(found).unflatten(0, (dataset.num_classes, count))


def unaugmented(
    network: nn.Module, dataset: Dataset, tap: str, chosen: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Some training images, by rows [B] of `chosen`, and a tap of them [B, D] on the CPU."""
    parameter = next(network.parameters())
    for rows in chosen.split(EVALUATION_BATCH) if len(chosen) else ():
        images = dataset.train.images[rows].to(parameter.device)
        with torch.no_grad():
            output: Output = network(normalise(images, dataset.mean, dataset.std))
        yield rows, output.taps[tap].cpu()


def build_method(node: Mapping[str, Any], seed: int) -> Method:
    """A method, not yet set up for any networks."""
    torch.manual_seed(derive(seed, "method"))
    return make(node, "method")


def set_up(
    method: Method,
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    dataset: Dataset,
    seed: int,
) -> nn.Module:
    """Let a method build what it needs from these networks.

    Returns:
        The network to train: the student, or what the method makes of it.

    Raises:
        ConfigError: it wants more views than there are, or reads a tap that a network has not.
    """
    check_views(method.views)
    probes = {name: probe_network(teacher, dataset) for name, teacher in teachers.items()}
    probe = Probe(
        student=probe_network(student, dataset),
        teachers=tuple(probes.values()),
        num_classes=dataset.num_classes,
        labels=dataset.train.labels,
    )
    check_taps(method, {"the student": probe.student, **probes})
    torch.manual_seed(derive(seed, "setup"))
    method.setup(probe)
    return method.adapt(student, probe)


def check_teachers(node: Mapping[str, Any], method: Method, teachers: Sequence[str]) -> None:
    """Refuse a method without the teachers that it reads.

    Raises:
        ConfigError: there are too few or too many.
    """
    wanted, found = method.num_teachers, len(teachers)
    if (found < 1) if wanted is None else (found != wanted):
        need = "one or more teachers" if wanted is None else f"{wanted} teacher(s)"
        raise ConfigError(f"method {node['name']} reads {need}, not {found}: set teacher=NAME")


def check_task(node: Mapping[str, Any], method: Method, task: str) -> None:
    """Refuse a method that is a recipe for something else.

    Raises:
        ConfigError: it is not for this task.
    """
    if task not in method.tasks:
        raise ConfigError(
            f"method {node['name']} is for task={' or '.join(method.tasks)}, not for task={task}: "
            "choose another one"
        )
