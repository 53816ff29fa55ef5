"""Logits that a test measures: random, of a student that half follows its teacher."""

import numpy as np


def pair(n: int = 240, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Student's and teacher's logits [n, K], and labels [n] that the teacher often gets right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    teacher = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    student = 0.5 * teacher + rng.normal(size=(n, classes))
    return student, teacher, labels
