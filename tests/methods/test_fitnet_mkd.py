import pytest
import torch

from kdbench.methods.aver import Aver
from kdbench.methods.fitnet_mkd import FitNetMKD
from kdbench.types import Batch, NetworkProbe, Output, Probe
from support.teachers_example import LABELS, STUDENT, TEACHERS, run

STUDENT_SHAPE, TEACHER_SHAPES = (2, 4, 4), [(3, 4, 4), (5, 2, 2), (3, 8, 8)]
BATCH = Batch(torch.empty(0), LABELS, torch.arange(2), torch.tensor(2.0))


def example(**settings) -> tuple[FitNetMKD, Output, tuple[Output, ...]]:
    """Teachers whose second stages differ in channels and size."""
    torch.manual_seed(0)
    method = FitNetMKD(**settings)
    student, *teachers = (
        NetworkProbe({"stage2": torch.Size(s)}) for s in (STUDENT_SHAPE, *TEACHER_SHAPES)
    )
    method.setup(Probe(student, tuple(teachers), 3, LABELS))
    method.double().eval()
    feature = torch.randn(2, *STUDENT_SHAPE, dtype=torch.float64, requires_grad=True)
    maps = [torch.rand(2, *shape, dtype=torch.float64) for shape in TEACHER_SHAPES]
    outputs = [Output(z, {"stage2": m}) for z, m in zip(TEACHERS, maps, strict=True)]
    own = Output(STUDENT.clone().requires_grad_(), {"stage2": feature})
    return method, own, tuple(outputs)


def test_hint_is_the_mean_squared_error_averaged_over_teachers():
    method, student, teachers = example()
    terms = method(BATCH, student, teachers)
    for n in range(2):
        errors = [
            ((r(student.taps["stage2"]) - t.taps["stage2"])[n] ** 2).mean()
            for r, t in zip(method.regressors, teachers, strict=True)
        ]
        torch.testing.assert_close(terms["hint"][n], 100 * sum(errors) / 3)
    torch.testing.assert_close(terms["kd"], run(Aver())["kd"])


@pytest.mark.parametrize("detached", [False, True])
def test_the_released_defect_changes_gradients_and_no_value(detached):
    method, student, teachers = example(hint_detached=detached)
    terms = method(BATCH, student, teachers)
    torch.testing.assert_close(terms["hint"], example()[0](BATCH, student, teachers)["hint"])
    sum(term.mean() for term in terms.values()).backward()
    if detached:
        assert student.taps["stage2"].grad is None
        assert all(parameter.grad is None for parameter in method.parameters())
    else:
        assert (student.taps["stage2"].grad != 0).any()
        assert all((regressor[0].weight.grad != 0).any() for regressor in method.regressors)


def test_no_hint_error_where_the_regressor_reaches_the_teacher():
    method, student, teachers = example()
    reached = tuple(
        Output(t.logits, {"stage2": r(student.taps["stage2"])})
        for r, t in zip(method.regressors, teachers, strict=True)
    )
    assert (method(BATCH, student, reached)["hint"] == 0).all()
    assert (example(hint_weight=0)[0](BATCH, student, teachers)["hint"] == 0).all()
