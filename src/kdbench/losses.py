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
