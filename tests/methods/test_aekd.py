import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.losses import kd_loss
from kdbench.methods.aekd import AEKD, active_sets, teacher_weights
from kdbench.methods.aver import Aver
from support.teachers_example import (
    ROUNDING,
    STUDENT,
    TEACHERS,
    close,
    distillation,
    gradient,
    probe,
    run,
)

GRADIENTS = [
    [-0.10246121, 0.02635113, 0.07611008],
    [-0.10231851, 0.01819552, 0.08412300],
    [0.09766189, -0.16609728, 0.06843538],
]


def weights(gradients: torch.Tensor, cap: float) -> torch.Tensor:
    return teacher_weights(gradients, cap, active_sets(len(gradients)))


@pytest.mark.parametrize(
    ("tolerance", "expected", "objective", "loss"),
    [
        (0.6, [0.6, 0.04989936, 0.35010064], 0.00821563, 0.25241353),
        (1.0, [0.66089359, 0.0, 0.33910641], 0.00811433, 0.24461325),
        (1 / 3, [1 / 3, 1 / 3, 1 / 3], 0.00872645, 0.28523299),
    ],
)
def test_worked_example(tolerance, expected, objective, loss):
    gradients = torch.tensor(GRADIENTS, dtype=torch.float64)
    found = weights(gradients, tolerance)
    close(found, expected, 1e-6)  # from gradients with eight digits
    close((found @ gradients).square().sum(), objective)
    close(distillation(AEKD(tolerance=tolerance)), loss)


@pytest.mark.parametrize("cap", [0.3, 0.45, 0.6, 1.0])
@pytest.mark.parametrize("count", [4, 5])
def test_weights_satisfy_the_conditions_of_the_optimum(cap, count):
    """No weight may move from one teacher to another and lower the norm."""
    generator = torch.Generator().manual_seed(count)
    for _ in range(20):
        gradients = torch.randn(count, 7, generator=generator, dtype=torch.float64) + 0.5
        found = weights(gradients, cap)
        assert found.min() >= 0
        assert found.max() <= cap
        close(found.sum(), 1.0)
        slope = gradients @ (found @ gradients)
        receivers, givers = slope[found < cap - 1e-7], slope[found > 1e-7]
        assert not len(receivers) or receivers.min() >= givers.max() - 1e-7
        norm = (found @ gradients).norm()
        assert norm <= gradients.mean(0).norm() + 1e-9
        if cap >= 1:
            assert norm <= gradients.norm(dim=1).min() + 1e-9
        torch.testing.assert_close(weights(1e-6 * gradients, cap), found, rtol=0, atol=1e-6)


def test_opposite_gradients_cancel():
    gradient = torch.tensor([0.3, -0.5, 0.2])
    close(weights(torch.stack([gradient, -gradient]), 1.0), 0.5)


def test_equal_teachers_and_a_perfect_student_are_finite():
    equal = TEACHERS[:1].expand(3, -1, -1)
    torch.testing.assert_close(
        distillation(AEKD(), teachers=equal), distillation(Aver(), teachers=equal)
    )
    perfect = STUDENT.expand(3, -1, -1)
    close(gradient(AEKD(), perfect), 0.0, ROUNDING)


def test_a_tolerance_of_one_over_t_or_less_is_aver():
    for tolerance in (1 / 3, 0.1):
        torch.testing.assert_close(
            distillation(AEKD(tolerance=tolerance)), distillation(Aver()), rtol=1e-12, atol=0
        )


def test_weights_are_constants_in_the_gradient():
    """The gradient is the weighted sum of the teachers' own, with a norm as small as promised."""
    singles = torch.stack([gradient(Aver(), TEACHERS[i : i + 1]) for i in range(3)])
    found = weights(singles.mean(1), 0.6)
    torch.testing.assert_close(gradient(AEKD()), torch.einsum("t,tbk->bk", found, singles))


def test_one_teacher_is_kd():
    torch.testing.assert_close(
        run(AEKD(), teachers=TEACHERS[:1])["kd"], kd_loss(STUDENT, TEACHERS[0], 4.0).mean()
    )


def test_refuses_more_teachers_than_it_can_enumerate():
    with pytest.raises(ConfigError, match="at most 8 teachers, not 9"):
        AEKD().setup(probe(9))
