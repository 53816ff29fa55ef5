"""From a checked configuration to objects; the only place that instantiates."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from kdbench.data.augmentation.strong import check_views
from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, KdbenchError, nearest
from kdbench.methods.base import Method
from kdbench.records.identity import without_names
from kdbench.schema.check import check_targets
from kdbench.seeds import derive
from kdbench.types import Affine, NetworkProbe, Output, Probe

EVALUATION_BATCH = 500


def make(node: Mapping[str, Any], **given: Any) -> Any:
    """Build what a checked node describes.

    Raises:
        KdbenchError: the constructor's own complaint, freed of Hydra's wrapping.
        ConfigError: the node would have code called that is not of this package, or its settings
            make the constructor fail in another way.
    """
    check_targets(str(node.get("name", "node")), node)
    try:
        return instantiate(without_names(node), _convert_="all", **given)
    except InstantiationException as error:
        first: BaseException = error
        while first.__cause__ is not None and not isinstance(first, KdbenchError):
            first = first.__cause__
        if isinstance(first, KdbenchError):
            raise first from None
        said = " ".join(f"{type(first).__name__} {first}".split())
        raise ConfigError(
            f"{node['_target_']} cannot be built with these settings: {said}"
        ) from error


def build_network(node: Mapping[str, Any], dataset: Dataset) -> nn.Module:
    """A network for the data set's classes and channels.

    Raises:
        ConfigError: it cannot take images of the data set's size, as a transformer of another.
    """
    shape = dataset.train.images.shape[1:]
    network: nn.Module = make(node, num_classes=dataset.num_classes, in_channels=shape[0])
    try:
        run_blank(network, dataset)
    except Exception as error:  # whatever its author thought of
        said = " ".join(str(error).split()) or type(error).__name__
        size = " x ".join(map(str, shape[1:]))
        raise ConfigError(
            f"{node.get('name', 'the network')} cannot take images of {size} ({said}): choose "
            "another network or dataset.image_size"
        ) from error
    return network


def run_blank(network: nn.Module, dataset: Dataset) -> Output:
    """What a network answers to one blank image, in eval mode; it is left as it was."""
    training = network.training
    parameter = next(network.parameters())
    with torch.no_grad():
        blank = torch.zeros(1, *dataset.train.images.shape[1:]).to(parameter)
        output: Output = network.eval()(blank)
    network.train(training)
    return output


def build_student(node: Mapping[str, Any], dataset: Dataset, seed: int) -> nn.Module:
    """A student whose first weights depend on the seed alone: methods of one seed start equal."""
    torch.manual_seed(derive(seed, "student"))
    return build_network(node, dataset)


def probe_network(network: nn.Module, dataset: Dataset) -> NetworkProbe:
    """Run the network on one blank image to learn its tap shapes, and read what it declares."""
    output = run_blank(network, dataset)
    norms: Callable[[], Iterable[nn.BatchNorm2d]] = getattr(network, "stage_norms", tuple)
    return NetworkProbe(
        taps={name: tap.shape[1:] for name, tap in output.taps.items()},
        classifier=_classifier(network, dataset.num_classes),
        stage_norms=tuple(_affine(norm) for norm in norms()),
        image=dataset.train.images.shape[1:],
        class_means=partial(class_means, network, dataset),
    )


def _classifier(network: nn.Module, num_classes: int) -> Affine | None:
    """The last linear layer, where it is one from a pooled vector to the classes."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears or linears[-1].out_features != num_classes or linears[-1].bias is None:
        return None
    return _affine(linears[-1])


def _affine(module: nn.Linear | nn.BatchNorm2d) -> Affine:
    return Affine(module.weight.detach().cpu().clone(), module.bias.detach().cpu().clone())


def class_means(network: nn.Module, dataset: Dataset, tap: str) -> Tensor:
    """Mean of a tap [B, D] over each class's training images, unaugmented: [K, D] on the CPU."""
    parameter = next(network.parameters())
    sums = torch.zeros(0)
    labels = dataset.train.labels
    with torch.no_grad():
        for rows in torch.arange(len(labels)).split(EVALUATION_BATCH):
            images = dataset.train.images[rows].to(parameter.device)
            images = normalise(images, dataset.mean, dataset.std)
            feature = network(images).taps[tap].double().cpu()
            if not sums.numel():
                sums = torch.zeros(dataset.num_classes, feature.shape[1], dtype=torch.float64)
            sums.index_add_(0, labels[rows], feature)
    counts = torch.bincount(labels, minlength=dataset.num_classes).clamp(min=1)
    return (sums / counts[:, None]).float()


def build_method(node: Mapping[str, Any], seed: int) -> Method:
    """A method, not yet set up for any networks."""
    torch.manual_seed(derive(seed, "method"))
    return make(node)


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


def check_taps(method: Method, probes: Mapping[str, NetworkProbe]) -> None:
    """Refuse a method that reads a tap which a network has not.

    Raises:
        ConfigError: names the tap, the network and the nearest tap.
    """
    for tap in method.taps:
        for name, probe in probes.items():
            if tap not in probe.taps:
                raise ConfigError(f"{name} has no tap '{tap}': {nearest(tap, probe.taps)}")
