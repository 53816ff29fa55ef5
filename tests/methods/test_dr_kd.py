"""The properties and worked examples of DR-KD's notes (sections 7 and 2.2), in float64.

Not here: property 14 (a teacher is the same after an epoch) and the schedule's check are about
training and not about the loss: test_loop.py holds a run against a loop over a frozen teacher.
"""

import math

import pytest
import torch
from torch import Tensor

from kdbench.errors import ConfigError
from kdbench.losses import smoothed_labels
from kdbench.methods.dr_kd import DRKD, is_wrong, rectify
from kdbench.methods.tfkd_self import TfKDSelf
from kdbench.types import Batch, Output


def double(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logits(seed: int, rows: int = 8, classes: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


STUDENT, TEACHER = logits(0), logits(1)
LABELS = TEACHER.argmax(1)
LABELS[::2] = (LABELS[::2] + 1 + torch.arange(4)) % 5  # the teacher is wrong in every other row
RIGHT = TEACHER.argmax(1) == LABELS


def terms(student, teacher, labels, method=None, **settings) -> dict[str, Tensor]:
    batch = Batch(torch.empty(0), labels, torch.arange(len(labels)), torch.tensor(1.0))
    return (method or DRKD(**settings))(batch, Output(student, {}), (Output(teacher, {}),))


def loss(student, teacher, labels, method=None, **settings) -> Tensor:
    return sum(term.mean() for term in terms(student, teacher, labels, method, **settings).values())


def gradient(student, teacher, labels, **settings) -> Tensor:
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, teacher, labels, **settings), student)[0]


# --- Rectification -----------------------------------------------------------------------------


def test_example_1_exchanges_the_top_and_the_true_value():
    teacher = double([[1, 4, 2, 0], [3, -1, 0.5, 2], [2, 2, 0, 1]])
    labels = torch.tensor([2, 0, 1])
    before = teacher.clone()
    expected = double([[1, 2, 4, 0], [3, -1, 0.5, 2], [2, 2, 0, 1]])
    assert torch.equal(rectify(teacher, labels), expected)
    assert torch.equal(teacher, before), "property 7: the input is not modified"
    assert is_wrong(teacher, labels).tolist() == [True, False, False]


def test_it_is_a_transposition_that_puts_the_label_on_top():
    """Properties 1 to 4 and 6."""
    assert 0 < RIGHT.sum() < len(RIGHT)
    rectified = rectify(TEACHER, LABELS)
    assert torch.equal(rectified[RIGHT], TEACHER[RIGHT])
    assert torch.equal(rectified.gather(1, LABELS[:, None])[:, 0], TEACHER.amax(1))
    assert torch.equal(rectified.sort(1).values, TEACHER.sort(1).values)
    assert torch.equal(rectify(rectified, LABELS), rectified)
    moved = {(row, k) for row, k in (rectified != TEACHER).nonzero().tolist()}
    swapped = (~RIGHT).nonzero()[:, 0].tolist()
    top = TEACHER.argmax(1)
    assert moved == {(b, k) for b in swapped for k in (top[b].item(), LABELS[b].item())}


def test_it_commutes_with_softmax_shift_and_scale():
    """Property 5: a swap of probabilities is the same method."""
    swapped = rectify(TEACHER, LABELS)
    torch.testing.assert_close((swapped / 4).softmax(1), rectify((TEACHER / 4).softmax(1), LABELS))
    shift = torch.arange(8.0, dtype=torch.float64)[:, None]
    assert torch.equal(rectify(TEACHER * 2 + shift, LABELS), swapped * 2 + shift)


# --- The loss ----------------------------------------------------------------------------------


EXAMPLE_2 = (
    double([[0.5, 1.5, 1.0, -0.5], [2.0, 0.0, -1.0, 1.0]]),
    double([[1.0, 4.0, 2.0, 0.0], [3.0, -1.0, 0.5, 2.0]]),
    torch.tensor([2, 0]),
)
EXAMPLE_3 = (double([[1.0, 2.0, 0.0]]), double([[0.0, 5.0, 3.0]]), torch.tensor([2]))
RESNET18 = {"temperature": 6.0, "multiplier": 50.0}


@pytest.mark.parametrize(
    ("example", "settings", "expected"),
    [
        (EXAMPLE_2, {"rule": "none"}, 0.13523067),
        (EXAMPLE_2, {"rule": "swap"}, 0.16675881),
        (EXAMPLE_2, {"rule": "none", "reduction": "batchmean", "kl_weight": 380.0}, 0.41441591),
        (EXAMPLE_2, {"rule": "swap", "reduction": "batchmean", "kl_weight": 380.0}, 0.54052847),
        (EXAMPLE_3, {"rule": "none", **RESNET18}, 23.20657538),
        (EXAMPLE_3, {"rule": "swap", **RESNET18}, 48.24414310),
    ],
)
def test_examples_2_and_3(example, settings, expected):
    assert loss(*example, **settings).item() == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize(
    ("example", "settings", "expected"),
    [
        (
            EXAMPLE_2,
            {},
            [
                [0.02368973, 0.03217131, -0.07585243, 0.01999138],
                [-0.02015449, 0.04798768, -0.02305171, -0.00478149],
            ],
        ),
        (EXAMPLE_3, {"rule": "none", **RESNET18}, [[12.19462286, -7.06383334, -5.13078953]]),
        (EXAMPLE_3, RESNET18, [[12.19462286, 5.45495052, -17.64957338]]),
    ],
)
def test_gradients_of_examples_2_and_3(example, settings, expected):
    torch.testing.assert_close(gradient(*example, **settings), double(expected), rtol=0, atol=5e-9)


def test_with_a_right_teacher_it_is_tfkd_self():
    """Property 1; and always with rule none."""
    setting = {"temperature": 6.0, "distill_weight": 0.9, "multiplier": 50.0}
    tfkd = TfKDSelf(**setting)
    right = (STUDENT[RIGHT], TEACHER[RIGHT], LABELS[RIGHT])
    close = {"rtol": 1e-12, "atol": 0.0}  # vector units may round a selection of rows otherwise
    torch.testing.assert_close(loss(*right, **setting), loss(*right, method=tfkd), **close)
    everything = (STUDENT, TEACHER, LABELS)
    untouched = loss(*everything, rule="none", **setting)
    torch.testing.assert_close(untouched, loss(*everything, method=tfkd), **close)
    assert loss(*everything, **setting) != loss(*everything, method=tfkd)


def test_its_gradient_is_the_formula_and_no_gradient_reaches_the_teacher():
    """Properties 7 and 8: dL/dz = [(1-a)(softmax(z) - 1_y) + (a m T / K)(q - p')] / B."""
    a, temperature, m = 0.6, 4.0, 3.0
    setting = {"distill_weight": a, "temperature": temperature, "multiplier": m}
    found = gradient(STUDENT, TEACHER, LABELS, **setting)
    one_hot = torch.eye(5, dtype=torch.float64)[LABELS]
    label = (1 - a) * (STUDENT.softmax(1) - one_hot)
    target = (rectify(TEACHER, LABELS) / temperature).softmax(1)
    soft = a * m * temperature / 5 * ((STUDENT / temperature).softmax(1) - target)
    torch.testing.assert_close(found, (label + soft) / 8, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.sum(1), torch.zeros(8, dtype=torch.float64))
    for row, k in ((0, 1), (1, 3)):
        step = torch.zeros_like(STUDENT)
        step[row, k] = 1e-5
        up, down = (loss(STUDENT + sign * step, TEACHER, LABELS, **setting) for sign in (1, -1))
        assert ((up - down) / 2e-5).item() == pytest.approx(found[row, k].item(), abs=1e-6)


def test_its_gradient_differs_from_tfkd_self_s_at_the_two_swapped_classes():
    """Property 9: +g at the wrong class, -g at the label, g = (a m T / (K B)) (p_r - p_y)."""
    setting = {"distill_weight": 0.95, "temperature": 6.0, "multiplier": 50.0}
    swapped, raw = (gradient(STUDENT, TEACHER, LABELS, rule=r, **setting) for r in ("swap", "none"))
    p = (TEACHER / 6).softmax(1)
    gap = 0.95 * 50 * 6 / (5 * 8) * (p.amax(1) - p.gather(1, LABELS[:, None])[:, 0])
    expected = torch.zeros_like(STUDENT)
    for b in range(8):
        expected[b, TEACHER[b].argmax()] += gap[b]
        expected[b, LABELS[b]] -= gap[b]
    torch.testing.assert_close(swapped - raw, expected, rtol=1e-10, atol=1e-12)


def test_weights_at_their_ends():
    """Property 10: a = 0 is the cross-entropy; a = 1 reads no label where the teacher is right."""
    label = torch.nn.functional.cross_entropy(STUDENT, LABELS)
    torch.testing.assert_close(loss(STUDENT, TEACHER, LABELS, distill_weight=0.0), label)
    rows = (STUDENT[RIGHT], TEACHER[RIGHT])
    with_labels = loss(*rows, LABELS[RIGHT], distill_weight=1.0)
    torch.testing.assert_close(
        with_labels, loss(*rows, LABELS[RIGHT].roll(1), distill_weight=1.0, rule="none")
    )


def test_batchmean_with_its_weight_is_the_element_mean():
    """Property 11: a m T^2 / K before the batch mean of KL."""
    everything = (STUDENT, TEACHER, LABELS)
    torch.testing.assert_close(
        loss(*everything, temperature=6.0, distill_weight=0.9, multiplier=50.0),
        loss(
            *everything,
            temperature=6.0,
            distill_weight=0.9,
            reduction="batchmean",
            kl_weight=0.9 * 50 * 36 / 5,
        ),
    )


def test_high_temperature_limit():
    """Property 12: D -> (m / (2 K^2)) mean ||z - v'||^2, both centred; 0.13085938 in example 2."""
    student, teacher, labels = EXAMPLE_2
    difference = student - rectify(teacher, labels)
    difference = difference - difference.mean(1, keepdim=True)
    limit = difference.square().sum(1).mean() / 32
    assert limit.item() == pytest.approx(0.13085938, abs=6e-9)
    found = terms(*EXAMPLE_2, distill_weight=1.0)["kd"].mean().item()
    assert found == pytest.approx(limit.item(), rel=0.01)


def test_classes_have_no_order():
    """Property 13."""
    order = torch.tensor([3, 0, 4, 1, 2])
    renamed = order.argsort()[LABELS]
    torch.testing.assert_close(
        loss(STUDENT[:, order], TEACHER[:, order], renamed), loss(STUDENT, TEACHER, LABELS)
    )


# --- Options -----------------------------------------------------------------------------------


def test_the_controls_act_on_wrong_rows_only():
    raw = terms(STUDENT, TEACHER, LABELS, rule="none")["kd"]
    mask = terms(STUDENT, TEACHER, LABELS, rule="mask")["kd"]
    assert torch.equal(mask, torch.where(RIGHT, raw, torch.zeros_like(raw)))
    ka_ls = terms(STUDENT, TEACHER, LABELS, rule="ka_ls", smoothing=0.2)["kd"]
    assert torch.equal(ka_ls[RIGHT], raw[RIGHT])
    target = smoothed_labels(STUDENT, LABELS, 0.2, "others")
    log_probs = (STUDENT / 20).log_softmax(1)
    expected = 0.95 * 400 / 5 * (target * (target.log() - log_probs)).sum(1)
    torch.testing.assert_close(ka_ls[~RIGHT], expected[~RIGHT])


@pytest.mark.parametrize("side", ["student", "both"])
def test_a_swapped_student_is_swapped_for_both_terms(side):
    """As in the released code, whose swap precedes its cross-entropy."""
    teacher = TEACHER if side == "student" else rectify(TEACHER, LABELS)
    expected = terms(rectify(STUDENT, LABELS), teacher, LABELS, rule="none")
    found = terms(STUDENT, TEACHER, LABELS, side=side)
    torch.testing.assert_close(found, expected)


def test_the_swapped_fraction_is_observed():
    batch = Batch(torch.empty(0), LABELS, torch.arange(8), torch.tensor(1.0))
    seen = DRKD().observe(batch, Output(STUDENT, {}), (Output(TEACHER, {}),))
    assert torch.equal(seen["swapped"], ~RIGHT)


@pytest.mark.parametrize(
    "setting",
    [
        {"distill_weight": math.nan},
        {"smoothing": 0.0},
        {"kl_weight": 3.8},
        {"reduction": "batchmean"},
        {"side": "both", "rule": "mask"},
    ],
)
def test_refuses_settings_without_meaning(setting):
    with pytest.raises(ConfigError, match=r"^method\."):
        DRKD(**setting)
