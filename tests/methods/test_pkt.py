import torch

from kdbench.methods.pkt import pkt_loss


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def naive(points: torch.Tensor) -> list[list[float]]:
    rows = []
    for a in points:
        row = [float((a @ b / (a.norm() * b.norm()) + 1) / 2) for b in points]
        rows.append([value / sum(row) for value in row])
    return rows


def test_formula():
    """To 1e-5, which is what the published constants of 1e-7 change."""
    student, teacher = vectors(5, 4), vectors(5, 6, seed=1)
    own, theirs = (torch.tensor(naive(v), dtype=torch.float64) for v in (student, teacher))
    expected = sum(
        theirs[i, j] * (theirs[i, j] / own[i, j]).log() / 25 for i in range(5) for j in range(5)
    )
    found = pkt_loss(student, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(pkt_loss(student, teacher, eps=0.0), expected)


def test_turned_and_scaled_features_are_the_same():
    rotation = torch.linalg.qr(vectors(4, 4, seed=1)).Q
    assert pkt_loss(vectors(5, 4), 3 * vectors(5, 4) @ rotation).abs() < 1e-8


def test_a_dead_sample_is_finite():
    student = vectors(5, 4).float()
    student[2] = 0
    student.requires_grad_()
    pkt_loss(student, vectors(5, 6).float()).backward()
    assert student.grad.isfinite().all()
