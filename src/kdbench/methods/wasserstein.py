"""Wasserstein distances that distil: between class probabilities, and between map statistics.

Lv et al., NeurIPS 2024, arXiv 2412.08139, as in JiamingLv/WKD.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.networks.adapters import bottleneck_regressor, check_map, conv_regressor
from kdbench.types import NetworkProbe, Probe

LEAST = 0.0125  # exp(-1 / LEAST) is the smallest kernel entry; below it float32 has no room
ROWS = 16  # of all classes' inner products that `cka_distances` holds at a time
BOTTLENECK = 256  # channels, of the released projector


def sharpened(distances: Tensor, sharpness: float) -> Tensor:
    """1 - exp(-sharpness d), the costs of distances; at a sharpness of 0 the distances."""
    return 1 - torch.exp(-sharpness * distances) if sharpness > 0 else distances


def cosine_distances(prototypes: Tensor) -> Tensor:
    """1 - cosine of each two classes' prototypes.

    Shapes: [K, D] -> [K, K], symmetric, 0 on the diagonal.
    """
    directions = F.normalize(prototypes, dim=1)
    return (1 - directions @ directions.T).clamp(min=0).fill_diagonal_(0)


def cka_distances(features: Tensor) -> Tensor:
    """1 - linear CKA of each two classes' features, their n-th images paired.

    CKA_ij = <G_i, G_j> / (|G_i| |G_j|) with G_i = X_i X_i^T [N, N] of the class's centred features
    X_i; 0 where a class's features do not vary. Shapes: [K, N, D] -> [K, K], symmetric, 0 on the
    diagonal. Source: Kornblith et al. 2019, equation 3.
    """
    centred = features - features.mean(dim=1, keepdim=True)
    products = features.new_zeros(len(features), len(features))
    for first in range(0, features.shape[1], ROWS):
        rows = (centred[:, first : first + ROWS] @ centred.transpose(1, 2)).flatten(1)
        products += rows @ rows.T
    norms = products.diagonal().sqrt()
    scales = norms.unsqueeze(1) * norms
    similarities = torch.where(scales > 0, products / scales.clamp(min=1e-300), 0.0)
    return (1 - similarities).clamp(min=0).fill_diagonal_(0)


def class_costs(teacher: NetworkProbe, prototypes: str, sharpness: float) -> Tensor:
    """Return a teacher's cost of moving probability between two classes: [K, K].

    Args:
        teacher: what is known of it.
        prototypes: "cka" of its pooled features of the training images, or the cosine between
            "classifier" weights or "class_means" of the pooled features.
        sharpness: of `sharpened`.

    Raises:
        ConfigError: it has no linear classifier, or a class has fewer than two images.
    """
    if prototypes == "cka":
        assert teacher.class_features is not None
        features = teacher.class_features("pooled")
        if features.shape[1] < 2:
            raise ConfigError(
                "CKA needs two or more training images of every class: set "
                "method.prototypes=classifier"
            )
        return sharpened(cka_distances(features.double()), sharpness).float()
    if prototypes == "class_means":
        assert teacher.class_means is not None
        return sharpened(cosine_distances(teacher.class_means("pooled")), sharpness)
    if teacher.classifier is None:
        raise ConfigError("the teacher has no linear classifier: method.prototypes=class_means")
    return sharpened(cosine_distances(teacher.classifier.weight), sharpness)


def log_matmul(log_weights: Tensor, matrix: Tensor, guard: float = 0.0) -> Tensor:
    """log(exp(log_weights) @ matrix + guard), shifted by each row's largest weight.

    Shapes: log_weights [B, K] (may hold -inf), matrix [K, K] of positive numbers -> [B, K].
    """
    shift = log_weights.detach().amax(dim=1, keepdim=True)
    product = torch.exp(log_weights - shift) @ matrix
    if guard > 0:
        product = product + guard * torch.exp(-shift)
    return torch.log(product) + shift


def transport_cost(
    student_log_probs: Tensor,
    teacher_log_probs: Tensor,
    costs: Tensor,
    regularization: float,
    iterations: int,
    guard: float = 0.0,
) -> Tensor:
    """sum_ij P_ij C_ij of each sample, P the plan after some Sinkhorn iterations in log space.

    Shapes: log-probabilities [B, K], -inf for a class that takes no part, costs [K, K] -> [B].
    P = diag(u) K diag(v) with K = exp(-C / regularization); v meets the teacher's marginal, then u
    the student's, so P's rows sum to the student's probabilities exactly. The released code adds a
    `guard` of 1e-8 to the costs and to every denominator; u starts as 1 / (classes taking part).
    """
    costs = costs + guard
    kernel = torch.exp(-costs / regularization)
    absent = student_log_probs == -torch.inf
    present = (~absent).sum(dim=1, keepdim=True)
    log_u = -torch.log(present.to(costs.dtype)).expand_as(student_log_probs)
    log_u = log_v = log_u.masked_fill(absent, -torch.inf)
    for _ in range(iterations):
        log_v = teacher_log_probs - log_matmul(log_u, kernel, guard)
        log_u = student_log_probs - log_matmul(log_v, kernel.T, guard)
    # The last u is p / (K v), so the plan's cost is p (C K v) / (K v), in which v's scale cancels.
    shift = log_v.detach().amax(dim=1, keepdim=True)
    v = torch.exp(log_v - shift)
    denominator = v @ kernel.T
    if guard > 0:
        denominator = denominator + guard * torch.exp(-shift)
    return (student_log_probs.exp() * (v @ (kernel * costs).T) / denominator).sum(dim=1)


def logit_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    costs: Tensor,
    temperature: float,
    regularization: float,
    iterations: int,
    guard: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """WKD-L of each sample in two parts: -p^t_y log p^s_y at T = 1, and the others' transport.

    Shapes: logits [B, K], labels [B], costs [K, K] -> two tensors [B]. The transport lies between
    the probabilities among the classes other than the label, at the temperature.
    """
    is_label = F.one_hot(labels, student_logits.shape[1]).bool()
    own, theirs = (
        torch.log_softmax((logits / temperature).masked_fill(is_label, -torch.inf), dim=1)
        for logits in (student_logits, teacher_logits)
    )
    cost = transport_cost(own, theirs, costs, regularization, iterations, guard)
    known = torch.softmax(teacher_logits, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return known * F.cross_entropy(student_logits, labels, reduction="none"), cost


def cell_moments(feature: Tensor, grid: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(unbiased variance + eps) of each channel in the cells of a grid.

    Shapes: [B, C, H, W] -> two tensors [B, C, cells].
    """
    rows, columns = (cell_edges(side, grid) for side in feature.shape[-2:])
    cells = [feature[..., top:end, left:right] for top, end in rows for left, right in columns]
    moments = [torch.var_mean(cell, dim=(-2, -1)) for cell in cells]
    variances, means = (torch.stack(parts, dim=-1) for parts in zip(*moments, strict=True))
    return means, (variances + eps).sqrt()


def moment_projector(probe: Probe, tap: str, projector: str, grid: int) -> nn.Sequential:
    """Make the student map's projector: "conv1x1", or a "bottleneck" of 256 channels.

    Raises:
        ConfigError: no such projector fits, or a cell of the grid would be one pixel.
    """
    student, teacher = check_map(probe.student, tap), check_map(probe.teachers[0], tap)
    rows, columns = (cell_edges(side, grid) for side in teacher[1:])
    if any((b - a) * (d - c) < 2 for a, b in rows for c, d in columns):
        raise ConfigError(
            f"method.grid={grid} on a {teacher[1]}x{teacher[2]} map has cells of one pixel, "
            "which do not vary: lower it"
        )
    if projector == "bottleneck":
        return bottleneck_regressor(student, teacher, BOTTLENECK)
    return conv_regressor(student, teacher)


def cell_edges(side: int, grid: int) -> list[tuple[int, int]]:
    """First and last + 1 pixel of each cell; they overlap where the grid does not divide the side.

    From floor(a side / grid) to ceil((a + 1) side / grid).
    """
    return [(a * side // grid, -(-(a + 1) * side // grid)) for a in range(grid)]


def moment_distance(
    student: Tensor, teacher: Tensor, grid: int, mean_weight: float, eps: float
) -> Tensor:
    """mean over cells of mean_weight |mu_s - mu_t|^2 + |dev_s - dev_t|^2, of each sample.

    Shapes: maps [B, C, H, W] -> [B], summed over channels: the squared Wasserstein distance of two
    Gaussians with diagonal covariance, were the weight 1.
    """
    own, theirs = (cell_moments(feature, grid, eps) for feature in (student, teacher))
    means, deviations = (
        (a - b).square().sum(dim=1).mean(dim=1) for a, b in zip(own, theirs, strict=True)
    )
    return mean_weight * means + deviations


def half_cosine(epoch: Tensor, start: int, end: int) -> Tensor:
    """1 until epoch `start`, then along a half cosine to 0 at `end`."""
    passed = (epoch - start) / (end - start)
    return (1 + torch.cos(torch.pi * passed.clamp(0, 1))) / 2
