import torch
from torch.nn import functional as F

from kdbench.methods.rkd import RKD, relations
from kdbench.types import Batch, Output


def vectors(count: int = 5, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


def terms(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, torch.Tensor]:
    count = len(student)
    batch = Batch(torch.empty(0), torch.zeros(count).long(), torch.arange(count), torch.tensor(1.0))
    outputs = [Output(torch.zeros(count, 3), {"pooled": pooled}) for pooled in (student, teacher)]
    return RKD()(batch, outputs[0], (outputs[1],))


def naive_distances(points: torch.Tensor) -> torch.Tensor:
    raw = torch.stack([torch.stack([(a - b).norm() for b in points]) for a in points])
    return raw / raw[raw > 0].mean()


def naive_cosines(points: torch.Tensor) -> torch.Tensor:
    count = len(points)
    cosines = torch.zeros(count, count, count, dtype=points.dtype)
    for i in range(count):
        for j in range(count):
            for k in range(count):
                if i not in (j, k):
                    sides = points[j] - points[i], points[k] - points[i]
                    cosines[i, j, k] = sides[0] @ sides[1] / (sides[0].norm() * sides[1].norm())
    return cosines


def test_formula():
    student, teacher = vectors(), vectors(width=6, seed=1)
    found = terms(student, teacher)
    for name, weight, relation in (("distance", 25, naive_distances), ("angle", 50, naive_cosines)):
        gap = relation(student) - relation(teacher)
        small = gap.abs() < 1
        expected = (small * gap**2 / 2 + ~small * (gap.abs() - 0.5)).mean()
        torch.testing.assert_close(found[name], weight * expected)


def test_moved_turned_and_scaled_points_have_the_same_relations():
    rotation = torch.linalg.qr(vectors(4, 4, seed=1)).Q
    found = terms(vectors(), 3 * vectors() @ rotation + 1)
    assert found["distance"] < 1e-28
    assert found["angle"] < 1e-28


def test_equal_vectors_pass_no_infinite_gradient():
    """Duplicates in the student, in both, and a batch of one or of equal images."""
    for student in (vectors(), vectors()[[0, 0, 1, 2, 3]], vectors()[[0] * 5], vectors()[:1]):
        points = student.float().requires_grad_()
        found = terms(points, vectors(len(points), seed=1)[[0, *range(len(points) - 1)]].float())
        (found["distance"] + found["angle"]).backward()
        assert points.grad.isfinite().all()
        assert points.grad.abs().max() < 1e3


def test_close_pairs_far_from_the_origin_keep_their_distance_in_float32():
    points = torch.tensor([[1000.0, 0.0], [1000.1, 0.0], [1000.0, 0.2]])
    exact, _ = relations(points.double())
    assert F.l1_loss(relations(points)[0].double(), exact) < 1e-5
