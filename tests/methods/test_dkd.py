import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses, kd_loss
from kdbench.methods.dkd import DKD
from kdbench.types import Batch, Output


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(6, 10, generator=generator, dtype=torch.float64)


LABELS = torch.tensor([0, 9, 4, 4, 1, 7])


def test_the_two_parts_add_up_to_kd():
    """KD = TCKD + (1 - p_y) NCKD, equation 5 of the paper."""
    student, teacher, temperature = logits(0), logits(1), 4.0
    tckd, nckd = dkd_losses(student, teacher, LABELS, temperature)
    target = torch.softmax(teacher / temperature, 1).gather(1, LABELS[:, None]).squeeze(1)
    torch.testing.assert_close(
        tckd + (1 - target) * nckd, kd_loss(student, teacher, temperature), rtol=1e-12, atol=1e-12
    )


def test_nckd_ignores_the_target_logit():
    student, teacher = logits(0), logits(1)
    moved = student.scatter_add(1, LABELS[:, None], torch.full((6, 1), 5.0, dtype=torch.float64))
    before, after = (dkd_losses(s, teacher, LABELS, 4.0)[1] for s in (student, moved))
    torch.testing.assert_close(before, after)


def test_finite_where_the_released_code_underflows():
    student = logits(0, scale=400.0).float().requires_grad_()
    loss = sum(part.sum() for part in dkd_losses(student, logits(1, 400.0).float(), LABELS, 1.0))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_warm_up_counts_epochs_from_one():
    student, teacher = Output(logits(0), {}), Output(logits(1), {})
    method = DKD(warmup_epochs=20)
    terms = {
        epoch: method(
            Batch(torch.empty(0), LABELS, torch.arange(6), torch.tensor(float(epoch))),
            student,
            (teacher,),
        )
        for epoch in (1, 20, 200)
    }
    torch.testing.assert_close(terms[1]["nckd"] * 20, terms[20]["nckd"])
    torch.testing.assert_close(terms[20]["tckd"], terms[200]["tckd"])
    torch.testing.assert_close(terms[1]["ce"], terms[200]["ce"])


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.warmup_epochs must be above 0"):
        DKD(warmup_epochs=0)
