"""Batches of digits, and logits of a student that half follows its teacher."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from kdbench.data.augmentation.views import normalise
from kdbench.data.base import Split
from kdbench.data.memory.digits import digits
from kdbench.methods.base import Method
from kdbench.types import Batch


@cache
def dataset():
    whole = digits([0.5] * 3, [0.25] * 3, pad=0, flip=False, val_split=0)
    train = Split(*(tensor[:640] for tensor in whole.train))
    return replace(whole, train=small(train), test=small(whole.test))


def batch_of(rows: Tensor, epoch: float, method: Method) -> Batch:
    data = dataset()
    images = normalise(data.train.images[rows], data.mean, data.std)
    if method.views > 1:
        images = torch.stack([images, images.flip(-2) / 2])
    batch = Batch(images, data.train.labels[rows], rows, torch.tensor(epoch))
    return batch._replace(drawn=method.draw(batch, torch.Generator().manual_seed(int(rows[0]))))


def small(split: Split) -> Split:
    return Split(split.images[:, :, ::4, ::4].contiguous(), split.labels)


def pair(n: int = 240, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Student's and teacher's logits [n, K], and labels [n] that the teacher often gets right."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    teacher = rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels]
    student = 0.5 * teacher + rng.normal(size=(n, classes))
    return student, teacher, labels
