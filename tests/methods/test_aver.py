import torch

from kdbench.losses import kd_loss
from kdbench.methods.aver import Aver
from support.teachers_example import (
    STUDENT,
    TEACHERS,
    close,
    distillation,
    gradient,
    random_logits,
    run,
)


def test_worked_example():
    close(distillation(Aver()), 0.28523299)


def test_the_loss_is_the_mean_of_single_teacher_losses_and_kd_for_one():
    singles = [run(Aver(), teachers=TEACHERS[i : i + 1])["kd"] for i in range(3)]
    torch.testing.assert_close(run(Aver())["kd"], sum(singles) / 3)
    for average in ("loss", "prob", "logit"):
        one = run(Aver(average=average), teachers=TEACHERS[:1])["kd"]
        torch.testing.assert_close(one, kd_loss(STUDENT, TEACHERS[0], 4.0))


def test_averaging_probabilities_has_the_same_gradient_and_a_constant_less():
    torch.testing.assert_close(gradient(Aver()), gradient(Aver(average="prob")))
    gaps = [
        run(Aver(), student)["kd"] - run(Aver(average="prob"), student)["kd"]
        for student in (STUDENT, random_logits(2, 3))
    ]
    torch.testing.assert_close(*gaps)
    mean = torch.softmax(TEACHERS / 4, 2).mean(0)
    for n in range(2):
        spread = 0.0
        for teacher in TEACHERS:
            p = torch.softmax(teacher[n] / 4, 0)
            spread += 16 * sum(p[k] * (p[k] / mean[n, k]).log() for k in range(3)) / 3
        torch.testing.assert_close(gaps[0][n], spread)


def test_averaging_logits_is_kd_from_the_mean_logits():
    expected = kd_loss(STUDENT, sum(TEACHERS) / 3, 4.0)
    torch.testing.assert_close(run(Aver(average="logit"))["kd"], expected)


def test_a_repeated_list_of_teachers_changes_nothing():
    for average in ("loss", "prob", "logit"):
        once, twice = (
            run(Aver(average=average), teachers=teachers)["kd"]
            for teachers in (TEACHERS, torch.cat([TEACHERS, TEACHERS]))
        )
        torch.testing.assert_close(once, twice)
