import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods.wasserstein import cka_distances, cosine_distances, sharpened, transport_cost
from kdbench.methods.wkd_l import WKDL
from kdbench.types import Affine, Batch, NetworkProbe, Output, Probe

K = 5


def draw(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def prepared(weights: torch.Tensor, images: int = 7, **settings) -> WKDL:
    teacher = NetworkProbe(
        {},
        Affine(weights, weights[:, 0]),
        class_means=lambda _: weights.abs(),
        class_features=lambda _: draw(9, K, 7, 3)[:, :images],
    )
    method = WKDL(**{"prototypes": "classifier"} | settings)
    method.setup(Probe(NetworkProbe({}), (teacher,), K, torch.arange(K)))
    return method


def batch(labels: torch.Tensor, epoch: float = 1.0) -> Batch:
    return Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(epoch))


def sinkhorn(p: list[float], q: list[float], costs: list[list[float]]) -> float:
    """The plan's cost, written out: regularisation 0.05, 10 iterations, u before v's first use."""
    size = range(len(p))
    kernel = [[math.exp(-costs[i][j] / 0.05) for j in size] for i in size]
    u = [1 / len(p)] * len(p)
    for _ in range(10):
        v = [q[j] / sum(kernel[i][j] * u[i] for i in size) for j in size]
        u = [p[i] / sum(kernel[i][j] * v[j] for j in size) for i in size]
    return sum(u[i] * kernel[i][j] * v[j] * costs[i][j] for i in size for j in size)


def test_matches_the_formula_by_hand():
    weights, student, teacher = draw(0, K, 3), draw(1, 4, K), draw(2, 4, K)
    labels = torch.tensor([0, 4, 2, 2])
    outputs = Output(student, {}), (Output(teacher, {}),)
    terms = prepared(weights, sharpness=2.0)(batch(labels), *outputs)
    cosine = torch.nn.functional.cosine_similarity(weights[:, None], weights[None], dim=2)
    costs = (1 - torch.exp(-2 * (1 - cosine))).tolist()
    transport, target = [], []
    for z_s, z_t, y in zip(student, teacher, labels.tolist(), strict=True):
        others = [k for k in range(K) if k != y]
        p, q = (torch.softmax(z[others] / 8, dim=0).tolist() for z in (z_s, z_t))
        among = [[costs[i][j] for j in others] for i in others]
        transport.append(800 * sinkhorn(p, q, among))
        target.append((-torch.softmax(z_t, 0)[y] * torch.log_softmax(z_s, 0)[y]).item())
    assert terms["transport"].tolist() == pytest.approx(transport, rel=1e-9)
    assert terms["target"].tolist() == pytest.approx(target, rel=1e-12)


def test_approaches_the_exact_distance_of_two_classes():
    """Two points a cost c apart: all that can move is |p - q|, at c each."""
    p, q = torch.tensor([[0.7, 0.3]]).double(), torch.tensor([[0.2, 0.8]]).double()
    costs = torch.tensor([[0.0, 0.4], [0.4, 0.0]]).double()
    found = transport_cost(p.log(), q.log(), costs, regularization=0.02, iterations=500)
    assert found.item() == pytest.approx(0.4 * 0.5, rel=1e-6)


def test_costs_lie_between_classes_only():
    prototypes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    costs = sharpened(cosine_distances(prototypes), 1.0)
    expected = [0.0, 0.0, 1 - math.exp(-1), 1 - math.exp(-2)]
    assert costs[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(costs, costs.T)


def test_extreme_logits_have_a_finite_gradient():
    student, teacher = (100 * draw(seed, 4, K).float() for seed in (1, 2))
    student.requires_grad_()
    method = prepared(draw(0, K, 3).float(), temperature=1.0)
    terms = method(batch(torch.tensor([0, 4, 2, 2])), Output(student, {}), (Output(teacher, {}),))
    sum(term.sum() for term in terms.values()).backward()
    assert student.grad.isfinite().all()


def test_the_transport_weight_falls_to_nothing():
    method = prepared(draw(0, K, 3))
    outputs = Output(draw(1, 4, K), {}), (Output(draw(2, 4, K), {}),)
    labels = torch.tensor([0, 4, 2, 2])
    first = method(batch(labels), *outputs)
    for epoch, factor in ((150, 1.0), (195, 0.5), (240, 0.0)):
        terms = method(batch(labels, float(epoch)), *outputs)
        expected = factor * first["transport"]
        torch.testing.assert_close(terms["transport"], expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(terms["target"], first["target"])


def test_prototypes_are_the_classifier_or_class_means():
    weights = draw(0, K, 3)
    means = prepared(weights, prototypes="class_means").costs
    torch.testing.assert_close(means, sharpened(cosine_distances(weights.abs()), 1.0))
    assert "costs" in prepared(weights).state_dict()
    probe = Probe(NetworkProbe({}), (NetworkProbe({}),), K, torch.arange(K))
    with pytest.raises(ConfigError, match="no linear classifier"):
        WKDL(prototypes="classifier").setup(probe)


def test_the_published_costs_are_linear_cka():
    """<X_i' X_j, X_i' X_j> / (|X_i' X_i| |X_j' X_j|) of centred features, written out."""
    features = draw(9, K, 7, 3)
    centred = features - features.mean(dim=1, keepdim=True)
    expected = torch.zeros(K, K).double()
    for i in range(K):
        for j in range(K):
            own, both, other = (
                (centred[a].T @ centred[b]).norm() for a, b in ((i, i), (i, j), (j, j))
            )
            expected[i, j] = 1 - both**2 / (own * other)
    torch.testing.assert_close(cka_distances(features), expected, rtol=1e-9, atol=1e-12)
    costs = prepared(draw(0, K, 3), prototypes="cka").costs
    torch.testing.assert_close(costs, sharpened(expected, 1.0).float())
    flat = torch.cat([features[:1] * 0, features[1:]])
    assert cka_distances(flat)[0].tolist() == [0.0] + [1.0] * (K - 1)
    with pytest.raises(ConfigError, match="CKA needs two or more training images of every class"):
        prepared(draw(0, K, 3), prototypes="cka", images=1)


def test_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.regularization must be 0.0125 or more"):
        WKDL(regularization=0.001)
    with pytest.raises(ConfigError, match=r"method.decay_start=240 must be below 240"):
        WKDL(decay_start=240)
