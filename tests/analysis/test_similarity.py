import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from kdbench.analysis.similarity import Alignment, hsic, kernel


def by_terms(first: np.ndarray, second: np.ndarray) -> float:
    """HSIC_1 as the mean over tuples of different images that it estimates (Song et al. 2012)."""
    n = len(first)
    total = 0.0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += first[i, j] * (second[i, j] + second[q, r] - 2 * second[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def features(n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(n, 5))
    return first, first @ rng.normal(size=(5, 8)) + rng.normal(size=(n, 8))


def aligned(first: np.ndarray, second: np.ndarray, batch: int = 64) -> float:
    found = Alignment(["a"], ["b"])
    for start in range(0, len(first), batch):
        part = slice(start, start + batch)
        found.add({"a": torch.from_numpy(first[part])}, {"b": torch.from_numpy(second[part])})
    return found.cka().item()


def test_hsic_is_the_mean_over_tuples():
    first, second = features(7)
    kernels = first @ first.T, second @ second.T
    found = hsic(*map(torch.from_numpy, kernels)).item()
    assert found == pytest.approx(by_terms(*kernels), rel=1e-11)


def test_centring_changes_digits_alone():
    first, second = features(9)
    plain = [torch.from_numpy(one @ one.T) for one in (first, second)]
    centred = [kernel(torch.from_numpy(one)) for one in (first, second)]
    assert hsic(*centred).item() == pytest.approx(hsic(*plain).item(), rel=1e-11)


def test_cka_of_a_rotated_and_scaled_feature_is_one():
    first, _ = features()
    turned = 3 * first @ ortho_group.rvs(5, random_state=0) + 2
    assert aligned(first, turned) == pytest.approx(1, abs=1e-12)


def test_independent_features_have_none_on_average():
    rng = np.random.default_rng(1)
    found = [aligned(rng.normal(size=(32, 40)), rng.normal(size=(32, 40))) for _ in range(60)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(60), "it is unbiased"
    assert abs(np.mean(found)) < 0.1, "the biased estimate has some 0.55"


def test_batches_estimate_what_all_images_have():
    first, second = features(2048)
    assert aligned(first, second, batch=64) == pytest.approx(
        aligned(first, second, batch=2048), abs=0.02
    )


def test_worked_as_a_ratio_of_sums_over_batches():
    first, second = features(64)
    parts = [
        [kernel(torch.from_numpy(one[s : s + 32])) for one in (first, second)] for s in (0, 32)
    ]
    both, one, other = (
        sum(hsic(part[a], part[b]).item() for part in parts) for a, b in ((0, 1), (0, 0), (1, 1))
    )
    assert aligned(first, second, batch=32) == pytest.approx(both / np.sqrt(one * other), rel=1e-12)


def test_a_last_batch_too_small_to_estimate_from_is_passed_over():
    first, second = features(67)
    assert aligned(first, second) == aligned(first[:64], second[:64])


def test_maps_are_flattened_and_every_pair_has_a_place():
    first, second = (torch.from_numpy(one) for one in features())
    found = Alignment(["a", "b"], ["c"])
    found.add({"a": first.reshape(64, 5, 1, 1), "b": torch.ones(64, 3)}, {"c": second})
    assert found.cka().shape == (2, 1)
    assert found.cka()[0, 0] == pytest.approx(aligned(first.numpy(), second.numpy()), rel=1e-12)
    assert np.isnan(found.cka()[1, 0]), "a constant is like nothing"
