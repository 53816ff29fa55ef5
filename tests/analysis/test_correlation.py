import numpy as np
import pytest

from kdbench.analysis.correlation import class_correlation, class_means, off_diagonal
from kdbench.errors import KdbenchError
from support.batches import pair


def test_it_is_numpys_correlation():
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
