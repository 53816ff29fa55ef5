"""Penultimate features in two dimensions: PCA, and t-SNE from there (scikit-learn).

t-SNE is weak evidence (distances between groups mean nothing), but every paper of the field has
it; the same images, classes and seed for all networks make the pictures comparable at least.
Source: van der Maaten and Hinton 2008, in scikit-learn's implementation with its own settings.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from kdbench.analysis.drawings import clouds
from kdbench.analysis.result import Drawing, Result, Table, fixed
from kdbench.analysis.subjects import Subject, features_of, first_seeds
from kdbench.data.base import Split
from kdbench.errors import ConfigError

CLASSES = 10  # the first ones, as in the papers' figures
IMAGES = 50  # at most of each class
PERPLEXITY = 30.0  # scikit-learn's; lower where there are fewer images
SEED = 0


def chosen_rows(labels: np.ndarray) -> np.ndarray:
    """Return the rows that are drawn: the first images of the first classes, in order.

    Raises:
        ConfigError: a class has one image or none, which makes no group.
    """
    classes = np.arange(min(CLASSES, labels.max() + 1))
    counts = np.bincount(labels, minlength=len(classes))[: len(classes)]
    if counts.min() < 2:
        few = int(counts.argmin())
        raise ConfigError(
            f"class {few} has {counts[few]} image(s) to score on, an "
            "embedding needs two of each: score on more, or leave embedding out of what"
        )
    return np.sort(np.concatenate([np.flatnonzero(labels == one)[:IMAGES] for one in classes]))


def principal(features: np.ndarray) -> np.ndarray:
    """Return the first two principal components [n, 2] of features [n, D], of definite sign."""
    return PCA(2, svd_solver="full").fit_transform(features)


def neighbours(features: np.ndarray) -> np.ndarray:
    """Return t-SNE [n, 2] of features [n, D], started from their PCA."""
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=SEED).fit_transform(features)


def measure(subjects: Sequence[Subject]) -> Result:
    """Embed one seed of each student both ways, and measure how far its classes lie apart."""
    shown = first_seeds(subjects)
    labels = shown[0].labels
    rows = chosen_rows(labels)
    numbers, lines = {}, []
    found: dict[str, dict[str, np.ndarray]] = {"pca": {}, "tsne": {}}
    for one in shown:
        test = one.dataset.test
        index = test.labels.new_tensor(rows)
        part = Split(test.images[index], test.labels[index])
        features = features_of(one.network, part, one.dataset, one.device).double().numpy()
        found["pca"][one.name] = principal(features)
        found["tsne"][one.name] = neighbours(features)
        apart = float(silhouette_score(features, labels[rows]))
        numbers[one.name] = {"silhouette": apart}
        lines.append([one.name, fixed(apart, 4)])
    table = Table(
        f"Silhouette of the classes in the penultimate features themselves, not in the drawings: "
        f"1 is far apart, 0 is mixed; {len(rows)} test images of {labels[rows].max() + 1} classes.",
        ["network", "silhouette"],
        lines,
    )
    titles = {"pca": "PCA of penultimate features", "tsne": "t-SNE of penultimate features"}
    drawings = [_drawing(key, titles[key], found[key], labels[rows]) for key in found]
    return Result(numbers, [table], drawings)


def _drawing(key: str, title: str, panels: dict[str, np.ndarray], labels: np.ndarray) -> Drawing:
    note = "The same test images and classes for all networks; axes have no unit."
    return Drawing(f"embedding-{key}", title, note, lambda palette: clouds(palette, panels, labels))
