"""What a network scores on a split, in eval mode."""

from typing import NamedTuple

import torch
from torch import nn

from kdbench.data.base import Dataset, Split
from kdbench.data.views import normalise
from kdbench.losses import cross_entropy

BATCH = 500  # rows do not depend on it from 16 up


class Scores(NamedTuple):
    """A network's scores on `n` images."""

    top1: float  # percent
    top5: float  # percent; of all classes where there are fewer than five
    loss: float  # mean cross-entropy in nats
    n: int


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
    for start in range(0, len(split.labels), BATCH):
        images = split.images[start : start + BATCH].to(device, non_blocking=True)
        labels = split.labels[start : start + BATCH].to(device, non_blocking=True)
        images = normalise(images, dataset.mean, dataset.std)
        logits = network(images.to(memory_format=memory_format)).logits.float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        scores = ranked[:, 0].sum(), ranked.sum(), cross_entropy(logits, labels).double().sum()
        sums += torch.stack([score.double() for score in scores])
    network.train(training)
    n = len(split.labels)
    hits1, hits5, loss = sums.tolist()
    return Scores(top1=100 * hits1 / n, top5=100 * hits5 / n, loss=loss / n, n=n)
