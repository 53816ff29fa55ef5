"""Probes of networks before training, for methods: shapes, classifiers, class means."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, nearest
from kdbench.methods.base import Method
from kdbench.system.precision import arithmetic
from kdbench.types import Affine, NetworkProbe, Output

EVALUATION_BATCH = 500


def run_blank(network: nn.Module, dataset: Dataset) -> Output:
    """Return a network's output on one blank image, in eval mode; its own mode is restored."""
    training = network.training
    parameter = next(network.parameters())
    with torch.no_grad(), arithmetic("fp32"):
        blank = torch.zeros(1, *dataset.train.images.shape[1:]).to(parameter)
        output: Output = network.eval()(blank)
    network.train(training)
    return output


def probe_network(network: nn.Module, dataset: Dataset) -> NetworkProbe:
    """Run the network on one blank image to find its taps' shapes, and read what it declares."""
    output = run_blank(network, dataset)
    norms: Callable[[], Iterable[nn.BatchNorm2d]] = getattr(network, "stage_norms", tuple)
    return NetworkProbe(
        taps={name: tap.shape[1:] for name, tap in output.taps.items()},
        classifier=_classifier(network, dataset.num_classes),
        stage_norms=tuple(_affine(norm) for norm in norms()),
        image=dataset.train.images.shape[1:],
        class_means=partial(class_means, network, dataset),
        class_features=partial(class_features, network, dataset),
        network=network,
    )


def _classifier(network: nn.Module, num_classes: int) -> Affine | None:
    """Return the last linear layer, if it maps the pooled vector to the classes."""
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears or linears[-1].out_features != num_classes or linears[-1].bias is None:
        return None
    return _affine(linears[-1])


def _affine(module: nn.Linear | nn.BatchNorm2d) -> Affine:
    return Affine(module.weight.detach().cpu().clone(), module.bias.detach().cpu().clone())


def class_means(network: nn.Module, dataset: Dataset, tap: str) -> Tensor:
    """Return a tap's mean over each class's unaugmented training images: [K, D] on the CPU."""
    sums = torch.zeros(0)
    labels = dataset.train.labels
    for rows, feature in unaugmented(network, dataset, tap, torch.arange(len(labels))):
        if not sums.numel():
            sums = torch.zeros(dataset.num_classes, feature.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels[rows], feature.double())
    counts = torch.bincount(labels, minlength=dataset.num_classes).clamp(min=1)
    return (sums / counts[:, None]).float()


def check_taps(method: Method, probes: Mapping[str, NetworkProbe]) -> None:
    """Refuse a method that reads a tap that a network lacks.

    Raises:
        ConfigError: names the tap, the network and the nearest tap.
    """
    for tap in method.taps:
        for name, probe in probes.items():
            if tap not in probe.taps:
                raise ConfigError(f"{name} has no tap '{tap}': {nearest(tap, probe.taps)}")


def unaugmented(
    network: nn.Module, dataset: Dataset, tap: str, chosen: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the training images `chosen`: their rows, and a tap [B, D] on the CPU."""
    parameter = next(network.parameters())
    for rows in chosen.split(EVALUATION_BATCH) if len(chosen) else ():
        images = dataset.train.images[rows].to(parameter.device)
        with torch.no_grad(), arithmetic("fp32"):
            output: Output = network(normalise(images, dataset.mean, dataset.std))
        yield rows, output.taps[tap].cpu()


def class_features(network: nn.Module, dataset: Dataset, tap: str) -> Tensor:
    """Return a tap of each class's first training images, unaugmented: [K, N, D] on the CPU.

    N is the size of the smallest class, which is 0 where one has no image.
    """
    labels = dataset.train.labels
    count = int(torch.bincount(labels, minlength=dataset.num_classes).min())
    firsts = [(labels == label).nonzero()[:count, 0] for label in range(dataset.num_classes)]
    chosen = torch.cat(firsts)
    found = [feature for _, feature in unaugmented(network, dataset, tap, chosen)]
    if not found:
        return torch.zeros(dataset.num_classes, 0, 1)
    return torch.cat(found).unflatten(0, (dataset.num_classes, count))
