"""Exit heads: classifiers at the stages of a network, as OFA-KD trains them."""

import torch
from torch import Tensor, nn

GRID = 7  # the side of the grid of tokens that a head reads: 49 tokens, of 224 pixels
HEADS = 4  # of attention, in the block of a head over tokens


def exit_head(channels: int, stage: int, width: int, num_classes: int) -> nn.Sequential:
    """A head over a map of `stage` (1 to 4) of a convolutional network: [B, C, H, W] -> [B, K].

    A separable convolution halves the map for each stage that follows; the last stage gets a 1x1
    convolution. Then the average and a linear layer.

    Args:
        channels: C.
        stage: from 1; the last is 4.
        width: of the vector that is classified, the wider one of student's and teacher's.
        num_classes: K.
    """
    blocks: list[nn.Module] = []
    for later in range(stage + 1, 5):
        out = width if later == 4 else 2 * channels
        blocks.append(separable(channels, out))
        channels *= 2
    if not blocks:
        blocks.append(nn.Conv2d(channels, width, 1))
    head = nn.Sequential(
        *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )
    head.apply(initialise)
    return head


def separable(channels: int, out: int) -> nn.Sequential:
    """Two separable 3x3 convolutions with BN and ReLU, the first with stride 2."""

    def depthwise(stride: int) -> nn.Conv2d:
        return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)

    return nn.Sequential(
        depthwise(2),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        depthwise(1),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


class TokenHead(nn.Module):
    """A head over the tokens of a transformer or an MLP, given as a map: [B, D, H, W] -> [B, K].

    Tokens are merged two by two in both directions down to a grid of 7; blocks of attention follow,
    as many as stages do (one at least), then the average and a linear layer.

    Departures from OFA-KD: its head over a network with a class token puts that into the blocks and
    reads it in the end; taps are maps of the grid alone here, whose average is read. OFA-KD's
    attention is timm's, ours is PyTorch's with the same sizes.
    """

    def __init__(self, dim: int, side: int, stage: int, width: int, num_classes: int) -> None:
        super().__init__()
        merges: list[nn.Module] = []
        while side >= 2 * GRID and side % 2 == 0:
            last = side < 4 * GRID
            activation = nn.Identity() if last and merges else nn.GELU()
            merges += [Merge(dim, width), activation]
            dim, side = width, side // 2
        self.merges = nn.Sequential(*merges)
        self.widen = nn.Identity() if dim == width else nn.Linear(dim, width)
        blocks = [
            nn.TransformerEncoderLayer(
                width, HEADS, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(max(4 - stage, 1))
        ]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, num_classes)
        self.apply(initialise)

    def forward(self, feature: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, K]."""
        tokens = self.merges(feature.permute(0, 2, 3, 1)).flatten(1, 2)
        tokens = self.blocks(self.widen(tokens))
        logits: Tensor = self.classifier(tokens.mean(dim=1))
        return logits


class Merge(nn.Module):
    """Four neighbouring tokens become one, as in Swin: [B, H, W, D] -> [B, H / 2, W / 2, D']."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        """Join and project."""
        corners = [grid[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return merged


def initialise(module: nn.Module) -> None:
    """OFA-KD's first weights: Kaiming's by outputs, and normal ones of 0.02 cut at 2."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
