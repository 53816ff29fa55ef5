"""A teacher's mean probabilities for each class over the previous epoch."""

import torch
from torch import Tensor, nn


class ClassMemory(nn.Module):
    """A distribution for each class: the mean of what was given for its images, an epoch ago.

    Uniform in the first epoch. A class without an image keeps its row. Nothing is read back from
    the device: the first call of a new epoch moves the means over.
    """

    rows: Tensor  # [K, K], what is read
    sums: Tensor  # [K, K], of the running epoch
    counts: Tensor  # [K]
    epoch: Tensor  # [], the running one

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("sums", torch.zeros(num_classes, num_classes))
        self.register_buffer("counts", torch.zeros(num_classes))
        self.register_buffer("epoch", torch.zeros(()))

    @torch.no_grad()
    def forward(self, epoch: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """The rows [B, K] of the labels [B]; then `probabilities` [B, K] are noted."""
        new = epoch > self.epoch
        counts = self.counts.unsqueeze(1)
        means = torch.where(counts > 0, self.sums / counts.clamp(min=1), self.rows)
        self.rows.copy_(torch.where(new, means, self.rows))
        kept = 1 - new.to(self.sums.dtype)
        self.sums.mul_(kept).index_add_(0, labels, probabilities.to(self.sums.dtype))
        self.counts.mul_(kept).index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        self.epoch.copy_(torch.maximum(epoch, self.epoch))
        return self.rows[labels]
