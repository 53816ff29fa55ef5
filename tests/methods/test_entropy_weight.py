"""The properties and worked examples of the notes on ER-KD and EA-KD, by their numbers."""

import math

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import dkd_losses, kd_loss
from kdbench.methods.base import Method
from kdbench.methods.dkd import DKD
from kdbench.methods.dot import DOT
from kdbench.methods.entropy_weight import EntropyWeight, entropy_weight
from kdbench.methods.kd import KD
from kdbench.methods.logit_standardization import standardise
from kdbench.methods.reviewkd import hierarchical_context_loss
from kdbench.types import Batch, Output

T = 4.0
LOG_4, LOG_100 = math.log(4), math.log(100)


def tensor(*rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# The notes' common inputs, and their labels.
TEACHER = tensor([4, 1, 0, -1], [1, 0.5, 0, -0.5])
STUDENT = tensor([2, 1, 0.5, -1], [0, 0.8, 0.2, -0.4])
LABELS = torch.tensor([0, 0])


def random_logits(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*(shape or (6, 100)), generator=generator, dtype=torch.float64)


def entropies(logits: torch.Tensor, temperature: float) -> list[float]:
    """-sum_c q_c log q_c of each row, written out."""
    found = []
    for row in logits.tolist():
        powers = [math.exp(value / temperature) for value in row]
        shares = [power / sum(powers) for power in powers]
        found.append(-sum(share * math.log(share) for share in shares))
    return found


def weight(kind: str, temperature: float, student=STUDENT, teacher=TEACHER, bound=None):
    return entropy_weight(student, teacher, kind, temperature, bound)


def terms(inner: Method, student=STUDENT, teacher=TEACHER, labels=LABELS, epoch=1.0, **settings):
    method = EntropyWeight(inner, **settings)
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(epoch))
    return method(batch, Output(student, {}), (Output(teacher, {}),))


def kd(**settings) -> torch.Tensor:
    """The distillation term alone, KD of weight 1 at T = 4."""
    return terms(KD(T, ce_weight=1.0, kd_weight=1.0), **settings)["kd"]


def close(found: torch.Tensor, *expected: float) -> None:
    torch.testing.assert_close(found.reshape(-1), tensor(*expected), rtol=0, atol=6e-9)


# --- 7.1 ER-KD ----------------------------------------------------------------------------------


def test_er_1_uncertain_teachers_weigh_log_c_and_certain_ones_nothing():
    uniform = torch.zeros(6, 100).double()
    for temperature in (0.5, 4.0):
        close(weight("er", temperature, teacher=uniform), *[4.60517019] * 6)
    certain = 1e4 * torch.eye(100).double()[:6]
    assert weight("er", 4.0, teacher=certain).abs().max() < 1e-30
    loss = kd(student=random_logits(0), teacher=certain, labels=torch.arange(6))
    assert loss.abs().max() < 1e-30


def test_er_2_reads_the_teacher_s_distribution_alone():
    teacher, order = random_logits(0), torch.randperm(100)
    expected = weight("er", 4.0, random_logits(1), teacher)
    for student, same in (
        (random_logits(2), teacher),
        (random_logits(1), teacher + 7),
        (random_logits(1), teacher[:, order]),
    ):
        torch.testing.assert_close(weight("er", 4.0, student, same), expected, rtol=1e-12, atol=0)


def test_er_3_more_temperature_more_weight():
    found = torch.stack([weight("er", float(t))[0] for t in (1, 2, 3, 4)])
    close(found, 0.31063893, 0.92771180, 1.16712608, 1.26254644)


def test_er_4_equal_up_to_a_shift_is_no_loss():
    student = (TEACHER + 3).requires_grad_()
    loss = kd(student=student).sum()
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert gradient.abs().max() < 1e-12


def test_er_5_each_sample_has_its_own_weight():
    student, teacher, labels = random_logits(0), random_logits(1), torch.arange(6)
    losses = kd_loss(student, teacher, T)
    weights = tensor(*entropies(teacher, 4.0))
    found = kd(student=student, teacher=teacher, labels=labels)
    torch.testing.assert_close(found, weights * losses, rtol=1e-12, atol=0)
    outer = kd(student=student, teacher=teacher, labels=labels, weight_reduction="batch_outer")
    torch.testing.assert_close(outer, weights.mean() * losses.mean(), rtol=1e-12, atol=0)
    assert (outer / found.mean() - 1).abs() > 1e-4


def test_er_6_gradients_are_kd_s_times_the_weight():
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    found = kd(student=student, teacher=teacher, labels=torch.arange(6)).mean()
    (gradient,) = torch.autograd.grad(found, student)
    (plain,) = torch.autograd.grad(kd_loss(student, teacher, T).mean(), student)
    expected = tensor(*entropies(teacher, 4.0))[:, None] * plain
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-13)


def test_er_7_its_temperature_changes_the_weight_alone():
    cold, warm = (kd(entropy_temperature=t) for t in (1.0, 4.0))
    torch.testing.assert_close(warm / cold, weight("er", 4.0) / weight("er", 1.0))


# --- 7.2 EA-KD ----------------------------------------------------------------------------------


def test_ea_1_between_half_and_all_of_the_teacher_s_entropy():
    student, teacher = random_logits(0), random_logits(1)
    base = weight("er", 3.0, student, teacher)
    found = weight("ea", 3.0, student, teacher)
    assert ((found > base / 2) & (found < base)).all()
    close(weight("ea", 3.0, 0 * student, teacher) / base, *[1.0] * 6)
    certain = 1e4 * torch.eye(100).double()[:6]
    close(weight("ea", 3.0, certain, teacher) / base, *[0.5] * 6)


def test_ea_2_interaction_is_symmetric_and_the_weight_is_not():
    there, back = weight("interact", 3.0), weight("interact", 3.0, TEACHER, STUDENT)
    torch.testing.assert_close(there, back, rtol=1e-12, atol=0)
    assert not torch.allclose(weight("ea", 3.0), weight("ea", 3.0, TEACHER, STUDENT))


def test_ea_3_a_certain_teacher_weighs_nothing():
    certain = 1e4 * torch.eye(4).double()[:2]
    assert weight("ea", 3.0, teacher=certain).abs().max() < 1e-30


def test_ea_4_linear_in_the_student_s_entropy():
    base, student = tensor(*entropies(TEACHER, 3.0)), tensor(*entropies(STUDENT, 3.0))
    for bound in (None, 100.0):
        slope = base / (2 * (bound or LOG_4))
        found = weight("ea", 3.0, bound=bound)
        torch.testing.assert_close(found, base / 2 + slope * student, rtol=1e-12, atol=0)


EXAMPLE_2_GRADIENT = [
    [-0.29681879, 0.09810511, 0.13920992, 0.05950376],
    [-0.16163535, 0.07864748, 0.05202904, 0.03095884],
]


def test_ea_5_the_weight_is_a_constant():
    student = STUDENT.clone().requires_grad_()
    settings = {"student": student, "weight": "ea", "entropy_temperature": 3.0}
    (gradient,) = torch.autograd.grad(kd(**settings).mean(), student)
    close(gradient, *EXAMPLE_2_GRADIENT[0], *EXAMPLE_2_GRADIENT[1])
    (attached,) = torch.autograd.grad(kd(**settings, detach=False).mean(), student)
    close(attached[0, :1], -0.30200549)


def test_ea_6_both_uncertain_weigh_log_c():
    uniform = torch.zeros(2, 100).double()
    close(weight("ea", 3.0, uniform, uniform), LOG_100, LOG_100)


def test_ea_7_the_released_bound_leaves_half_of_er():
    student, teacher = random_logits(0), random_logits(1)
    ratio = weight("ea", 3.0, student, teacher, 100.0) / weight("er", 3.0, student, teacher)
    assert ((ratio > 0.5) & (ratio < 0.52302585)).all()
    uniform = torch.zeros(1, 100).double()
    close(weight("ea", 3.0, uniform, uniform, 100.0) / LOG_100, 0.52302585)


def test_ea_8_independent_of_kd_s_temperature():
    for temperature in (1.0, 4.0):
        found = terms(KD(temperature, kd_weight=1.0), weight="ea")["kd"]
        plain = kd_loss(STUDENT, TEACHER, temperature)
        torch.testing.assert_close(found / plain, weight("ea", 4.0), rtol=1e-12, atol=0)


# --- 7.3 Hosts ----------------------------------------------------------------------------------


def test_hosts_1_and_2_dkd():
    tckd, nckd = dkd_losses(STUDENT, TEACHER, LABELS, T)
    target = torch.softmax(TEACHER / T, 1)[:, 0]
    torch.testing.assert_close(tckd + (1 - target) * nckd, kd_loss(STUDENT, TEACHER, T))
    same = TEACHER[:1].repeat(2, 1)  # equal teachers, equal weights k
    k = weight("er", 4.0, teacher=same)[0]
    plain = terms(DKD(), teacher=same, weight="none")
    for reduction in ("per_sample", "batch_outer"):
        found = terms(DKD(), teacher=same, weight_reduction=reduction)
        for name in ("tckd", "nckd"):
            torch.testing.assert_close(found[name].mean(), k * plain[name].mean())


def test_hosts_3_warm_up_is_the_host_s():
    half, full = (terms(DKD(warmup_epochs=20), epoch=epoch) for epoch in (10.0, 20.0))
    torch.testing.assert_close(half["nckd"], full["nckd"] / 2)
    torch.testing.assert_close(half["ce"], full["ce"])


class Coupled(Method):
    """Terms of every shape, each 1 everywhere, as a recipe of several views may have."""

    views = 2
    batch_terms = ("classes",)

    def forward(self, batch, student, teachers):
        views, count, _ = student.logits.shape
        one = student.logits.new_ones
        return {
            "ce": one(count),
            "views": one(views, count),
            "image": one(count),
            "classes": one(()),
        }


def test_hosts_5_labels_and_batch_terms_stay_and_every_view_has_its_own_weight():
    student, teacher = random_logits(0, 2, 6, 10), random_logits(1, 2, 6, 10)
    method = EntropyWeight(Coupled(), weight="ea")
    batch = Batch(torch.empty(0), torch.arange(6), torch.arange(6), torch.tensor(1.0))
    found = method(batch, Output(student, {}), (Output(teacher, {}),))
    expected = torch.stack([weight("ea", 4.0, s, t) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(found["views"], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(found["image"], expected[0], rtol=1e-12, atol=0)
    assert (found["ce"] == 1).all()
    assert found["classes"] == 1


def test_a_term_without_samples_is_refused():
    inner = Coupled()
    inner.batch_terms = ()
    logits = random_logits(0, 2, 6, 10)
    with pytest.raises(ConfigError, match="term 'classes' of Coupled couples the batch"):
        EntropyWeight(inner)(None, Output(logits, {}), (Output(logits, {}),))


def test_wraps_recipes_of_one_teacher_and_wrappers():
    several = KD()
    several.num_teachers = None
    with pytest.raises(ConfigError, match=r"method\.inner reads several teachers"):
        EntropyWeight(several)
    assert [stream.gap for stream in EntropyWeight(DOT(KD())).streams] == [-0.075, 0.075]
    with pytest.raises(ConfigError, match=r"method\.bound must be above 0"):
        EntropyWeight(KD(), bound=0.0)


# --- 7.4 Worked examples ------------------------------------------------------------------------


def test_example_1():
    close(kd_loss(STUDENT, TEACHER, T), 0.58827813, 0.14895783)
    close(weight("er", 4.0), 1.26254644, 1.37659316)
    found = terms(KD(T, 0.1, 0.9))
    close(found["kd"], 0.9 * 0.74272846, 0.9 * 0.20505434)
    close(kd().mean(), 0.47389140)
    close(kd(weight_reduction="batch_outer"), 0.48641716)
    close(found["ce"], 0.1 * 0.49518190, 0.1 * 1.63261987)
    close(found["ce"].mean() + found["kd"].mean(), 0.53289235)
    plain = terms(KD(T, 0.1, 0.9), weight="none")
    close(plain["ce"].mean() + plain["kd"].mean(), 0.43814627)


def test_example_2():
    close(tensor(*entropies(STUDENT, 3.0)), 1.32805846, 1.37561622)
    for bound, weights, loss in (
        ("log_c", (1.14261158, 1.36386283), 0.43766573),
        (LOG_100, (0.75185342, 0.88905606), 0.28736539),
        (100.0, (0.59131310, 0.69398494), 0.22561553),
    ):
        close(weight("ea", 3.0, bound=None if bound == "log_c" else bound), *weights)
        close(kd(weight="ea", entropy_temperature=3.0, bound=bound).mean(), loss)
    found = terms(KD(T, 0.1, 0.9), weight="ea", entropy_temperature=3.0)
    close(found["ce"].mean() + found["kd"].mean(), 0.50028924)


@pytest.mark.parametrize(
    ("beta", "losses", "plain", "er", "outer", "ea"),
    [
        (8.0, (0.79649152, 0.17307133), 0.48478143, 0.62192817, 0.63970293, 0.57306300),
        (3.0, (0.65712888, 0.15655215), 0.40684051, 0.52258217, 0.53685445, 0.48217936),
    ],
)
def test_example_3a_dkd(beta, losses, plain, er, outer, ea):
    def dkd(**settings) -> torch.Tensor:
        found = terms(DKD(T, nckd_weight=beta, warmup_epochs=1), **settings)
        return found["tckd"] + found["nckd"]

    close(dkd(weight="none"), *losses)
    close(dkd(weight="none").mean(), plain)
    close(dkd().mean(), er)
    close(dkd(weight_reduction="batch_outer"), outer)
    close(dkd(weight="ea", entropy_temperature=3.0).mean(), ea)


def test_example_3b_hierarchical_context_loss():
    student = tensor([[[1, 2], [0, 1]]], [[[0, 1], [1, 0]]])
    teacher = tensor([[[0, 2], [1, 1]]], [[[1, 1], [0, 2]]])
    loss = hierarchical_context_loss(student, teacher)
    close(loss.mean(), 0.70833333)
    close((weight("er", 4.0) * loss).mean(), 0.95607903)
    close((weight("ea", 3.0) * loss).mean(), 0.92919430)


def test_example_3c_standardised_logits():
    student, teacher = standardise(STUDENT, 1e-7), standardise(TEACHER, 1e-7)
    loss = kd_loss(student, teacher, 2.0)
    close(loss, 0.05026745, 0.50586758)
    scored = weight("ea", 3.0, student, teacher)
    close(scored, 1.32176805, 1.32480607)
    close((weight("ea", 3.0) * loss).mean(), 0.37368508)
    close((scored * loss).mean(), 0.36830917)


def test_ablation_and_normalised_weights():
    base = tensor(*entropies(TEACHER, 3.0))
    close(weight("inverse", 3.0), *(LOG_4 - base))
    shares = (base / base.mean() * kd_loss(STUDENT, TEACHER, T)).mean()
    found = kd(entropy_temperature=3.0, normalise="batch_mean")
    torch.testing.assert_close(found, shares, rtol=1e-12, atol=0)


def test_observes_its_weight():
    method = EntropyWeight(KD())
    seen = method.observe(None, Output(STUDENT, {}), (Output(TEACHER, {}),))
    close(seen["weight"], 1.26254644, 1.37659316)
