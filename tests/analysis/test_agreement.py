import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score

from kdbench.analysis.agreement import fidelity, rank_correlation, seeds_apart
from kdbench.analysis.entropy import divergence
from support.batches import pair


def test_fidelity():
    student, teacher, _ = pair()
    found = fidelity(student, teacher)
    assert found.top1 == 100 * accuracy_score(teacher.argmax(1), student.argmax(1))
    assert found.divergence == pytest.approx(divergence(teacher, student).mean(), rel=1e-12)
    ranks = [spearmanr(a, b).statistic for a, b in zip(student, teacher, strict=True)]
    assert found.rank_correlation == pytest.approx(np.mean(ranks), abs=1e-12)


def test_a_network_follows_itself():
    student, _, _ = pair()
    assert fidelity(student, student) == (100, 0, pytest.approx(1, abs=1e-12))


def test_ranks_with_ties_and_a_constant_row():
    found = rank_correlation(np.array([[1.0, 1, 2], [5, 5, 5]]), np.array([[1.0, 2, 3], [1, 2, 3]]))
    assert found[0] == pytest.approx(spearmanr([1, 1, 2], [1, 2, 3]).statistic, abs=1e-14)
    assert found[1] == 0


def test_seeds_worked_by_hand():
    chosen = np.array([[0, 1, 2, 0], [0, 2, 2, 1], [0, 1, 0, 1]])
    found = seeds_apart(chosen, np.array([0, 1, 2, 2]))
    # pairs choose apart for 2, 2 and 2 of 4 images; correct differ for 1, 1 and 2 of 4
    assert found.disagreement == pytest.approx(50)
    assert found.one_right == pytest.approx(100 * 4 / 12)
    assert found.predicted_std == pytest.approx(100 * np.sqrt((4 / 12) / 8))
    assert found.measured_std == pytest.approx(np.std([75, 50, 50], ddof=1))


def test_independent_errors_vary_as_predicted():
    rng = np.random.default_rng(0)
    chance = rng.beta(4, 1, size=2000)  # of each image to be classified correctly
    wrong = rng.random((200, 2000)) > chance
    found = seeds_apart(wrong.astype(int), np.zeros(2000, dtype=int))
    assert found.predicted_std == pytest.approx(found.measured_std, rel=0.15), "3 standard errors"
