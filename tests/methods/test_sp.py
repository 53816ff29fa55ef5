import torch

from kdbench.methods.sp import sp_loss


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def naive(student: torch.Tensor, teacher: torch.Tensor) -> float:
    total, count = 0.0, len(student)
    for i in range(count):
        rows = [[(f[i] * f[j]).sum() for j in range(count)] for f in (student, teacher)]
        norms = [sum(value**2 for value in row) ** 0.5 for row in rows]
        for j in range(count):
            total += (rows[0][j] / norms[0] - rows[1][j] / norms[1]) ** 2
    return total / count**2


def test_formula_between_unequal_shapes():
    student, teacher = maps(5, 3, 4, 4), maps(5, 7, 2, 2, seed=1)
    torch.testing.assert_close(sp_loss(student, teacher), naive(student, teacher))


def test_scaled_and_rotated_features_are_the_same():
    student = maps(5, 6)
    rotation = torch.linalg.qr(maps(6, 6, seed=1)).Q
    assert sp_loss(student, 3 * student @ rotation) < 1e-28


def test_a_dead_student_is_finite():
    student = torch.zeros(5, 6, requires_grad=True)
    sp_loss(student, maps(5, 6).float()).backward()
    assert student.grad.isfinite().all()
