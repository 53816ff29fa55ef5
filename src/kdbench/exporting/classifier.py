"""A student as others run it: a tensor in, a tensor out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.types import Output


class Classifier(nn.Module):
    """Normalised images [B, C, H, W] float32 in, logits [B, K] out; of taps nothing is left."""

    inputs, outputs = "images", "logits"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K]."""
        output: Output = self.network(images)
        return output.logits


class PixelClassifier(Classifier):
    """Pixels [B, C, H, W] uint8 in, probabilities [B, K] out: the normalisation is inside.

    Args:
        network: takes normalised images.
        mean: of pixels in 0..1, one number a channel.
        std: the same.
    """

    inputs, outputs = "pixels", "probabilities"
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(network)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities [B, K]; pixels become as `kdbench.data.augmentation.views.normalise`."""
        return super().forward((images.float() / 255 - self.mean) / self.std).softmax(dim=1)
