import pytest
import torch
from torch import nn

from kdbench.losses import ca_weights, dkd_losses, entropy, kd_losses
from kdbench.methods.de_mkd import DEMKD, entropy_weights
from kdbench.methods.dkd import DKD
from kdbench.types import Batch, NetworkProbe, Output, Probe
from support.teachers_example import (
    LABELS,
    ROUNDING,
    STUDENT,
    TEACHERS,
    close,
    distillation,
    gradient,
    random_logits,
    run,
)

BY_ENTROPY = ("softmax_complement", "ratio_complement", "softmax_neg", "inverse")
WEIGHTS = {
    "softmax_complement": [
        [0.37154403, 0.30061240],
        [0.27640862, 0.38601807],
        [0.35204735, 0.31336954],
    ],
    "ratio_complement": [
        [0.38443826, 0.29363131],
        [0.26227094, 0.40014354],
        [0.35329080, 0.30622514],
    ],
    "softmax_neg": [
        [0.40937708, 0.26194149],
        [0.23519211, 0.45821198],
        [0.35543081, 0.27984652],
    ],
    "inverse": [
        [0.43979253, 0.24203432],
        [0.21378619, 0.50020104],
        [0.34642128, 0.25776463],
    ],
}
LOSSES = {  # nckd_weight 1 and 8
    "uniform": (0.32610438, 1.11453284),
    "softmax_complement": (0.35562551, 1.18413583),
    "ratio_complement": (0.36272252, 1.19765384),
    "softmax_neg": (0.38596563, 1.24373300),
    "inverse": (0.40158531, 1.26539216),
}


def test_worked_example_entropies_and_parts():
    flat = [[1.04813038, 1.09769664], [1.09730493, 1.04813038], [1.06844539, 1.09208573]]
    sharp = [[0.52426662, 1.08347736], [1.07850061, 0.52426662], [0.66557268, 1.01735721]]
    close(entropy(TEACHERS, 4.0), flat)
    close(entropy(TEACHERS), sharp)
    parts = [dkd_losses(STUDENT, teacher, LABELS, 4.0) for teacher in TEACHERS]
    tckd = [[0.36728675, 0.00027523], [0.01798231, 0.52563230], [0.36908908, 0.00056476]]
    nckd = [[0.03090685, 0.01124912], [0.00498934, 0.17877085], [0.27110881, 0.17877085]]
    close(torch.stack([part[0] for part in parts]), tckd)
    close(torch.stack([part[1] for part in parts]), nckd)


@pytest.mark.parametrize("weighting", BY_ENTROPY)
def test_worked_example_weights(weighting):
    close(entropy_weights(entropy(TEACHERS), weighting), WEIGHTS[weighting])


@pytest.mark.parametrize("weighting", LOSSES)
def test_worked_example_losses(weighting):
    for nckd_weight, expected in zip((1.0, 8.0), LOSSES[weighting], strict=True):
        method = DEMKD(weighting=weighting, nckd_weight=nckd_weight)
        close(distillation(method), expected)


@pytest.mark.parametrize("weighting", [*BY_ENTROPY, "uniform"])
def test_weights_sum_to_one_and_fall_with_entropy(weighting):
    entropies = entropy(random_logits(4, 6, 10))
    weights = entropy_weights(entropies, weighting)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(6, dtype=torch.float64))
    if weighting != "uniform":
        assert torch.equal(entropies.argsort(0), weights.argsort(0, descending=True))
    if weighting.endswith("complement"):
        assert (weights <= 1 / 3).all()


def test_two_teachers():
    entropies = entropy(TEACHERS[:2])
    found = {weighting: entropy_weights(entropies, weighting) for weighting in BY_ENTROPY}
    torch.testing.assert_close(found["softmax_complement"], found["softmax_neg"])
    torch.testing.assert_close(found["ratio_complement"], found["inverse"])
    torch.testing.assert_close(found["inverse"], entropies.flip(0) / entropies.sum(0))


def test_a_certain_and_a_clueless_teacher():
    certain = torch.zeros(1, 100).index_fill(1, torch.tensor([7]), 500.0)
    entropies = entropy(torch.stack([certain, torch.zeros(1, 100)]))
    close(entropy_weights(entropies, "softmax_complement")[:, 0], [100 / 101, 1 / 101], 1e-6)
    for weighting in BY_ENTROPY:
        twice = entropy_weights(torch.zeros(2, 1), weighting)  # 0 / 0 in two of the formulas
        close(twice, 0.5)
        assert entropy_weights(entropies, weighting).isfinite().all()


@pytest.mark.parametrize("weighting", [*BY_ENTROPY, "uniform", "ca"])
def test_equal_teachers_are_one(weighting):
    """Also a single teacher: DE-MKD is then DKD."""
    expected = distillation(DKD(), teachers=TEACHERS[:1])
    for count in (1, 3):
        equal = TEACHERS[:1].expand(count, -1, -1)
        torch.testing.assert_close(
            distillation(DEMKD(weighting=weighting), teachers=equal), expected
        )


def test_permuted_teachers_give_the_same_loss():
    for decoupling in ("dkd", "none", "weights_split", "entropy_on_nckd"):
        method = DEMKD(decoupling=decoupling)
        torch.testing.assert_close(
            distillation(method), distillation(method, teachers=TEACHERS[[2, 0, 1]])
        )


def test_decoupling():
    """The whole KL is TCKD + (1 - p_y) NCKD; each option weighs its parts by its own entropies."""
    whole = torch.tensor(WEIGHTS["softmax_complement"], dtype=torch.float64)
    target = torch.softmax(TEACHERS / 4, 2)[:, :, 0]
    parts = [dkd_losses(STUDENT, teacher, LABELS, 4.0) for teacher in TEACHERS]
    tckd, nckd = (torch.stack(part) for part in zip(*parts, strict=True))
    recovered = (whole * (tckd + (1 - target) * nckd)).sum(0)
    close(run(DEMKD(decoupling="none"))["kd"], recovered)
    terms = run(DEMKD(decoupling="entropy_on_nckd"))
    torch.testing.assert_close(terms["tckd"], tckd.mean(0))
    close(terms["nckd"], 8 * (whole * nckd).sum(0), 1e-7)
    sure = torch.softmax(TEACHERS, 2)[:, :, 0]
    others = torch.softmax(TEACHERS[:, :, 1:], 2)
    binary_entropy = -(sure * sure.log() + (1 - sure) * (1 - sure).log())
    other_entropy = -(others * others.log()).sum(2)
    terms = run(DEMKD(decoupling="weights_split"))
    for name, part, entropies in (("tckd", tckd, binary_entropy), ("nckd", nckd, other_entropy)):
        weights = (1 - torch.softmax(entropies, 0)) / 2
        factor = 1 if name == "tckd" else 8
        torch.testing.assert_close(terms[name], factor * (weights * part).sum(0))


def test_only_ca_weights_read_labels():
    labels = torch.tensor([1, 2])
    unmoved = DEMKD(decoupling="none")
    torch.testing.assert_close(run(unmoved)["kd"], run(unmoved, labels=labels)["kd"])
    expected = (ca_weights(TEACHERS, labels) * kd_losses(STUDENT, TEACHERS, 4.0)).sum(0)
    by_label = run(DEMKD(decoupling="none", weighting="ca"), labels=labels)["kd"]
    torch.testing.assert_close(by_label, expected)


def test_a_constant_on_the_logits_changes_nothing():
    moved = run(DEMKD(), STUDENT + 7, TEACHERS - 3)
    for name, term in run(DEMKD()).items():
        torch.testing.assert_close(moved[name], term)


def test_a_student_equal_to_all_teachers_is_at_rest():
    method, equal = DEMKD(), STUDENT.expand(3, -1, -1)
    close(distillation(method, teachers=equal), 0.0, ROUNDING)
    close(gradient(method, equal), 0.0, ROUNDING)


def test_scales():
    full = distillation(DEMKD())
    torch.testing.assert_close(distillation(DEMKD(divide_by_k=True)), full / 3)
    torch.testing.assert_close(distillation(DEMKD(kd_weight=0.5)), full / 2)
    torch.testing.assert_close(distillation(DEMKD(), epoch=5.0), full / 4)
    torch.testing.assert_close(distillation(DEMKD(warmup_epochs=0), epoch=1.0), full)


class Given(nn.Module):
    """A projection whose output is prescribed."""

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        return feature


@pytest.mark.parametrize(("divide_by_k", "expected"), [(False, 0.36224408), (True, 0.12074803)])
def test_worked_example_features(divide_by_k, expected):
    maps = torch.tensor(
        [
            [[1, 2, 0, 1], [0.5, 0, 1, 1]],  # the student's, projected
            [[1, 1, 0, 0], [0, 0, 1, 2]],
            [[2, 2, 1, 1], [0.5, 0.5, 0, 1]],
            [[0, 2, 0, 1], [1, 0, 1, 0]],
        ],
        dtype=torch.float64,
    ).reshape(4, 2, 1, 2, 2)
    method = DEMKD(feature_weight=1.0, divide_by_k=divide_by_k)
    network = NetworkProbe({"map": torch.Size((1, 2, 2))})
    method.setup(Probe(network, (network,) * 3, 3, LABELS))
    method.projections = nn.ModuleList(Given() for _ in range(3))
    batch = Batch(torch.empty(0), LABELS, torch.arange(2), torch.tensor(1.0))
    teachers = [Output(z, {"map": m}) for z, m in zip(TEACHERS, maps[1:], strict=True)]
    terms = method(batch, Output(STUDENT, {"map": maps[0]}), tuple(teachers))
    close(terms["feature"].mean(), expected)
