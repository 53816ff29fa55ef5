import math

import pytest
import torch

from kdbench.methods.itrd import ITRD, correlation_loss, mutual_loss
from kdbench.types import Batch, NetworkProbe, Output, Probe

COUNT = 6


def features(seed: int, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1 + torch.randn(COUNT, width, generator=generator, dtype=torch.float64)


def test_correlation_follows_the_formula():
    student, teacher, order = features(0), features(1), 1.5
    total = 0.0
    for d in range(4):
        columns = []
        for values in (student[:, d].tolist(), teacher[:, d].tolist()):
            mean = sum(values) / COUNT
            std = math.sqrt(sum((v - mean) ** 2 for v in values) / (COUNT - 1))
            columns.append([(v - mean) / std for v in values])
        c = sum(s * t for s, t in zip(*columns, strict=True)) / COUNT
        total += abs(c - 1) ** (2 * order)
    expected = torch.tensor(math.log2(total), dtype=torch.float64)
    torch.testing.assert_close(correlation_loss(student, teacher, order), expected)


def test_correlation_of_equal_features():
    """The std is unbiased and the mean over B is not, so c_d = 1 - 1 / B and not 1."""
    found = correlation_loss(features(0), features(0), 1.01).item()
    assert found == pytest.approx(math.log2(4 * (1 / COUNT) ** 2.02), rel=1e-12)


def test_mutual_follows_the_formula():
    student, teacher = features(0, 3), features(1, 5)
    grams = []
    for feature in (student, teacher):
        rows = [row / row.square().sum().sqrt() for row in feature]
        grams.append([[(a * b).sum().item() for b in rows] for a in rows])
    joint = [[s * t for s, t in zip(*rows, strict=True)] for rows in zip(*grams, strict=True)]
    squares = []
    for matrix in (grams[0], joint):
        trace = sum(matrix[i][i] for i in range(COUNT))
        squares.append(sum((v / trace) ** 2 for row in matrix for v in row))
    assert mutual_loss(student, teacher).item() == pytest.approx(squares[0] - squares[1], rel=1e-12)


def test_mutual_of_a_collapsed_student():
    """All student vectors equal, all teacher vectors orthogonal: 1 - 1 / B."""
    orthogonal = torch.eye(COUNT, dtype=torch.float64)
    assert mutual_loss(torch.ones(COUNT, 3), orthogonal.float()).item() == pytest.approx(
        1 - 1 / COUNT
    )
    assert mutual_loss(orthogonal, features(0)).item() == pytest.approx(0, abs=1e-12)


def test_dead_dimensions_and_a_batch_of_one_are_finite():
    student, teacher = features(0).requires_grad_(), features(1)
    teacher[:, 2] = 0
    correlation_loss(student, teacher, 1.01).backward()
    assert student.grad.isfinite().all()
    assert correlation_loss(features(0)[:1], features(1)[:1], 1.01).isfinite()


@pytest.mark.parametrize("width", [4, 3])
def test_the_mutual_term_reads_the_embedding_only_where_widths_differ(width):
    itrd = ITRD()
    student = NetworkProbe({"pooled": torch.Size([width])})
    teacher = NetworkProbe({"pooled": torch.Size([4])})
    itrd.setup(Probe(student, (teacher,), 5, torch.arange(5)))
    itrd.double()
    feature, target = features(0, width), features(1)
    labels = torch.zeros(COUNT, dtype=torch.int64)
    batch = Batch(torch.empty(0), labels, labels, torch.tensor(1.0))
    outputs = [Output(features(2), {"pooled": pooled}) for pooled in (feature, target)]
    read = feature if width == 4 else itrd.embed(feature)
    terms = itrd(batch, outputs[0], (outputs[1],))
    torch.testing.assert_close(terms["mutual"], mutual_loss(read, target))
    correlation = correlation_loss(itrd.embed(feature), target, 1.01)
    torch.testing.assert_close(terms["correlation"], 2.0 * correlation)
