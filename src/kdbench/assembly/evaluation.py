"""Accuracy, loss and calibration of a network on a split, in eval mode."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Dataset, Split
from kdbench.losses import cross_entropy
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
    n: int
    predictions: Tensor  # [n] int64 on the CPU, the likeliest class of each image
    ece: float  # expected calibration error, percent; bins of equal width
    infinite: int  # images with an output that is not finite


@torch.inference_mode()
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
    training = network.training
    network.eval()
    n = len(split.labels)
    starts = range(0, n, BATCH)
    sums = torch.zeros(len(starts), 4, dtype=torch.float64, device=device)  # a row for each batch
    confidence = torch.zeros(n, dtype=torch.float64, device=device)
    predictions = torch.zeros(n, dtype=torch.int64, device=device)
    for row in range(ranks.number, len(starts), ranks.count):
        start = starts[row]
        images = split.images[start : start + BATCH].to(device, non_blocking=True)
        labels = split.labels[start : start + BATCH].to(device, non_blocking=True)
        images = normalise(images, dataset.mean, dataset.std)
        with arithmetic(precision):
            logits = network(images.to(memory_format=memory_format)).logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        ranked = best == labels[:, None]
        predictions[start : start + BATCH] = best[:, 0]
        confidence[start : start + BATCH] = logits.double().softmax(dim=1).amax(dim=1)
        losses = cross_entropy(logits, labels).double()
        infinite = ~logits.isfinite().all(dim=1)
        scores = ranked[:, 0].sum(), ranked.sum(), losses.sum(), infinite.sum()
        sums[row] = torch.stack([score.double() for score in scores])
    network.train(training)
    ranks.add_up([sums, confidence, predictions])
    total = torch.zeros_like(sums[0])
    for of_batch in sums:  # in order, for the same bits with any number of ranks
        total += of_batch
    correct, in_five, loss, infinite = total.tolist()
    predictions = predictions.cpu()
    ece = calibration_error(confidence.cpu(), predictions == split.labels.cpu())
    top1, top5 = 100 * correct / n, 100 * in_five / n
    return Scores(top1, top5, loss / n, n, predictions, ece, int(infinite))


def calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the ECE in percent, from confidences [n] float64 and `correct` [n] bool.

    A bin includes its upper edge.
    """
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    bins = torch.zeros(2, BINS, dtype=torch.float64)
    bins.index_add_(1, index, torch.stack([confidence, correct.double()]))
    return 100 * ((bins[0] - bins[1]).abs().sum().item() / len(correct))
