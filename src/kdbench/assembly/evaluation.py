"""Accuracy, loss and calibration of a network on a split, in eval mode."""

import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset, Split
from kdbench.losses import cross_entropy
from kdbench.networks.forward import as_in_evaluation
from kdbench.parallel.ranks import Ranks
from kdbench.system.precision import arithmetic

BATCH = 500  # from 16 up the logits do not depend on it
ALONE = Ranks()
BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, 2017


class Scores(NamedTuple):
    """A network's scores on `n` images."""

    top1: float  # percent
    top5: float  # percent; of all classes where there are fewer than five
    loss: float  # mean cross-entropy in nats
    entropy: float  # mean Shannon entropy of the softmax in nats
    n: int
    predictions: Tensor  # [n] int64 on the CPU, the likeliest class of each image
    ece: float  # expected calibration error, percent; bins of equal width
    infinite: int  # images with an output that is not finite


class Tally:
    """What one network's scores are made of, on the device until all batches were seen.

    Args:
        n: the number of images.
        device: the device.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        batches = -(-n // BATCH)
        self.sums = torch.zeros(batches, 5, dtype=torch.float64, device=device)
        self.confidence = torch.zeros(n, dtype=torch.float64, device=device)
        self.predictions = torch.zeros(n, dtype=torch.int64, device=device)

    def add(self, row: int, logits: Tensor, labels: Tensor) -> None:
        """Add a batch, number `row`: logits [B, K], labels [B]."""
        place = slice(row * BATCH, row * BATCH + len(labels))
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        ranked = best == labels[:, None]
        self.predictions[place] = best[:, 0]
        probabilities = logits.double().softmax(dim=1)
        self.confidence[place] = probabilities.amax(dim=1)
        losses = cross_entropy(logits, labels).double()
        entropy = torch.special.entr(probabilities)
        infinite = ~logits.isfinite().all(dim=1)
        scores = ranked[:, 0].sum(), ranked.sum(), losses.sum(), entropy.sum(), infinite.sum()
        self.sums[row] = torch.stack([score.double() for score in scores])

    def scores(self, labels: Tensor, ranks: Ranks) -> Scores:
        """Return the scores on all images, from their labels [n]; waits for the device."""
        n = len(labels)
        ranks.add_up([self.sums, self.confidence, self.predictions])
        total = torch.zeros_like(self.sums[0])
        for of_batch in self.sums:  # in order, for the same bits with any number of ranks
            total += of_batch
        correct, in_five, loss, entropy, infinite = total.tolist()
        predictions = self.predictions.cpu()
        ece = calibration_error(self.confidence.cpu(), predictions == labels.cpu())
        top1, top5 = 100 * correct / n, 100 * in_five / n
        means = loss / n, entropy / n
        return Scores(top1, top5, *means, n, predictions, ece, int(infinite))


def evaluate(
    network: nn.Module,
    split: Split,
    dataset: Dataset,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    ranks: Ranks = ALONE,
    precision: str = "fp32",
) -> Scores:
    """Score a network on a split in eval mode; its own mode is restored afterwards.

    The ranks take batches in turn, and each returns the scores that a single process would find.
    `precision` is that of the forward passes (`kdbench.system.precision.arithmetic`).
    """
    given = split, dataset, device, memory_format, ranks, precision
    (found,) = evaluate_together([network], *given)
    if isinstance(found, Exception):
        raise found
    return found


@torch.inference_mode()
def evaluate_together(
    networks: Sequence[nn.Module],
    split: Split,
    dataset: Dataset,
    device: torch.device,
    memory_format: torch.memory_format,
    ranks: Ranks,
    precision: str,
) -> list[Scores | Exception]:
    """Score networks as `evaluate` does, in one pass over the images.

    Returns:
        Each one's scores, or the error that its forward pass raised.

    Raises:
        Exception: that of a forward pass, where there are several ranks: it may be on one alone.
    """
    found: list[Tally | Exception] = [Tally(len(split.labels), device) for _ in networks]
    with ExitStack() as modes:
        for network in networks:
            modes.enter_context(as_in_evaluation(network))
        for row in range(ranks.number, -(-len(split.labels) // BATCH), ranks.count):
            place = slice(row * BATCH, (row + 1) * BATCH)
            images = split.images[place].to(device, non_blocking=True)
            labels = split.labels[place].to(device, non_blocking=True)
            images = normalise(images, dataset.mean, dataset.std).to(memory_format=memory_format)
            for number, (network, tally) in enumerate(zip(networks, found, strict=True)):
                if isinstance(tally, Exception):
                    continue
                try:
                    with arithmetic(precision):
                        logits = network(images).logits
                    tally.add(row, logits, labels)
                except Exception as error:
                    if ranks.count > 1:
                        raise
                    traceback.clear_frames(error.__traceback__)  # the memory may have run out
                    found[number] = error
    return [
        tally if isinstance(tally, Exception) else tally.scores(split.labels, ranks)
        for tally in found
    ]


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the ECE in percent, from confidences [n] float64 and `correct` [n] bool.

    A bin includes its upper edge.
    """
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    bins = torch.zeros(2, BINS, dtype=torch.float64)
    bins.index_add_(1, index, torch.stack([confidence, correct.double()]))
    return 100 * ((bins[0] - bins[1]).abs().sum().item() / len(correct))
