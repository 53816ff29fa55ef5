import torch

from kdbench.losses import kd_loss, kd_losses
from kdbench.methods.aver import Aver
from kdbench.methods.ebkd import EBKD, ebkd_weights
from support.teachers_example import STUDENT, TEACHERS, close, distillation, random_logits, run

RELEASED = [[0.76887652, 0.58726263], [0.52454189, 0.80028708], [0.70658159, 0.61245029]]


def test_worked_example():
    close(3 * ebkd_weights(TEACHERS), RELEASED)
    close(distillation(EBKD()), 0.21258038)
    close(distillation(EBKD(normalisation="normalised")), 0.31887057)


def test_sums_bounds_and_order():
    logits = random_logits(4, 6, 10)
    factors = 4 * ebkd_weights(logits)
    assert ((factors >= 0) & (factors <= 1)).all()
    torch.testing.assert_close(factors.sum(0), torch.full((6,), 3.0, dtype=torch.float64))
    ratio = ebkd_weights(logits, normalisation="normalised") / ebkd_weights(logits)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 4 / 3))
    probabilities = torch.softmax(logits, 2)
    entropies = -(probabilities * probabilities.log()).sum(2)
    assert torch.equal(entropies.argsort(0), factors.argsort(0, descending=True))


def test_equal_entropies_give_a_share_of_aver():
    teachers = torch.stack([TEACHERS[0], TEACHERS[0].roll(1, 1), TEACHERS[0].roll(2, 1)])
    close(ebkd_weights(teachers), 2 / 9, 1e-12)
    torch.testing.assert_close(
        distillation(EBKD(), teachers=teachers), 2 / 3 * distillation(Aver(), teachers=teachers)
    )


def test_one_hot_teachers():
    """Certain beyond float32: 1 for that teacher, and uniform where all are."""
    one_hot = torch.tensor([[500.0, 0.0, 0.0]])
    mixed = torch.stack([one_hot, torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]])])
    close(3 * ebkd_weights(mixed)[0], 1.0)
    close(ebkd_weights(torch.stack([one_hot] * 3)), 2 / 9, 1e-6)


def test_labels_do_not_enter():
    first, second = (run(EBKD(), labels=labels)["kd"] for labels in torch.tensor([[0, 0], [1, 2]]))
    assert torch.equal(first, second)


def test_hard_selection_takes_the_surest_teacher_of_each_sample():
    expected = kd_losses(STUDENT, TEACHERS, 4.0)[[0, 1], [0, 1]]
    for normalisation in ("as_released", "normalised"):
        method = EBKD(selection="hard", normalisation=normalisation)
        torch.testing.assert_close(run(method)["kd"], expected)


def test_one_teacher_is_kd():
    for selection in ("soft", "hard"):
        loss = run(EBKD(selection=selection), teachers=TEACHERS[:1])["kd"]
        torch.testing.assert_close(loss, kd_loss(STUDENT, TEACHERS[0], 4.0))
