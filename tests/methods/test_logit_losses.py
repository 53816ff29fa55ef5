"""Losses of short formulas over logits, each written out another way."""

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import cross_entropy, kd_loss, ttm_loss
from kdbench.methods.bkl import BKL, bkl_loss
from kdbench.methods.crld import CRLD
from kdbench.methods.logit_l2 import LogitL2
from kdbench.methods.luminet import LumiNet, perception
from kdbench.methods.pld import PLD, pld_loss
from kdbench.methods.sld import SLD, swapped
from kdbench.methods.tekap import TeKAP
from kdbench.methods.ttm import TTM
from kdbench.methods.wttm import WTTM, power_sum
from kdbench.types import Batch, NetworkProbe, Output, Probe
from support.logit_batches import LABELS, B, K, check_warm_up, logits, terms_of


def test_logit_l2_mean_square_of_the_logits_difference():
    student = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 5.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    batch = Batch(torch.empty(0), torch.tensor([0, 1]), torch.arange(2), torch.tensor(1.0))
    terms = LogitL2(l2_weight=0.3)(batch, Output(student, {}), (Output(teacher, {}),))
    assert terms["l2"].tolist() == pytest.approx([0.3 * (1 + 9 + 0.25) / 3, 0])


def test_logit_l2_refuses_a_negative_weight():
    with pytest.raises(ConfigError, match=r"method\.l2_weight must be 0 or more"):
        LogitL2(l2_weight=-1.0)


def rows(seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(4, 6, generator=generator, dtype=torch.float64)


def power_case(method: TTM | WTTM) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """A method's terms at power 0.3, the rows' sums of powers, and divergences from the target."""
    student, teacher = rows(0), rows(1)
    powers = teacher.softmax(1) ** 0.3
    target = powers / powers.sum(1, keepdim=True)
    divergence = (target * (target.log() - student.softmax(1).log())).sum(1)
    batch = Batch(torch.empty(0), torch.zeros(4).long(), torch.arange(4), torch.tensor(1.0))
    terms = method(batch, Output(student, {}), (Output(teacher, {}),))
    return terms, powers.sum(1), divergence


def test_ttm_the_target_is_the_teacher_s_distribution_to_a_power():
    terms, _, divergence = power_case(TTM(power=0.3, ttm_weight=45.0))
    torch.testing.assert_close(terms["ttm"], 45 * divergence, rtol=1e-12, atol=0)


def test_ttm_limits():
    """Power 1 is KD at T = 1; a power near 0 pulls to the uniform; zero at the target."""
    student, teacher = rows(0), rows(1)
    torch.testing.assert_close(ttm_loss(student, teacher, 1.0), kd_loss(student, teacher, 1.0))
    uniform = torch.zeros_like(teacher)
    torch.testing.assert_close(
        ttm_loss(student, teacher, 1e-9), ttm_loss(student, uniform, 1.0), rtol=1e-7, atol=0
    )
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(ttm_loss(0.2 * teacher + 7, teacher, 0.2), zero)


def test_ttm_finite_where_probabilities_underflow():
    assert ttm_loss(rows(0, 400.0).float(), rows(1, 400.0).float(), 0.1).isfinite().all()


def test_ttm_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method\.power must be above 0"):
        TTM(power=0.0)


def test_wttm_each_sample_weighs_its_power_sum():
    terms, sums, divergence = power_case(WTTM(power=0.3, wttm_weight=4.0))
    torch.testing.assert_close(terms["wttm"], 4 * sums * divergence, rtol=1e-12, atol=0)


def test_wttm_the_power_sum_grows_with_the_teacher_s_doubt():
    certain, uniform = torch.tensor([[1e4, 0.0, 0.0, 0.0]]), torch.zeros(1, 4)
    assert power_sum(certain, 0.2).item() == 1
    assert power_sum(uniform, 0.2).item() == pytest.approx(4**0.8)
    torch.testing.assert_close(power_sum(rows(1), 1.0), torch.ones(4, dtype=torch.float64))


def test_wttm_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method\.wttm_weight must be 0 or more"):
        WTTM(wttm_weight=-4.0)


def test_bkl_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    q, p = torch.softmax(student / 2, dim=1), torch.softmax(teacher / 2, dim=1)
    both = 0.3 * p * (p / q).log() + 0.7 * q * (q / p).log()
    expected = 4 * (both / ((q**2 + p**2) ** 0.25 + 1e-12)).sum(dim=1)
    torch.testing.assert_close(bkl_loss(student, teacher, 2.0, 0.3, 0.5, 1e-12), expected)
    found = terms_of(BKL(2.0, alpha=0.3), student, teacher)
    torch.testing.assert_close(found["bkl"], 0.9 * expected)


def test_bkl_contains_kl_and_its_reverse():
    student, teacher = logits(0), logits(1)
    settings = {"temperature": 2.0, "beta": 1.0, "eps": 1e-300}
    forward = bkl_loss(student, teacher, alpha=1.0, **settings)
    torch.testing.assert_close(forward, kd_loss(student, teacher, 2.0))
    reverse = bkl_loss(student, teacher, alpha=0.0, **settings)
    torch.testing.assert_close(reverse, kd_loss(teacher, student, 2.0))


def test_bkl_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.beta must be from 0 to 1, not 1.5"):
        BKL(beta=1.5)


def test_pld_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    expected = []
    for own, theirs, y in zip(student, teacher, LABELS.tolist(), strict=True):
        order = [y] + [k for k in theirs.argsort(descending=True).tolist() if k != y]
        p = torch.softmax(theirs, dim=0)
        expected.append(
            sum(
                p[k] * (own[order[place:]].exp().sum().log() - own[k])
                for place, k in enumerate(order)
            ).item()
        )
    assert pld_loss(student, teacher, LABELS, 1.0).tolist() == pytest.approx(expected, rel=1e-9)


def test_pld_first_place_is_the_label_s_cross_entropy():
    """A teacher that is certain of the label leaves the cross-entropy alone."""
    teacher = torch.full((6, K), -1e4).double().scatter(1, LABELS.unsqueeze(1), 0.0)
    terms = terms_of(PLD(), logits(0), teacher)
    expected = torch.nn.functional.cross_entropy(logits(0), LABELS, reduction="none")
    torch.testing.assert_close(terms["pld"], expected)
    assert torch.equal(terms["ce"], torch.zeros(6))


def test_pld_gradient_is_exact():
    student = logits(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: pld_loss(z, logits(1), LABELS, 1.0), student)


WEAK, STRONG = logits(0), logits(1)
TEACHER = torch.stack([logits(2), logits(3)])


def test_crld_matches_the_formula_by_hand():
    """Within the views the weak view's mask decides, across them the strong view's."""
    method = CRLD(weak_threshold=0.8, strong_threshold=0.6)
    terms = terms_of(method, torch.stack([WEAK, STRONG]), TEACHER)
    certain = torch.softmax(TEACHER, dim=-1).amax(dim=-1)
    weak_mask, strong_mask = (certain[0] >= 0.8).double(), (certain[1] >= 0.6).double()
    assert 0 < weak_mask.sum() < 6
    assert 0 < strong_mask.sum() < 6
    within = kd_loss(WEAK, TEACHER[0], 4.0) + kd_loss(STRONG, TEACHER[1], 4.0)
    cross = kd_loss(STRONG, TEACHER[0], 4.0) + kd_loss(WEAK, TEACHER[1], 4.0)
    label = cross_entropy(WEAK, LABELS) + cross_entropy(STRONG, LABELS)
    for name, expected in (
        ("ce", label), ("within", 2 * weak_mask * within), ("cross", 0.5 * strong_mask * cross)
    ):  # fmt: skip
        torch.testing.assert_close(terms[name].mean(), expected.mean())


def test_crld_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.weak_threshold must be from 0 to 1, not 2"):
        CRLD(weak_threshold=2.0)


def test_tekap_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    noise = torch.stack([logits(seed, scale=1.0) for seed in (2, 3, 4)], dim=1)
    terms = terms_of(TeKAP(), student, teacher, drawn=noise)
    torch.testing.assert_close(terms["kd"], 0.9 * kd_loss(student, teacher, 4.0))
    noisy = [kd_loss(student, 0.9 * teacher + 0.1 * noise[:, i], 4.0) for i in range(3)]
    torch.testing.assert_close(terms["noisy"], 0.9 * 0.8 * sum(noisy))


def test_tekap_weight_is_that_of_its_control():
    """Without noise every teacher is the same: KD at 3.06."""
    method = TeKAP(teacher_scale=1.0, noise_scale=0.0)
    student, teacher = logits(0), logits(1)
    terms = terms_of(method, student, teacher, drawn=torch.zeros(B, 3, K))
    torch.testing.assert_close(terms["kd"] + terms["noisy"], 3.06 * kd_loss(student, teacher, 4.0))


def test_tekap_noise_is_drawn_anew_and_from_the_generator():
    method = TeKAP()
    method.setup(Probe(NetworkProbe({}), (NetworkProbe({}),), K, LABELS))
    batch = Batch(torch.empty(0), LABELS, torch.arange(B), torch.tensor(1.0))
    generator = torch.Generator().manual_seed(0)
    first, second = method.draw(batch, generator), method.draw(batch, generator)
    assert first.shape == (B, 3, K)
    assert not torch.equal(first, second)
    assert torch.equal(method.draw(batch, torch.Generator().manual_seed(0)), first)


def test_luminet_matches_the_formula_by_hand():
    student, teacher = logits(0), logits(1)
    tall = []
    for z in (student, teacher):
        columns = [
            [(value - mean) / (sum((v - mean) ** 2 for v in column) / len(column) + 1e-5) ** 0.5
             for value in column]
            for column, mean in ((c, sum(c) / len(c)) for c in z.T.tolist())
        ]  # fmt: skip
        tall.append(torch.tensor(columns).double().T)
    own, theirs = (torch.softmax(h / 4, dim=1) for h in tall)
    expected = 33**2 * (theirs * (theirs / own).log()).sum(dim=1).mean()
    found = terms_of(LumiNet(), student, teacher)["luminet"]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_luminet_scale_and_offset_of_a_class_do_not_matter():
    student, teacher = logits(0), logits(1)
    moved = student * torch.linspace(1, 3, 10).double() + torch.linspace(-5, 5, 10).double()
    torch.testing.assert_close(perception(moved, 1e-12), perception(student, 1e-12))
    first, second = (terms_of(LumiNet(eps=1e-12), z, teacher)["luminet"] for z in (student, moved))
    torch.testing.assert_close(first, second)


def test_luminet_the_warm_up_spares_the_label_term():
    check_warm_up(LumiNet(), 20, "luminet")


def test_luminet_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.temperature must be above 0"):
        LumiNet(temperature=0.0)


def test_sld_a_wrong_top_changes_places_with_the_label():
    scores = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    expected = torch.tensor([[1.0, 3.0, 2.0], [0.0, 5.0, 4.0]])
    assert torch.equal(swapped(scores, torch.tensor([1, 1])), expected)


@pytest.mark.parametrize("epoch", [150.0, 151.0])
def test_sld_matches_the_formula_by_hand(epoch):
    student, teacher = torch.stack([logits(0), logits(1)]), torch.stack([logits(2), logits(3)])
    expected = 0.0
    for own, theirs in zip(student, teacher, strict=True):
        for temperature in range(1, 7):
            expected += kd_loss(own, swapped(theirs, LABELS), temperature).mean()
            if epoch > 150:
                expected += kd_loss(own, swapped(own, LABELS), temperature).mean()
    found = terms_of(SLD(), student, teacher, epoch=epoch)
    torch.testing.assert_close(found["swap"].mean(), 0.9 * expected)


def test_sld_the_gradient_runs_through_the_swapped_student_too():
    student, teacher = torch.stack([logits(0), logits(1)]), torch.stack([logits(2), logits(3)])

    def gradient(epoch):
        own = student.clone().requires_grad_()
        terms_of(SLD(), own, teacher, epoch=epoch)["swap"].mean().backward()
        return own.grad

    fixed = student.clone().requires_grad_()
    for view in (0, 1):
        for temperature in range(1, 7):
            theirs = swapped(student[view], LABELS)
            (0.9 * kd_loss(fixed[view], theirs, temperature)).mean().backward()
    assert not torch.allclose(gradient(200.0) - gradient(1.0), fixed.grad, rtol=0.01)


def test_sld_refuses_settings_without_meaning():
    with pytest.raises(ConfigError, match=r"method.temperatures must be above 0"):
        SLD(temperatures=[1.0, 0.0])
