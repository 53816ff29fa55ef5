"""Fewer training images: which are kept, and what does not change for that."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from kdbench.data.base import hold_out
from kdbench.data.memory.digits import digits
from kdbench.data.regimes import kept_rows
from kdbench.errors import ConfigError
from kdbench.records.identity import identify
from kdbench.records.protocol import protocol_of
from kdbench.records.settings import TrainSettings
from support.commands import compose

DIGITS = {"mean": [0.3] * 3, "std": [0.4] * 3, "pad": 4, "flip": False, "val_split": 0}


def counts(labels: torch.Tensor, classes: int, **settings: float) -> list[int]:
    rows = kept_rows(labels, classes, **{"fraction": 1.0, "long_tail": 1.0, **settings})
    return torch.bincount(labels[rows], minlength=classes).tolist()


def test_a_fraction_is_of_each_class():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 6)
    assert counts(labels, 3, fraction=0.25) == [10, 3, 2]  # 2.5 and 1.5 are rounded up
    assert counts(labels, 3, fraction=1.0) == [40, 10, 6]


def test_a_fraction_lies_in_a_larger_one_whatever_the_order_of_the_classes():
    labels = torch.arange(1000) % 7
    kept = [set(kept_rows(labels, 7, f, 1.0).tolist()) for f in (0.1, 0.25, 0.5, 0.75, 1.0)]
    for smaller, larger in pairwise(kept):
        assert smaller < larger
    rows = kept_rows(labels, 7, 0.25, 1.0)
    assert rows.tolist() == sorted(rows.tolist()), "the order of the data set stays"


def test_the_images_are_no_first_ones():
    """An archive may be sorted within its classes, by whoever made the images."""
    rows = kept_rows(torch.zeros(1000, dtype=torch.int64), 1, 0.5, 1.0).numpy()
    assert 400 < np.median(rows) < 600


@pytest.mark.parametrize(("classes", "each", "total"), [(100, 500, 10_847), (10, 5000, 12_406)])
def test_a_long_tail_has_the_sizes_of_cifar_lt(classes, each, total):
    """The sizes by LDAM's formula in whole numbers: k-th power without a rounding."""
    labels = torch.arange(classes * each) % classes
    found = counts(labels, classes, long_tail=100.0)
    assert found[0] == each
    assert found[-1] == each // 100
    assert sum(found) == total
    for k, n in enumerate(found):  # n <= each * 100^(-k / (K - 1)) < n + 1
        assert n ** (classes - 1) * 100**k <= each ** (classes - 1)
        assert (n + 1) ** (classes - 1) * 100**k > each ** (classes - 1)


def test_both_and_classes_that_have_fewer():
    labels = torch.tensor([0] * 5 + [1] * 30 + [2] * 25)  # 20 on average
    assert counts(labels, 3, long_tail=4.0) == [5, 10, 5]
    assert counts(labels, 3, long_tail=4.0, fraction=0.4) == [2, 4, 2]


def test_what_is_scored_and_held_out_stays():
    whole, some = digits(**{**DIGITS, "val_split": 100}), digits(
        **{**DIGITS, "val_split": 100}, fraction=0.5, long_tail=10.0
    )  # fmt: skip
    for split in ("val", "test"):
        one, other = getattr(whole, split), getattr(some, split)
        assert torch.equal(one.images, other.images)
    assert len(some.train.labels) < len(whole.train.labels) / 2
    assert some.fingerprint != whole.fingerprint
    train, _ = hold_out(digits(**DIGITS).train, 100, 10)
    assert torch.equal(train.labels, whole.train.labels)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fraction": 0.0}, "dataset.fraction must be above 0 and at most 1, not 0.0"),
        ({"fraction": 1.5}, "dataset.fraction must be above 0 and at most 1, not 1.5"),
        ({"long_tail": 0.5}, "dataset.long_tail must be 1 or more, not 0.5"),
        ({"long_tail": float("inf")}, "dataset.long_tail must be 1 or more, not inf"),
        ({"fraction": 0.2}, "leaves class 1 without training images, of 1: keep more"),
        ({"long_tail": 100.0}, "leaves class 1 without training images, of 1: keep more"),
    ],
)
def test_bad_settings_are_told(settings, said):
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        counts(torch.tensor([0] * 9 + [1]), 2, **settings)


def run_of(dataset: str, *words: str) -> tuple[str, str, TrainSettings]:
    shared = ["schedule=cifar100", "method=ce", "student=resnet8"]
    config = compose(f"dataset={dataset}", *shared, *words)
    return (
        identify(config, dataset, "0" * 64, {}).run_id,
        protocol_of(config.dataset, config.schedule),
        config,
    )


@pytest.mark.parametrize("dataset", ["cifar100", "imagenet"])
def test_only_a_regime_that_is_set_is_in_name_and_protocol(dataset):
    plain, protocol, config = run_of(dataset)
    node = config.dataset
    kept = {key: v for key, v in node.settings.items() if key not in ("fraction", "long_tail")}
    before = replace(config, dataset=replace(node, settings=kept))
    without = identify(before, dataset, "0" * 64, {}).run_id
    assert plain == without, "runs that were recorded before keep their names"
    assert run_of(dataset, "dataset.fraction=1")[0] == plain
    few, few_protocol, _ = run_of(dataset, "dataset.fraction=0.25")
    tail, tail_protocol, _ = run_of(dataset, "dataset.long_tail=100")
    assert len({plain, few, tail}) == 3
    assert few_protocol == f"{dataset}-240ep-b64-fraction0.25-last"
    assert tail_protocol == f"{dataset}-240ep-b64-lt100-last"
    assert protocol == f"{dataset}-240ep-b64-last"
