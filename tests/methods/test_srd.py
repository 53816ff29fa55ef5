import math

import torch

from kdbench.methods.srd import log_sum_distance


def features(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 + 2 * torch.randn(7, 4, generator=generator, dtype=torch.float64)


def test_follows_the_formula():
    student, teacher = features(0), features(1)
    total = 0.0
    for d in range(4):
        columns = []
        for values in (student[:, d].tolist(), teacher[:, d].tolist()):
            mean = sum(values) / 7
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / 7 + 1e-4)
            columns.append([(v - mean) / std for v in values])
        total += sum(abs(s - t) ** 3 for s, t in zip(*columns, strict=True))
    found = log_sum_distance(student, teacher, 3.0)
    torch.testing.assert_close(found, torch.tensor(math.log(total), dtype=torch.float64))


def test_scale_and_offset_of_a_dimension_do_not_count():
    """Up to the 1e-4 beside the variance."""
    student, teacher = features(0), features(1)
    stretched = teacher * torch.tensor([10.0, 1.0, 1.0, 30.0]) - 5
    torch.testing.assert_close(
        log_sum_distance(student, stretched, 4.0),
        log_sum_distance(student, teacher, 4.0),
        rtol=1e-4,
        atol=0,
    )


def test_a_dead_dimension_is_finite():
    student, teacher = features(0).requires_grad_(), features(1)
    teacher[:, 2] = 0
    log_sum_distance(student, teacher, 4.0).backward()
    assert student.grad.isfinite().all()
