"""Curriculum temperature (Li et al., AAAI 2023, arXiv 2211.16231)."""

import torch
from torch import Tensor, nn

from kdbench.losses import kd_loss
from kdbench.methods.base import Method, check_positive, check_weights
from kdbench.types import Batch, Output

START = 1.0  # theta before training, in the released code


def curriculum(epoch: Tensor, epochs: int) -> Tensor:
    """lambda(e) = (cos(pi min(e, E) / E) - 1) / 2, from 0 to -1 over the first E epochs.

    Shapes: epoch [] -> [].
    """
    done = torch.clamp(epoch / epochs, max=1.0)
    return (torch.cos(torch.pi * done) - 1) / 2


def scale_gradient(value: Tensor, factor: Tensor) -> Tensor:
    """`value` itself, whose gradient is multiplied by `factor`; a negative one reverses it.

    Shapes: any, factor [] -> as value.
    """
    still = value.detach()
    return still + factor * (value - still)


class CTKD(Method):
    """L = ce_weight CE + kd_weight T^2 KL(softmax(z^t / T) || softmax(z^s / T)), T learned.

    T = lowest_temperature + temperature_range * sigmoid(theta) with one learned theta for all
    samples. The student minimises the loss, theta maximises it: theta's gradient is multiplied by
    lambda(epoch), which falls from 0 to -1 along a cosine in `curriculum_epochs` (epochs count from
    1 as in the released code). theta is trained by the student's optimizer, weight decay included,
    which pulls T towards the middle of its range.

    Departures: only the global temperature. The paper's instance-wise one cannot be selected in
    the released training script, so nothing pins its network. The released code's comment says
    that the gradient is multiplied by -lambda; the code multiplies by lambda, which is negative
    already, and so do we.
    """

    soft_labels = True
    reads_epoch = True

    def __init__(
        self,
        ce_weight: float = 0.1,
        kd_weight: float = 0.9,
        lowest_temperature: float = 1.0,
        temperature_range: float = 20.0,
        curriculum_epochs: int = 10,
    ) -> None:
        super().__init__()
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        check_positive(
            lowest_temperature=lowest_temperature,
            temperature_range=temperature_range,
            curriculum_epochs=curriculum_epochs,
        )
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.lowest_temperature = lowest_temperature
        self.temperature_range = temperature_range
        self.curriculum_epochs = curriculum_epochs
        self.theta = nn.Parameter(torch.tensor(START))

    def temperature(self, batch: Batch) -> Tensor:
        """T [], whose gradient reaches theta with the sign and size of this epoch's lambda."""
        reversed_theta = scale_gradient(self.theta, curriculum(batch.epoch, self.curriculum_epochs))
        return self.lowest_temperature + self.temperature_range * torch.sigmoid(reversed_theta)

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Terms "ce" [B] and "kd" [B]."""
        (teacher,) = teachers
        losses = kd_loss(student.logits, teacher.logits, self.temperature(batch))
        return {"ce": self.label_term(batch, student), "kd": self.kd_weight * losses}

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """The learned "temperature" []."""
        return {"temperature": self.temperature(batch)}
