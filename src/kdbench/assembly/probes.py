"""Probes of networks before training, for methods: shapes, classifiers, class means."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset
from kdbench.errors import ConfigError, nearest
from kdbench.methods.base import Method
from kdbench.networks.forward import as_in_evaluation
from kdbench.system.precision import arithmetic
from kdbench.types import Affine, NetworkProbe, Output

EVALUATION_BATCH = 500


class TrainingSet(NamedTuple):
    """What a method may know of the images that a student is trained on."""

    shape: torch.Size  # [C, H, W] of an image
    num_classes: int
    labels: Tensor  # [N] int64 on the CPU
    # Rows [B] -> [B, C, H, W], unaugmented, as networks take them; None: they are not at hand.
    images: Callable[[Tensor], Tensor] | None


def training_set(dataset: Dataset) -> TrainingSet:
    """That of a data set of conf."""
    images, labels = dataset.train

    def normalised(rows: Tensor) -> Tensor:
        return normalise(images[rows], dataset.mean, dataset.std)

    return TrainingSet(images.shape[1:], dataset.num_classes, labels, normalised)


def run_blank(network: nn.Module, shape: torch.Size) -> Output:
    """The output for one blank image [C, H, W], in eval mode; the network is left as it was."""
    blank = torch.zeros(1, *shape).to(next(network.parameters()))
    with torch.no_grad(), arithmetic("fp32"), as_in_evaluation(network):
        output: Output = network(blank)
    return output


def probe_network(network: nn.Module, training: TrainingSet) -> NetworkProbe:
    """Run the network on one blank image to find its taps' shapes, and read what it declares."""
    output = run_blank(network, training.shape)
    norms: Callable[[], Iterable[nn.BatchNorm2d]] = getattr(network, "stage_norms", tuple)
    return NetworkProbe(
        taps={name: tap.shape[1:] for name, tap in output.taps.items()},
        classifier=_classifier(network, training.num_classes),
        stage_norms=tuple(_affine(norm) for norm in norms()),
        image=training.shape,
        class_means=partial(class_means, network, training),
        class_features=partial(class_features, network, training),
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


def class_means(network: nn.Module, training: TrainingSet, tap: str) -> Tensor:
    """Return a tap's mean over each class's unaugmented training images: [K, D] on the CPU."""
    check_at_hand(training)
    sums = torch.zeros(0)
    labels = training.labels
    for rows, feature in unaugmented(network, training, tap, torch.arange(len(labels))):
        if not sums.numel():
            sums = torch.zeros(training.num_classes, feature.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels[rows], feature.double())
    counts = torch.bincount(labels, minlength=training.num_classes).clamp(min=1)
    return (sums / counts[:, None]).float()


def check_at_hand(training: TrainingSet) -> None:
    """Refuse a method that looks at training images where there are none to look at.

    Raises:
        ConfigError: says what to pass.
    """
    if training.images is None:
        raise ConfigError(
            "the method reads features of the training images: pass train_labels=LABELS [N] and "
            "train_images=FUNCTION, rows [B] -> images [B, C, H, W]"
        )


def check_taps(method: Method, probes: Mapping[str, NetworkProbe]) -> None:
    """Refuse a method that reads a tap that a network lacks; the first network is the student.

    Raises:
        ConfigError: names the tap, the network and the nearest tap.
    """
    for number, (name, probe) in enumerate(probes.items()):
        for tap in (*method.taps, *(method.own_taps if number == 0 else ())):
            if tap not in probe.taps:
                raise ConfigError(f"{name} has no tap '{tap}': {nearest(tap, probe.taps)}")


def unaugmented(
    network: nn.Module, training: TrainingSet, tap: str, chosen: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the training images `chosen`: their rows, and a tap [B, D] on the CPU."""
    parameter, images_at = next(network.parameters()), training.images
    assert images_at is not None
    for rows in chosen.split(EVALUATION_BATCH) if len(chosen) else ():
        images = images_at(rows).to(parameter.device)
        with torch.no_grad(), arithmetic("fp32"):
            output: Output = network(images)
        yield rows, output.taps[tap].cpu()


def class_features(network: nn.Module, training: TrainingSet, tap: str) -> Tensor:
    """Return a tap of each class's first training images, unaugmented: [K, N, D] on the CPU.

    N is the size of the smallest class, which is 0 where one has no image.
    """
    check_at_hand(training)
    labels, classes = training.labels, training.num_classes
    count = int(torch.bincount(labels, minlength=classes).min())
    chosen = torch.cat([(labels == label).nonzero()[:count, 0] for label in range(classes)])
    found = [feature for _, feature in unaugmented(network, training, tap, chosen)]
    if not found:
        return torch.zeros(classes, 0, 1)
    return torch.cat(found).unflatten(0, (classes, count))
