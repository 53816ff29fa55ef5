"""Pure loss functions that two methods or more share; each returns one number per sample."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(z)_y of each sample.

    Shapes: logits [B, K], labels [B] int64 -> [B], in nats.
    """
    return F.cross_entropy(logits, labels, reduction="none")


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
