"""What a network scores on a split, in eval mode."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.data.base import Dataset, Split
from kdbench.data.views import normalise
from kdbench.losses import cross_entropy

BATCH = 500  # rows do not depend on it from 16 up
BINS = 15  # of the calibration error: Guo et al., On Calibration of Modern Neural Networks, 2017


class Scores(NamedTuple):
    """A network's scores on `n` images."""

    top1: float  # percent
    top5: float  # percent; of all classes where there are fewer than five
    loss: float  # mean cross-entropy in nats
    n: int
    chosen: Tensor  # [n] int64 on the CPU, the likeliest class of each image
    ece: float  # expected calibration error, percent; bins of equal width


@torch.inference_mode()
def evaluate(
    network: nn.Module,
    split: Split,
    dataset: Dataset,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Scores:
    """Score a network on a split; it is in eval mode meanwhile and as before afterwards."""
    training = network.training
    network.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
    chosen = []
    for start in range(0, len(split.labels), BATCH):
        images = split.images[start : start + BATCH].to(device, non_blocking=True)
        labels = split.labels[start : start + BATCH].to(device, non_blocking=True)
        images = normalise(images, dataset.mean, dataset.std)
        logits = network(images.to(memory_format=memory_format)).logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        ranked = best == labels[:, None]
        chosen.append(best[:, 0])
        add_to_bins(bins, logits, ranked[:, 0])
        scores = ranked[:, 0].sum(), ranked.sum(), cross_entropy(logits, labels).double().sum()
        sums += torch.stack([score.double() for score in scores])
    network.train(training)
    n = len(split.labels)
    hits1, hits5, loss = sums.tolist()
    ece = (bins[1] - bins[2]).abs().sum().item() / n
    return Scores(100 * hits1 / n, 100 * hits5 / n, loss / n, n, torch.cat(chosen).cpu(), 100 * ece)


def add_to_bins(bins: Tensor, logits: Tensor, hits: Tensor) -> None:
    """Add images to bins of confidence: their number, confidences and hits [3, BINS]."""
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    index = (confidence * BINS).ceil().long().clamp(1, BINS) - 1  # a bin has its upper edge
    rows = torch.stack([torch.ones_like(confidence), confidence, hits.double()])
    bins.index_add_(1, index, rows)
