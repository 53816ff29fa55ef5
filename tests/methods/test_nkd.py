import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.nkd import NKD, nkd_losses
from kdbench.types import Batch, Output

LABELS = torch.tensor([0, 5, 2])


def logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, 6, generator=generator, dtype=torch.float64)


def reference(
    student: list[float], teacher: list[float], label: int, temperature: float
) -> tuple[float, float]:
    def softmax(row: list[float]) -> list[float]:
        powers = [math.exp(z) for z in row]
        return [power / sum(powers) for power in powers]

    target = -softmax(teacher)[label] * math.log(softmax(student)[label])
    others = [k for k in range(len(student)) if k != label]
    t = softmax([teacher[k] / temperature for k in others])
    s = softmax([student[k] / temperature for k in others])
    return target, -(temperature**2) * sum(a * math.log(b) for a, b in zip(t, s, strict=True))


def test_it_is_the_formula_sample_by_sample():
    student, teacher = logits(0), logits(1)
    batch = Batch(torch.empty(0), LABELS, torch.arange(3), torch.tensor(1.0))
    method = NKD(temperature=3.0, nontarget_weight=3.5)
    terms = method(batch, Output(student, {}), (Output(teacher, {}),))
    rows = zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True)
    expected = [reference(*row, 3.0) for row in rows]
    assert terms["target"].tolist() == pytest.approx([e[0] for e in expected], rel=1e-12)
    assert terms["nontarget"].tolist() == pytest.approx([3.5 * e[1] for e in expected], rel=1e-12)


def test_the_label_s_logit_moves_only_the_target_s_term():
    student, teacher = logits(0), logits(1)
    moved = teacher.scatter_add(1, LABELS[:, None], torch.full((3, 1), 5.0, dtype=torch.float64))
    (target, others), (target_moved, others_moved) = (
        nkd_losses(student, t, LABELS, 3.0) for t in (teacher, moved)
    )
    torch.testing.assert_close(others, others_moved, rtol=1e-12, atol=0)
    assert (target_moved > target).all()


def test_finite_where_probabilities_underflow():
    student = logits(0, 400.0).float().requires_grad_()
    loss = sum(part.sum() for part in nkd_losses(student, logits(1, 400.0).float(), LABELS, 1.0))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method\.temperature must be above 0"):
        NKD(temperature=-1.0)
