"""Pure loss functions that two methods or more share; each returns one number per sample."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y of each sample.

    Shapes: logits [B, K], labels [B] int64 -> [B], in nats.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-sum_k q_k log softmax(z)_k of each sample, for labels that are distributions.

    Shapes: logits and targets [B, K] -> [B], in nats.
    """
    return -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1)


def kl_divergence(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """KL(p^t || p^s) = sum_k p^t_k (log p^t_k - log p^s_k) of each sample.

    Shapes: both [B, K], log-probabilities -> [B], in nats.
    """
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(dim=1)


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 KL(softmax(z^t / T) || softmax(z^s / T)) of each sample.

    Shapes: logits [B, K] -> [B], in nats. The factor T^2 keeps the gradient's size independent of
    the temperature. Source: Hinton et al. 2015, section 2.1.
    """
    student_log_probs = torch.log_softmax(student_logits / temperature, dim=1)
    teacher_log_probs = torch.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * kl_divergence(teacher_log_probs, student_log_probs)


def split_log_probs(
    logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, not target) and of the other classes among themselves.

    Shapes: logits [B, K], labels [B] -> [B, 2] and [B, K-1]. The other classes are gathered, so
    nothing is masked with a large number and log(1 - p_y) is a logsumexp that cannot underflow.
    """
    scaled = logits / temperature
    target = labels.unsqueeze(1)  # [B, 1]
    position = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = scaled.gather(1, position + (position >= target).long())  # [B, K-1]
    binary = torch.cat([scaled.gather(1, target), others.logsumexp(1, keepdim=True)], dim=1)
    return torch.log_softmax(binary, dim=1), torch.log_softmax(others, dim=1)


def dkd_losses(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """T^2 TCKD and T^2 NCKD of each sample, unweighted (Zhao et al. 2022, equations 4 to 7).

    Shapes: logits [B, K], labels [B] -> two tensors [B], in nats. With p the teacher's target
    probability at temperature T, KD's own loss is TCKD + (1 - p) NCKD.
    """
    student_binary, student_others = split_log_probs(student_logits, labels, temperature)
    teacher_binary, teacher_others = split_log_probs(teacher_logits, labels, temperature)
    target_class = temperature**2 * kl_divergence(teacher_binary, student_binary)
    other_classes = temperature**2 * kl_divergence(teacher_others, student_others)
    return target_class, other_classes


def masked_log_probs(logits: Tensor, kept: Tensor) -> Tensor:
    """log softmax over the kept classes of each sample, 0 at the others.

    Shapes: logits [B, K], kept [B, K] bool -> [B, K]. The sentinel is half the smallest number, so
    that a difference of two of them is finite too; a sample without a kept class is 0 throughout.
    """
    sentinel = torch.finfo(logits.dtype).min / 2
    log_probs = torch.log_softmax(torch.where(kept, logits, sentinel), dim=1)
    return torch.where(kept, log_probs, 0.0)


def smoothed_labels(logits: Tensor, labels: Tensor, smoothing: float, spread: str) -> Tensor:
    """The label's distribution with `smoothing` spread over "all" K classes or the K-1 "others".

    Shapes: logits [B, K] (for shape, type and device), labels [B] -> [B, K], each row sums to 1.
    The label keeps 1 - smoothing + smoothing / K ("all", PyTorch; Szegedy et al. 2016, section 7)
    or 1 - smoothing ("others", Tf-KD).
    """
    num_classes = logits.shape[1]
    low = smoothing / (num_classes if spread == "all" else num_classes - 1)
    high = 1 - smoothing + (low if spread == "all" else 0)
    return torch.full_like(logits, low).scatter(1, labels.unsqueeze(1), high)


def ttm_loss(student_logits: Tensor, teacher_logits: Tensor, power: float | Tensor) -> Tensor:
    """KL(q || softmax(z^s)), q proportional to softmax(z^t)^power, of each sample.

    Shapes: logits [B, K] -> [B], in nats. The power of a softmax is softmax(power z^t), so nothing
    is raised to a power. Source: transformed teacher matching, Zheng & Yang 2024, section 3.
    """
    target_log_probs = torch.log_softmax(power * teacher_logits, dim=1)
    return kl_divergence(target_log_probs, torch.log_softmax(student_logits, dim=1))


def entropy(logits: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """H(softmax(z / T)) = -sum_k p_k log p_k over the last dimension.

    Shapes: logits [..., K] -> [...], in nats, between 0 and log K.
    """
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def attention_map(feature: Tensor, power: float) -> Tensor:
    """Return mean_C |F|^power of each position, L2-normalised over the positions.

    Shapes: [B, C, H, W] -> [B, H * W]. Source: Zagoruyko & Komodakis 2017, section 3.1 (the
    released code takes the mean over channels, the paper the sum; the norm removes the factor).
    """
    # abs() has the derivative 0 at 0; after a ReLU this is F^power, derivative included.
    magnitude = torch.where(feature < 0, -feature, feature)
    return F.normalize(magnitude.pow(power).mean(dim=1).flatten(1), dim=1)


def total(terms: Iterable[Tensor]) -> Tensor:
    """Return the sum of one or more terms of one shape."""
    return cast(Tensor, sum(terms))


def kd_losses(
    student_logits: Tensor, teacher_logits: Sequence[Tensor] | Tensor, temperature: float | Tensor
) -> Tensor:
    """`kd_loss` against each of T teachers.

    Shapes: student [B, K], T teachers [B, K] -> [T, B], in nats.
    """
    return torch.stack([kd_loss(student_logits, logits, temperature) for logits in teacher_logits])


def complement_weights(doubts: Tensor) -> Tensor:
    """(1 - d_t) / (T - 1): the teacher with the larger share of the doubt weighs less.

    Shapes: [T, B], each column sums to 1 over the teachers -> [T, B], which does so too, in
    [0, 1 / (T - 1)]. One teacher has weight 1. Source: CA-MKD (Zhang et al. 2022).
    """
    teachers = len(doubts)
    return torch.ones_like(doubts) if teachers == 1 else (1 - doubts) / (teachers - 1)


def ca_weights(teacher_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Weights of T teachers by their cross-entropies: (1 - softmax_t(CE(z^t, y))) / (T - 1).

    Shapes: T logits [B, K], labels [B] -> [T, B]. Source: CA-MKD (Zhang et al. 2022).
    """
    losses = torch.stack([cross_entropy(logits, labels) for logits in teacher_logits])
    return complement_weights(torch.softmax(losses, dim=0))


def entropy_shares(entropies: Tensor) -> Tensor:
    """H_t / sum_j H_j over the teachers; 1 / T where all are certain, instead of 0 / 0.

    Shapes: [T, B] -> [T, B].
    """
    total = entropies.sum(dim=0)
    certain = total <= 0
    return torch.where(certain, 1 / len(entropies), entropies / torch.where(certain, 1.0, total))


def ab_divergence(
    teacher_log_probs: Tensor, student_log_probs: Tensor, alpha: float, beta: float
) -> Tensor:
    """The alpha-beta divergence of p from q of each sample, in its analytic form everywhere.

    D = -sum_k (p^a q^b - a / (a + b) p^(a+b) - b / (a + b) q^(a+b)) / (a b), and its limits where
    a, b or a + b is 0: (1, 0) is KL(p || q), (0, 1) is KL(q || p), (0, 0) half the squared
    difference of the logarithms. Shapes: both [B, K], log-probabilities of p (teacher) and q ->
    [B]. Powers are exponentials of logarithms; where a or b is negative they grow without bound.
    Source: Cichocki, Cruces & Amari 2011, equations 8 to 11.
    """
    p, q = teacher_log_probs, student_log_probs
    if alpha == 0 and beta == 0:
        terms = (p - q).square() / 2
    elif beta == 0:
        terms = ((alpha * p).exp() * (alpha * (p - q) - 1) + (alpha * q).exp()) / alpha**2
    elif alpha == 0:
        terms = ((beta * q).exp() * (beta * (q - p) - 1) + (beta * p).exp()) / beta**2
    elif alpha + beta == 0:
        terms = (alpha * (q - p) + (alpha * (p - q)).exp() - 1) / alpha**2
    else:
        both = alpha + beta
        own = alpha / both * (both * p).exp() + beta / both * (both * q).exp()
        terms = (own - (alpha * p + beta * q).exp()) / (alpha * beta)
    return terms.sum(dim=1)


def weighted_margins(difference: Tensor, weights: Tensor) -> Tensor:
    """sum_jk c_j c_k (d_j - d_k)^2 / 4 of each sample, without the K x K pairs.

    Shapes: differences of logits d and weights c, both [B, K] -> [B]. With m the c-mean of d it is
    (sum c) sum c (d - m)^2 / 2, in which nothing cancels. Source: arXiv 2305.13948.
    """
    mass = weights.sum(dim=1, keepdim=True)
    mean = (weights * difference).sum(dim=1, keepdim=True) / mass
    return mass.squeeze(1) * (weights * (difference - mean).square()).sum(dim=1) / 2
