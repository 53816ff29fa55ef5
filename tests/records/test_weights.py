"""Checkpoints of other code bases load as they are."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import KdbenchError
from kdbench.networks.resnet import resnet8, resnet32
from kdbench.records.passport import find_passport, sha256_of
from kdbench.records.weights import find_checkpoint, load_weights, read_tensors, save_weights
from support.commands import SHARED


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    return resnet8(num_classes=5)


def forms(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """The ways in which the field's code bases save a state dict."""
    optimizer = torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1, momentum=0.9)
    return {
        "plain": state,
        "RepDistiller": {
            "epoch": 240,
            "model": state,
            "accuracy": np.float64(79.42),
            "optimizer": optimizer.state_dict(),
            "opt": Namespace(model="resnet8", trial=0),
        },
        "mdistiller": {"model": state, "best_acc": np.float32(72.5), "epoch": 240},
        "DataParallel": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "old torch": {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "form", ["plain", "RepDistiller", "mdistiller", "DataParallel", "old torch"]
)
def test_every_form_loads(trained, tmp_path, form, zipped):
    path = tmp_path / "ckpt_epoch_240.pth"
    content = forms(trained.state_dict())[form]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    fresh = resnet8(num_classes=5)
    load_weights(fresh, path, "resnet8")
    for key, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_ours_come_back_also_from_channels_last(trained, tmp_path):
    path = tmp_path / "student.safetensors"
    save_weights(trained.to(memory_format=torch.channels_last), path)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in read_tensors(path).items())


def test_missing_weights_are_not_made_up(trained, tmp_path):
    state = trained.state_dict()
    del state["bn1.running_mean"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(KdbenchError, match=r"lacks bn1\.running_mean"):
        load_weights(resnet8(num_classes=5), tmp_path / "a.pth", "resnet8")


def test_a_known_checkpoint_brings_its_passport():
    path = SHARED / "weights" / "resnet32_cifar100_69.51.pth"
    if not path.is_file():
        pytest.skip(f"no weights at {path}")
    passport = find_passport(path, sha256_of(path))
    assert (passport.network, passport.dataset, passport.top1) == ("resnet32", "cifar100", 69.51)
    load_weights(resnet32(num_classes=100), path, "resnet32")


def test_a_name_that_several_runs_bear(trained, tmp_path):
    for digits in ("aaaa0000", "bbbb1111"):
        (tmp_path / f"digits-s0-{digits}").mkdir()
        save_weights(trained, tmp_path / f"digits-s0-{digits}" / "student.safetensors")
    with pytest.raises(KdbenchError, match=r"called digits-s0: name one of .*aaaa0000, .*bb1111"):
        find_checkpoint("digits-s0", tmp_path)
    assert find_checkpoint("digits-s0-bbbb1111", tmp_path).parent.name == "digits-s0-bbbb1111"


def test_weights_of_another_shape_inside(trained, tmp_path):
    """Not of other classes, which is a line of its own."""
    state = trained.state_dict()
    path = tmp_path / "other.pth"
    torch.save({**state, "conv1.weight": state["conv1.weight"][:, :1]}, path)
    line = r"not of a resnet8 \(conv1.weight is \[16, 1, 3, 3\], not \[16, 3, 3, 3\]\)"
    with pytest.raises(KdbenchError, match=line):
        load_weights(resnet8(num_classes=5), path, "resnet8")
