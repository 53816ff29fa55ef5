import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from kdbench.analysis.calibration import (
    BINS,
    calibration,
    halves,
    nll,
    reliability,
    scaled,
    temperature,
)
from support.batches import pair


def test_bins_are_scikit_learns():
    logits, _, labels = pair(n=2000)
    probabilities = np.exp(log_softmax(logits, axis=1))
    confidence, correct = probabilities.max(axis=1), logits.argmax(axis=1) == labels
    accuracy, mean = calibration_curve(correct, confidence, n_bins=BINS, strategy="uniform")
    filled = [one for one in reliability(confidence, correct) if one.n]
    np.testing.assert_allclose([one.accuracy for one in filled], accuracy, atol=1e-12)
    np.testing.assert_allclose([one.confidence for one in filled], mean, atol=1e-12)
    assert sum(one.n for one in filled) == 2000


def test_ece_and_nll():
    logits, _, labels = pair(n=2000)
    found = calibration(logits, labels)
    filled = [one for one in found.bins if one.n]
    gaps = sum(one.n * abs(one.accuracy - one.confidence) for one in filled) / 2000
    assert found.ece == pytest.approx(100 * gaps, abs=1e-10)
    assert found.nll == pytest.approx(log_loss(labels, np.exp(log_softmax(logits, axis=1))), 1e-12)


def test_ece_worked_by_hand():
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    found = calibration(logits, np.array([0, 1, 0, 0]))
    assert found.ece == pytest.approx(100 * (0.5 * 0.4 + 0.5 * 0.4), abs=1e-10)


def test_a_bin_has_its_upper_edge():
    (only,) = [one for one in reliability(np.array([1.0, 1.0]), np.array([True, False])) if one.n]
    assert (only.high, only.accuracy) == (1, 0.5)


def test_temperature_is_where_the_likelihood_is_best():
    logits, _, labels = pair(n=500)
    found = temperature(logits, labels)
    best = minimize_scalar(
        lambda t: nll(logits / t, labels), bounds=(0.05, 20), method="bounded",
        options={"xatol": 1e-10},
    )  # fmt: skip
    assert found == pytest.approx(best.x, rel=1e-5)
    assert nll(logits / found, labels) <= best.fun + 1e-12


def test_temperature_undoes_a_scale():
    logits, _, labels = pair(n=500)
    found = temperature(logits, labels)
    assert temperature(7 * logits, labels) == pytest.approx(7 * found, rel=1e-10)


def test_halves_split_every_class():
    labels = np.array([2, 0, 0, 1, 2, 0, 1, 2, 2])
    first, second = halves(labels)
    assert sorted([*first, *second]) == list(range(9))
    counts = np.bincount(labels[first]) - np.bincount(labels[second])
    assert counts.tolist() == [1, 0, 0]


def test_no_image_is_scored_under_a_temperature_that_it_helped_to_fit():
    logits, _, labels = pair(n=300)
    first, second = halves(labels)
    found = scaled(logits, labels, None)
    at = temperature(logits[second], labels[second])
    np.testing.assert_array_equal(found.logits[first], logits[first] / at)
    assert found.temperatures == [at, temperature(logits[first], labels[first])]
    held_out = scaled(logits, labels, (logits[:90], labels[:90]))
    assert held_out.temperatures == [temperature(logits[:90], labels[:90])]
    assert held_out.fitted_on == "validation"


def test_scaling_leaves_the_answers_and_lowers_the_likelihood_of_an_overconfident_network():
    logits, _, labels = pair(n=2000)
    before, found = 5 * logits, scaled(5 * logits, labels, None)
    np.testing.assert_array_equal(found.logits.argmax(1), before.argmax(1))
    assert calibration(found.logits, labels).ece < calibration(before, labels).ece / 2
    assert nll(found.logits, labels) < nll(before, labels) / 2
