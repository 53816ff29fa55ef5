import math

import pytest
import torch

from kdbench.methods.at import at_loss


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def attention(sample: torch.Tensor, power: float) -> list[float]:
    """One sample's map [C, H, W], its positions in a row."""
    channels = sample.flatten(1).tolist()
    values = [sum(abs(c[i]) ** power for c in channels) for i in range(len(channels[0]))]
    norm = math.sqrt(sum(v * v for v in values))
    return [v / norm for v in values]


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_at_is_the_formula_also_for_negative_values(power):
    student, teacher = maps(0, 3, 4, 2, 2), maps(1, 3, 5, 4, 4)
    halved = teacher.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))
    expected = []
    for s, t in zip(student, halved, strict=True):
        pairs = list(zip(attention(s, power), attention(t, power), strict=True))
        expected.append(sum((a - b) ** 2 for a, b in pairs) / len(pairs))
    loss = at_loss(student, teacher, power)
    torch.testing.assert_close(
        loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_attention_has_no_scale_and_survives_dead_maps():
    teacher = maps(0, 3, 4, 2, 2)
    torch.testing.assert_close(at_loss(5 * teacher, teacher, 2.0), torch.zeros(3).double())
    dead = torch.zeros(3, 4, 2, 2, requires_grad=True)
    at_loss(dead, teacher.float(), 2.0).sum().backward()
    assert dead.grad.isfinite().all()
