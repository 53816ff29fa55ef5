from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from kdbench.analysis.subjects import Subject
from kdbench.analysis.transfer import at_size, measure, probe_top1, table_of
from kdbench.assembly.finished import Source
from kdbench.config.hydra_cli import compose_group
from kdbench.data.base import Split
from kdbench.errors import ConfigError
from kdbench.records.passport import Passport
from kdbench.schema.node import Node
from support.batches import dataset


def features(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.array([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    values = torch.from_numpy(centres[labels] + rng.normal(size=(n, 4))).float()
    return Split(values, torch.from_numpy(labels))


def test_a_probe_does_as_scikit_learns_logistic_regression():
    train, test = features(600, 0), features(600, 1)
    found = probe_top1(train, test, 3)
    reference = LogisticRegression(C=1.0).fit(train.images.numpy(), train.labels.numpy())
    assert found == pytest.approx(100 * reference.score(test.images, test.labels), abs=1.5)
    assert found > 80
    assert probe_top1(train, test, 3) == found, "the same every time"


def test_a_scale_of_the_features_is_no_learning_rate():
    train, test = features(300, 0), features(300, 1)
    large = [Split(1024 * one.images, one.labels) for one in (train, test)]
    assert probe_top1(*large, 3) == pytest.approx(probe_top1(train, test, 3), abs=0.4)


def test_images_become_as_small_as_the_network_takes_them():
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    images[1] = 200
    found = at_size(images, (32, 32))
    assert found.shape == (3, 3, 32, 32)
    assert found.dtype == torch.uint8
    assert found.amin(dim=(1, 2, 3)).tolist() == [0, 200, 0]
    assert at_size(found, (32, 32)).equal(found)
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    grey = at_size(board.to(torch.uint8).expand(1, 3, 64, 64), (32, 32)).float()
    assert grey.std() < 10, "without antialiasing a board of pixels stays black or white"


def test_the_table_is_over_seeds():
    probe = {"from": {"name": "cifar100"}, "to": {"name": "stl10", "side": 32}}
    records = [
        {**probe, "configuration": name, "top1": top1}
        for name, top1 in (("kd", 70.0), ("ce", 60.0), ("kd", 72.0))
    ]
    assert table_of(records).rows == [["ce", "60.00", "", "1"], ["kd", "71.00", "1.41", "2"]]


def test_a_network_of_grey_images_is_not_probed_on_colour():
    """kdbench's own data have three channels each, a plugin's may have one."""
    data = dataset()
    grey = replace(data, test=Split(data.test.images[:, :1], data.test.labels))
    source = Source("net:file", Path("file"), Node("mylab.net", {}), None, Passport())
    cpu = torch.device("cpu")
    subject = Subject("file", source, grey, nn.Identity(), {}, cpu, np.zeros((1, 10)), None)
    colour = Node.read(compose_group("dataset", "synthetic"))
    with pytest.raises(ConfigError) as told:
        measure([subject], colour)
    assert str(told.value) == (
        "synthetic has 3 channels, the networks take 1: choose another data set to transfer to"
    )
