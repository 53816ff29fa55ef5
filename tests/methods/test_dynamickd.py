"""The 15 properties and the three worked examples of the notes on DynamicKD, and its options."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from kdbench.data.memory.synthetic import synthetic
from kdbench.errors import ConfigError
from kdbench.losses import entropy, kd_loss
from kdbench.methods.dynamickd import DynamicKD
from kdbench.methods.logit_scale import optimal_scale, scale_of, theta_of
from kdbench.methods.ttm import TTM
from kdbench.networks.forward import teacher_outputs
from kdbench.tasks.classification.losses import losses_and_sums
from kdbench.training.optimizer import Optimizer
from kdbench.training.schedule import Schedule
from kdbench.types import Batch, NetworkProbe, Output, Probe

T = 4.0


def tensor(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


Z1, V1, Y1 = tensor([2, 1, 0, -1]), tensor([5, 1, 0.5, -2]), torch.tensor([0])
Z2, V2 = tensor([3, 0, -1], [1, 2, 0]), tensor([1, 0, 0], [0.5, 1, 0.5])
Y2 = torch.tensor([0, 1])


def random_logits(seed: int, rows: int = 6, classes: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)


def probe(classes: int) -> Probe:
    return Probe(NetworkProbe({}), (NetworkProbe({}),), classes, torch.zeros(1, dtype=torch.int64))


def method(classes: int = 10, **settings) -> DynamicKD:
    made = DynamicKD(**settings)
    made.setup(probe(classes))
    made.double()
    if made.shape != "per_sample":  # 0.7 in float32 is not 0.7
        with torch.no_grad():
            made.theta.fill_(theta_of(made.initial, made.parametrisation, made.temperature))
    return made


def run(made: DynamicKD, z: torch.Tensor, v: torch.Tensor, y=None) -> dict[str, torch.Tensor]:
    """The terms' batch means."""
    labels = torch.zeros(len(z), dtype=torch.int64) if y is None else y
    batch = Batch(torch.empty(0), labels, torch.arange(len(z)), torch.tensor(1.0))
    terms = made(batch, Output(z, {}), (Output(v, {}),))
    return {name: term.mean() for name, term in terms.items()}


def kd_at(e: float, z: torch.Tensor, v: torch.Tensor, **settings):
    """L_KD (weight 1) at the controller e, and its gradients by e and z."""
    made = method(z.shape[1], initial=e, ce_weight=0.0, kd_weight=1.0, **settings)
    z = z.clone().requires_grad_()
    loss = run(made, z, v)["kd"]
    slope, gradient = torch.autograd.grad(loss, [made.theta, z])
    return loss.detach(), slope, gradient


def softmax_rows(logits: torch.Tensor) -> list[list[float]]:
    rows = []
    for row in logits.tolist():
        powers = [math.exp(value) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def slope_by_hand(e: float, z: torch.Tensor, v: torch.Tensor) -> float:
    """(T / B) sum_b (E_q[z_b] - E_p[z_b])."""
    q, p = softmax_rows(e * z / T), softmax_rows(v / T)
    differences = [
        sum((a - b) * value for a, b, value in zip(q[i], p[i], row, strict=True))
        for i, row in enumerate(z.tolist())
    ]
    return T / len(z) * sum(differences)


def variances(e: float, z: torch.Tensor) -> list[float]:
    """Var_q[z_b] of each row."""
    found = []
    for row, q in zip(z.tolist(), softmax_rows(e * z / T), strict=True):
        mean = sum(a * value for a, value in zip(q, row, strict=True))
        found.append(sum(a * (value - mean) ** 2 for a, value in zip(q, row, strict=True)))
    return found


def optimum(z: torch.Tensor, v: torch.Tensor) -> float:
    """The scalar e with the least batch mean of KL, by Newton's method from 1."""
    e = 1.0
    for _ in range(50):
        e -= slope_by_hand(e, z, v) / (sum(variances(e, z)) / len(z))
    return e


# --- Properties of section 7, by their numbers --------------------------------------------------


def test_1_controller_of_one_is_kd():
    z, v, y = random_logits(0).requires_grad_(), random_logits(1), torch.arange(6)
    terms = run(method(), z, v, y)
    loss = terms["ce"] + terms["kd"]
    expected = 0.1 * nn.functional.cross_entropy(z, y) + 0.9 * kd_loss(z, v, T).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, z)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_2_gradient_of_the_controller():
    z, v, step = random_logits(0), random_logits(1), 1e-4
    slope = kd_at(1.3, z, v)[1].item()
    assert slope == pytest.approx(slope_by_hand(1.3, z, v), rel=1e-12)
    difference = kd_at(1.3 + step, z, v)[0] - kd_at(1.3 - step, z, v)[0]
    assert slope == pytest.approx(difference.item() / (2 * step), rel=1e-6)


def test_3_flat_student_raises_and_peaked_student_lowers_it():
    assert kd_at(1.0, 0.1 * Z1, V1)[1].item() == pytest.approx(-0.25775857, rel=1e-7)
    assert kd_at(1.0, 10 * Z1, V1)[1].item() == pytest.approx(29.40460859, rel=1e-9)


def second_derivative(e: float, z: torch.Tensor, v: torch.Tensor) -> float:
    made = method(z.shape[1], initial=e, kd_weight=1.0)
    loss = run(made, z, v)["kd"]
    (slope,) = torch.autograd.grad(loss, made.theta, create_graph=True)
    return torch.autograd.grad(slope, made.theta)[0].item()


def test_4_convex_with_the_student_s_variance():
    z, v = random_logits(0), random_logits(1)
    for e in (0.3, 1.0, 2.5):
        curvature = second_derivative(e, z, v)
        assert curvature > 0
        assert curvature == pytest.approx(sum(variances(e, z)) / len(z), rel=1e-10)
    assert second_derivative(1.0, torch.ones_like(z), v) == pytest.approx(0, abs=1e-11)


def test_5_more_scale_less_entropy():
    z, v = torch.cat([random_logits(0), torch.ones(1, 10).double()]), random_logits(1, rows=7)
    entropies, step = [], 1e-4
    for e in (0.5, 1.0, 1.0 + step, 3.0):
        seen = method(initial=e).observe(None, Output(z, {}), (Output(v, {}),))
        entropies.append(seen["entropy_student"].detach())
    for before, after in pairwise(entropies):
        assert (after[:-1] < before[:-1]).all()
        assert after[-1].item() == pytest.approx(math.log(10))
    slopes = (entropies[2] - entropies[1]) / step
    expected = [-variance / T**2 for variance in variances(1.0, z)]
    torch.testing.assert_close(slopes, torch.tensor(expected).double(), rtol=1e-3, atol=1e-9)


def test_6_collinear_logits_need_the_ratio():
    z = random_logits(0)
    v = 2.5 * z + torch.arange(6).double()[:, None]
    assert optimum(z, v) == pytest.approx(2.5, rel=1e-12)
    assert kd_at(2.5, z, v)[0].item() == pytest.approx(0, abs=1e-11)
    best = optimal_scale(z, v, T, 0.01, 100.0)
    torch.testing.assert_close(best, torch.full((6, 1), 2.5).double(), rtol=1e-9, atol=0)


def test_7_at_the_optimum_kl_is_the_excess_entropy():
    v = random_logits(1)
    z = 0.4 * v + 0.2 * random_logits(0)
    e = optimum(z, v)
    mean_kl = kd_at(e, z, v)[0] / T**2
    excess = entropy(e * z, T).mean() - entropy(v, T).mean()
    torch.testing.assert_close(mean_kl, excess, rtol=1e-9, atol=0)


def sgd_steps(made: DynamicKD, z, v, y, count: int) -> list[float]:
    """E after each of `count` SGD steps with z held fixed, by the run's own optimizer."""
    optimizer = Optimizer(Schedule(1, 1, 0.05, []), nn.Linear(1, 1), made)
    values = []
    for _ in range(count):
        terms = run(made, z, v, y)
        optimizer.inner.zero_grad(set_to_none=True)
        (terms["ce"] + terms["kd"]).backward()
        optimizer.inner.step()
        values.append(made.scale(z, v).item())
    return values


def test_8_raw_labels_do_not_reach_the_controller():
    z, v, y = random_logits(0), random_logits(1), torch.arange(6)
    made = method(initial=1.5)
    assert not run(made, z, v, y)["ce"].requires_grad
    assert sgd_steps(method(initial=1.5, kd_weight=0.0), z, v, y, 3) == [1.5, 1.5, 1.5]


DATASET = synthetic(
    num_classes=10,
    num_train=8,
    num_test=2,
    image_size=8,
    seed=0,
    mean=[0.5, 0.5, 0.5],
    std=[0.25, 0.25, 0.25],
    pad=0,
    flip=False,
    val_split=0,
)


class Small(nn.Module):
    """A network with batch norm and no taps."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3 * 8 * 8, 10)

    def forward(self, images: torch.Tensor) -> Output:
        return Output(self.head(self.norm(images).flatten(1)), {})


class Training:
    """A student, its controller and their optimizer."""

    def __init__(self, seed: int) -> None:
        self.student, self.method = Small(seed), DynamicKD()
        self.method.setup(probe(10))
        self.optimizer = Optimizer(Schedule(1, 8, 0.05, []), self.student, self.method)

    def steps(self, teacher: nn.Module, count: int) -> None:
        data = DATASET.train
        batch = Batch(data.images.float() / 255, data.labels, torch.arange(8), torch.tensor(1.0))
        for _ in range(count):
            outputs = teacher_outputs([teacher], batch)
            losses, _ = losses_and_sums(self.student, self.method, batch, outputs)
            self.optimizer.update(losses)

    def parts(self) -> list:
        return [self.student, self.method, self.optimizer.inner]


def frozen_teacher() -> Small:
    return Small(5).eval().requires_grad_(False)


def test_9_the_teacher_stays_as_it_is():
    training, teacher = Training(0), frozen_teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    training.steps(teacher, 2)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert training.method.theta.item() != 1.0, "a step that moves nothing proves nothing"


def test_10_shifts_change_nothing():
    z, v = random_logits(0), random_logits(1)
    rows = torch.arange(6).double()[:, None]
    for shifted in ((z + rows, v), (z, v - 2 * rows)):
        for found, expected in zip(kd_at(1.3, *shifted)[:2], kd_at(1.3, z, v)[:2], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


def test_11_scale_and_logits_are_one():
    z, v, factor = random_logits(0), random_logits(1), 3.0
    loss, _, gradient = kd_at(1.3, z, v)
    other, _, scaled = kd_at(1.3 * factor, z / factor, v)
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled, factor * gradient, rtol=1e-10, atol=1e-12)


def test_12_student_s_gradient_is_e_times_kd_s():
    z, v, e = random_logits(0), random_logits(1), 1.7
    gradient = kd_at(e, z, v)[2]
    scaled = (e * z).requires_grad_()
    (plain,) = torch.autograd.grad(kd_loss(scaled, v, T).mean(), scaled)
    torch.testing.assert_close(gradient, e * plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6).double(), rtol=0, atol=1e-12)


def test_13_every_controller_of_one_number_keeps_the_ranking():
    z, v = random_logits(0), -random_logits(0)  # the teacher ranks the other way round
    for made in (method(initial=0.01), method(shape="per_sample"), method(direction="ascend")):
        assert torch.equal((made.scale(z, v) * z).argmax(1), z.argmax(1))


def test_14_power_of_the_probabilities():
    z, e = random_logits(0), 1.7
    powers = torch.softmax(z / T, 1) ** e
    q = powers / powers.sum(1, keepdim=True)
    v = random_logits(1)
    p = torch.softmax(v / T, 1)
    expected = T**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(kd_at(e, z, v)[0], expected, rtol=1e-11, atol=0)


def test_15_a_resumed_run_goes_on_with_the_same_controller():
    whole, first, resumed = Training(0), Training(0), Training(1)
    teacher = frozen_teacher()
    whole.steps(teacher, 4)
    first.steps(teacher, 2)
    for part, saved in zip(resumed.parts(), first.parts(), strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    resumed.steps(teacher, 2)
    assert resumed.method.theta.item() == whole.method.theta.item() != 1.0
    assert set(whole.student.state_dict()) == set(Small(0).state_dict()), "the student is exported"


# --- Worked examples ----------------------------------------------------------------------------

EXAMPLE_1 = {
    1.0: {
        "q": [0.34993201, 0.27252732, 0.21224449, 0.16529618],
        "entropy": 1.34824261,
        "kd": 1.22216524,
        "loss": 1.14396768,
        "slope": -1.47418296,
        "curvature": 1.18614893,
        "entropy_slope": -0.07413431,
        "gradient": [-0.74354339, 0.30164380, 0.15315961, 0.28873998],
    },
    1.5: {
        "q": [0.40252653, 0.27665217, 0.19014007, 0.13068123],
        "entropy": 1.30336027,
        "kd": 0.63052929,
        "loss": 0.61149533,
        "slope": -0.89846762,
        "curvature": 1.11299288,
        "entropy_slope": -0.10434308,
        "gradient": [-0.79974795, 0.47721477, 0.09711288, 0.22542030],
    },
}


@pytest.mark.parametrize("e", EXAMPLE_1)
def test_example_1(e):
    wanted = EXAMPLE_1[e]
    made = method(4, initial=e)
    terms = run(made, Z1, V1, Y1)
    kd, slope, gradient = kd_at(e, Z1, V1)
    seen = made.observe(None, Output(Z1, {}), (Output(V1, {}),))
    scale = made.scale(Z1, V1)
    student_entropy = entropy(scale * Z1, T)
    found = {
        "q": torch.softmax(scale * Z1 / T, 1).squeeze().tolist(),
        "entropy": seen["entropy_student"].item(),
        "kd": kd.item(),
        "loss": (terms["ce"] + terms["kd"]).item(),
        "slope": slope.item(),
        "curvature": second_derivative(e, Z1, V1),
        "entropy_slope": torch.autograd.grad(student_entropy, made.theta)[0].item(),
        "gradient": gradient.squeeze().tolist(),
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=6e-9), name
    assert seen["entropy_teacher"].item() == pytest.approx(1.17972085, abs=6e-9)
    assert terms["ce"].item() == pytest.approx(0.1 * 0.44018970, abs=6e-10)


def test_example_1_variants():
    def kd(**settings) -> float:
        made = method(4, initial=1.5, ce_weight=1.0, kd_weight=1.0, **settings)
        return run(made, Z1, V1, Y1)["kd"].item()

    assert kd(outer_factor="t_ts") == pytest.approx(0.42035286, abs=6e-9)
    assert kd(outer_factor="ts2") == pytest.approx(0.63052929 / 1.5**2, abs=6e-9)
    assert kd(outer_factor="one") == pytest.approx(0.63052929 / T**2, abs=6e-9)
    assert kd(divide_by_e=True) == pytest.approx(0.42035286, abs=6e-9)
    assert kd_at(1.5, Z1, V1, parametrisation="exp")[1].item() == pytest.approx(
        -1.34770143, abs=6e-9
    )
    assert kd_at(1.5, Z1, V1, parametrisation="inv_temp")[1].item() == pytest.approx(
        0.50538804, abs=6e-9
    )
    assert method(parametrisation="inv_temp", initial=1.5).theta.item() == pytest.approx(T / 1.5)


@pytest.mark.parametrize("label_logits", ["corrected", "corrected_detached"])
def test_example_1_corrected_labels(label_logits):
    made = method(4, initial=1.5, ce_weight=1.0, label_logits=label_logits)
    ce = run(made, Z1.clone().requires_grad_(), V1, Y1)["ce"]
    assert ce.item() == pytest.approx(0.25000063, abs=6e-9)
    (slope,) = torch.autograd.grad(ce, made.theta, allow_unused=True)
    assert (slope is None) == (label_logits == "corrected_detached")


def test_example_2_two_steps_of_sgd():
    terms = run(method(3), Z2, V2, Y2)
    assert terms["ce"].item() == pytest.approx(0.1 * 0.23674493, abs=6e-10)
    assert terms["kd"].item() == pytest.approx(0.9 * 0.50674661, abs=6e-9)
    assert 0.9 * kd_at(1.0, Z2, V2)[1].item() == pytest.approx(1.23173375, abs=1e-8)
    values = sgd_steps(method(3), Z2, V2, Y2, 2)
    assert values == pytest.approx([0.93841331, 0.82653029], abs=6e-9)
    assert kd_at(0.93841331, Z2, V2)[0].item() == pytest.approx(0.42596733, abs=1e-8)


def test_example_3_optimum():
    e = optimum(Z2, V2)
    assert e == pytest.approx(0.26904310, abs=6e-9)
    assert kd_at(e, Z2, V2)[0].item() == pytest.approx(0.00642131, abs=6e-9)
    seen = method(3, initial=e).observe(None, Output(Z2, {}), (Output(V2, {}),))
    assert seen["entropy_student"].tolist() == pytest.approx([1.09184911, 1.09710599], abs=6e-9)
    assert seen["entropy_teacher"].tolist() == pytest.approx([1.09132210, 1.09683034], abs=6e-9)


# --- Options ------------------------------------------------------------------------------------


def test_each_sample_s_scale_is_the_best_one():
    """Against a search by bisection; rows that ask for a scale out of bounds get the bound."""
    z, v = random_logits(0, rows=40), random_logits(1, rows=40)
    z, v = torch.cat([z, 30 * z, -v, 0 * z]), torch.cat([v, z - v, v, v])
    for row, found in zip(range(len(z)), optimal_scale(z, v, T, 0.01, 100.0), strict=True):
        if not z[row].any():
            assert 0.01 <= found.item() <= 100.0
            continue
        low, high = 0.01, 100.0
        for _ in range(100):
            middle = math.sqrt(low * high)
            flat = slope_by_hand(middle, z[row : row + 1], v[row : row + 1]) < 0
            low, high = (middle, high) if flat else (low, middle)
        assert found.item() == pytest.approx(low, rel=1e-4)


def test_a_scale_per_sample_is_a_constant():
    z, v = random_logits(0).requires_grad_(), random_logits(1)
    made = method(shape="per_sample", outer_factor="t_ts", kd_weight=1.0)
    assert not made.param_groups()
    assert not made.scale(z, v).requires_grad
    e = made.scale(z, v).squeeze(1)
    expected = (kd_loss(e[:, None] * z, v, T) / e).mean()
    torch.testing.assert_close(run(made, z, v)["kd"], expected)


def test_a_scale_per_class():
    z, v = random_logits(0), random_logits(1)
    made = method(shape="per_class", kd_weight=1.0)
    with torch.no_grad():
        made.theta.copy_(torch.linspace(0.5, 2, 10))
    expected = kd_loss(torch.linspace(0.5, 2, 10).double() * z, v, T).mean()
    torch.testing.assert_close(run(made, z, v)["kd"], expected)


@pytest.mark.parametrize("parametrisation", ["scale", "exp", "softplus", "inv_temp"])
def test_parametrisations_begin_at_the_initial_scale_and_keep_its_bounds(parametrisation):
    made = method(parametrisation=parametrisation, initial=1.5)
    z, v = random_logits(0), random_logits(1)
    assert made.scale(z, v).item() == pytest.approx(1.5, rel=1e-6)
    for wild in (-1e3, 1e3):
        with torch.no_grad():
            made.theta.fill_(wild)
        run(made, z, v)
        nearest = 0.01 if (wild < 0) != (parametrisation == "inv_temp") else 100.0
        assert made.scale(z, v).item() == pytest.approx(nearest, rel=1e-6)
    for scale in (0.01, 0.7, 100.0):
        theta = torch.tensor(theta_of(scale, parametrisation, T)).double()
        assert scale_of(theta, parametrisation, T).item() == pytest.approx(scale, rel=1e-6)


def test_direction_and_speed():
    """A learning rate times ten, a step uphill, and none at all."""
    z, v, y = Z2, V2, Y2
    step = -0.05 * 1.23173375
    once, uphill, fast = (
        sgd_steps(method(3, **settings), z, v, y, 1)[0] - 1
        for settings in ({}, {"direction": "ascend"}, {"lr_multiplier": 10.0})
    )
    assert [once, -uphill, fast / 10] == pytest.approx([step] * 3, rel=1e-7)
    frozen = method(3, direction="frozen", initial=2.0)
    assert not frozen.param_groups()
    assert frozen.state_dict()["theta"].item() == 2.0


def test_weight_decay_is_the_controller_s_own():
    decayed = sgd_steps(
        method(3, kd_weight=0.0, weight_decay=0.1, lr_multiplier=2.0), Z2, V2, Y2, 1
    )
    assert decayed[0] == pytest.approx(1 - 0.05 * 2 * 0.1)


def test_entropy_penalty_is_the_distance_of_the_entropies():
    z, v = random_logits(0), random_logits(1)
    made = method(direction="frozen", entropy_penalty=0.5)
    by_hand = []
    for q, p in zip(softmax_rows(z / T), softmax_rows(v / T), strict=True):
        entropies = [-sum(value * math.log(value) for value in row) for row in (q, p)]
        by_hand.append(0.5 * abs(entropies[0] - entropies[1]))
    assert run(made, z, v)["entropy"].item() == pytest.approx(sum(by_hand) / 6, rel=1e-12)


def test_frozen_at_the_temperature_is_ttm():
    """Notes, 6b: r CE + beta KL(p^gamma || q) has gamma = 1 / T and kd_weight = beta gamma^2."""
    z, v, y = random_logits(0), random_logits(1), torch.arange(6)
    frozen = method(
        direction="frozen", temperature=10.0, initial=10.0, ce_weight=1.0, kd_weight=0.45
    )
    ttm = TTM(power=0.1, ce_weight=1.0, ttm_weight=45.0)
    found, expected = run(frozen, z, v, y), run(ttm, z, v, y)
    assert sum(found.values()).item() == pytest.approx(sum(expected.values()).item(), rel=1e-12)


def test_a_scale_per_sample_with_a_standardised_teacher_is_standardised_kd():
    """Both then see logits of deviation 1 where the student's best scale is 1 / sd(z)."""
    v = random_logits(1)
    z = 2 * v + 1
    made = method(shape="per_sample", standardise_teacher=True, kd_weight=1.0)
    seen = made.observe(None, Output(z, {}), (Output(v, {}),))
    assert seen["e"].item() == pytest.approx((1 / z.std(1)).mean().item(), rel=1e-8)
    assert run(made, z, v)["kd"].item() == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"initial": 0.0}, r"method.initial must be in \[0.01, 100.0\], not 0.0"),
        ({"temperature": 0.0}, "method.temperature must be above 0"),
        ({"shape": "per_sample", "direction": "ascend"}, "per_sample minimises"),
        ({"shape": "per_class", "outer_factor": "ts2"}, "per_class needs outer_factor t2 or one"),
    ],
)
def test_refuses_settings_without_meaning(settings, line):
    with pytest.raises(ConfigError, match=line):
        DynamicKD(**settings)
