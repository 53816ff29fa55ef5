"""Measures of short formulas, each counted another way."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import accuracy_score

from kdbench.analysis.agreement import fidelity, rank_correlation, seeds_apart
from kdbench.analysis.correlation import class_correlation, class_means, off_diagonal
from kdbench.analysis.cost import cost
from kdbench.analysis.entropy import divergence
from kdbench.errors import KdbenchError
from kdbench.networks.resnet import resnet8
from support.batches import pair
from support.zoo import mac_count, parameter_count


def test_counts_are_those_of_hooks():
    network, image = resnet8(10).eval(), torch.randn(1, 3, 32, 32)
    found = cost(network, image.expand(64, -1, -1, -1).contiguous())
    assert found.parameters == parameter_count(network)
    assert found.macs == mac_count(network, image)
    assert found.latency_1_ms > 0
    assert found.images_per_second == pytest.approx(64_000 / found.latency_64_ms)


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


def test_is_numpys_correlation():
    logits, _, _ = pair()
    np.testing.assert_allclose(
        class_correlation(logits), np.corrcoef(logits, rowvar=False), atol=1e-13
    )


def test_worked_values():
    logits = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 0.0], [3.0, 6.0, 1.0], [4.0, 8.0, 0.0]])
    found = class_correlation(logits)
    assert found[0, 1] == pytest.approx(1, abs=1e-14)
    assert found[0, 2] == pytest.approx(-1 / np.sqrt(5), abs=1e-14)  # -1 / (sqrt 5 * 1)
    assert off_diagonal(np.array([[9.0, -1.0], [3.0, 9.0]])) == 2


def test_scale_and_shift_of_a_class_change_nothing():
    logits, _, _ = pair()
    moved = logits * np.linspace(1, 3, 6) + np.arange(6)
    np.testing.assert_allclose(class_correlation(moved), class_correlation(logits), atol=1e-13)


def test_means_are_of_a_row_a_true_class():
    found = class_means(np.array([[1.0, 0.0], [3.0, 2.0], [5.0, 9.0]]), np.array([0, 0, 1]))
    np.testing.assert_array_equal(found, [[2, 1], [5, 9]])


def test_a_constant_logit_and_a_class_without_images_are_told():
    with pytest.raises(KdbenchError, match="class 1 has one logit for all 2 images"):
        class_correlation(np.array([[1.0, 2.0], [3.0, 2.0]]))
    with pytest.raises(KdbenchError, match="class 1 has no image"):
        class_means(np.zeros((2, 2)), np.array([0, 0]))
