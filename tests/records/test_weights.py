"""Checkpoints of other code bases load as they are."""

import gzip
import io
import pickle
import tarfile
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import KdbenchError
from kdbench.networks.resnet import resnet8, resnet8x4, resnet32
from kdbench.records.passport import find_passport, sha256_of
from kdbench.records.weight_files import read_content
from kdbench.records.weights import find_checkpoint, load_weights, save_weights
from support.commands import SHARED

State = dict[str, torch.Tensor]


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
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in read_content(path).items())


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


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def put(content: object, folder: Path, name: str = "ckpt.pth") -> Path:
    torch.save(content, folder / name)
    return folder / name


def loads(path: Path, trained: nn.Module, **options: Any) -> list[str]:
    """Loads the file, which must hold the weights of `trained`; returns the notes."""
    fresh = resnet8(num_classes=5)
    lines = load_weights(fresh, path, "resnet8", **options)
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[key], value, rtol=0.01, atol=0.01)
    return lines


def refuses(path: Path, **options: Any) -> str:
    with pytest.raises(KdbenchError) as caught:
        load_weights(resnet8(num_classes=5), path, "resnet8", **options)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert line.isprintable(), "one line without escape codes"
    assert "weights_only" not in line
    return line.removeprefix(f"{path} ")


PREFIXES = [
    *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."),
    *("model.", "net.", "student.", "a.b.", "module.model._orig_mod.", "architecture.backbone."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_taken_away(trained, tmp_path, prefix):
    assert loads(put({"state_dict": under(prefix, trained.state_dict())}, tmp_path), trained) == []


def test_a_wrapper_inside_a_network_is_taken_away(trained, tmp_path):
    state = {
        key.replace("layer1.", "layer1.module._orig_mod."): value
        for key, value in trained.state_dict().items()
    }
    loads(put(state, tmp_path), trained)


KEYS = [
    *("model_state_dict", "model_state", "weights", "params", "ema", "state_dict_ema", "teacher"),
    "anything at all",
]


@pytest.mark.parametrize("key", KEYS)
def test_weights_lie_under_any_key(trained, tmp_path, key):
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.zeros(2, 3, 32, 32)).logits.sum().backward()
    optimizer.step()
    content = {key: trained.state_dict(), "epoch": 3, "optimizer": optimizer.state_dict()}
    loads(put(content, tmp_path), trained)
    loads(put({"trainer": [{"deep": content}]}, tmp_path), trained)


def other(network: nn.Module) -> State:
    return {key: value + 1 for key, value in network.state_dict().items()}


TWO_SETS = {
    "keys": lambda a, b: {"model": a, "model_ema": b},
    "wrapped": lambda a, b: {"model": under("module.", a), "model_ema": under("_orig_mod.", b)},
    "nested": lambda a, b: {"model": {"state_dict": a}, "model_ema": {"state_dict": b}},
    "prefixes": lambda a, b: under("model.", a) | under("model_ema.", b),
    "wrapped prefixes": lambda a, b: under("module.model.", a) | under("module.model_ema.", b),
    "one inside": lambda a, b: {"state_dict": under("model.", a) | under("model.model_ema.", b)},
}


@pytest.mark.parametrize("form", TWO_SETS)
def test_of_two_sets_none_is_chosen_in_silence(trained, tmp_path, form):
    state = trained.state_dict()
    path = put(TWO_SETS[form](state, other(trained)), tmp_path)
    line = refuses(path, option="teacher.resnet8.checkpoint_key")
    assert "model" in line
    assert "model_ema" in line
    assert "choose one with teacher.resnet8.checkpoint_key=KEY" in line
    names = line.partition("(")[2].partition(")")[0].split(", ")
    assert loads(path, trained, key=names[0]) == []
    with pytest.raises(AssertionError, match="Tensor-likes"):
        loads(path, trained, key="model_ema")
    assert "holds no weights of a resnet8 under checkpoint_key=modle: " in refuses(
        path, key="modle"
    )


def test_equal_sets_are_two_sets(trained, tmp_path):
    """One object in the file, which the unpickler gives twice."""
    state = trained.state_dict()
    assert "(student, teacher)" in refuses(put({"student": state, "teacher": state}, tmp_path))


def test_a_set_at_the_top_beside_one_under_a_prefix(trained, tmp_path):
    path = put(trained.state_dict() | under("ema.", other(trained)), tmp_path)
    assert "(., ema)" in refuses(path)
    loads(path, trained, key=".")


def test_of_two_networks_the_one_that_fits_is_loaded(trained, tmp_path):
    state, deeper = trained.state_dict(), resnet32(num_classes=5).state_dict()
    loads(put({"student": state, "teacher": deeper}, tmp_path), trained)
    loads(
        put(under("module.student.", state) | under("module.teacher.", deeper), tmp_path), trained
    )


def test_what_a_method_has_added_is_no_part_of_the_network(trained, tmp_path):
    path = put(
        under("student.", trained.state_dict()) | {"adapter.weight": torch.ones(4, 4)}, tmp_path
    )
    line = refuses(path)
    assert "is no resnet8 alone" in line
    assert "take that part with checkpoint_key=student" in line
    loads(path, trained, key="student")


def test_deeper_networks_are_no_shallower_ones(tmp_path):
    path = put(resnet32(num_classes=5).state_dict(), tmp_path)
    assert "is not of a resnet8 (it has layer1.1.conv1.weight)" in refuses(path)


def test_buffers_that_are_no_weights_are_left_out_and_said_once(trained, tmp_path):
    state = trained.state_dict()
    for module in ("conv1", "layer1.0.conv1", "layer1", "fc"):
        state[f"{module}.total_ops"] = torch.zeros(1, dtype=torch.float64)
        state[f"{module}.total_params"] = torch.zeros(1, dtype=torch.float64)
    state["normalize.mean"] = torch.zeros(1, 3, 1, 1)
    state["n_averaged"] = torch.tensor(3)
    (line,) = loads(put({"state_dict": under("module.", state)}, tmp_path), trained)
    assert (
        "total_ops, total_params, mean, n_averaged (10 tensors) are no weights of a resne" in line
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_load(trained, tmp_path, dtype):
    loads(put({k: v.to(dtype) for k, v in trained.state_dict().items()}, tmp_path), trained)


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors", "a"])
def test_the_content_says_what_a_file_is(trained, tmp_path, name):
    path = tmp_path / name
    save_weights(trained, path)
    loads(path, trained)
    loads(put(trained.state_dict(), tmp_path, name), trained)


def zipped(**members: bytes) -> bytes:
    with zipfile.ZipFile(sink := io.BytesIO(), "w") as archive:
        for member, content in members.items():
            archive.writestr(member.replace("_", "."), content)
    return sink.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    """A tar archive, as the oldest versions of PyTorch wrote them."""
    with tarfile.open(fileobj=(sink := io.BytesIO()), mode="w") as archive:
        archive.addfile(member := tarfile.TarInfo(name), io.BytesIO(content))
        member.size = len(content)
    return sink.getvalue()


def scrambled(archive: bytes, at: int, content: bytes) -> bytes:
    """A zip archive with other bytes in the list of its members."""
    start = archive.index(b"PK\1\2") + at
    return archive[:start] + content + archive[start + len(content) :]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS = {
    "is a web page: fetch it again": b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>",
    "is a Git LFS pointer and not the file: run git lfs pull": LFS,
    "is compressed (gzip): unpack it first": gzip.compress(b"x" * 100),
    "is a zip archive: unpack it first": zipped(a_txt=b"1"),
    "is a NumPy archive: save a PyTorch state_dict()": zipped(a_npy=b"1"),
    "is a tar archive: unpack it first": tarred("tensors", b"1"),
    "cannot be read (Bad magic number for central directory): is it truncated?": scrambled(
        zipped(data_pkl=b"1"), 0, b"PK\0\0"
    ),
    "cannot be read (zip file version 9.9): is it truncated?": scrambled(
        zipped(data_pkl=b"1"), 6, b"\x63"
    ),
    "is a text file and no checkpoint: fetch it again": b'{"message": "Not Found"}',
    "is empty: was it truncated? fetch it again": b"",
}


@pytest.mark.parametrize("line", OTHERS)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_what_is_no_checkpoint_is_named_as_what_it_is(tmp_path, line, name):
    (tmp_path / name).write_bytes(OTHERS[line])
    assert refuses(tmp_path / name) == line


def test_a_folder_is_no_weight_file(tmp_path):
    assert refuses(tmp_path) == "cannot be read (not a regular file)"
    assert refuses(tmp_path / "gone.pth").startswith("cannot be read (")


class Mine(nn.Linear):
    """A network of somebody's own."""


OBJECTS = {
    "torch.nn.Sequential": lambda: nn.Sequential(nn.Linear(2, 2)),
    f"{__name__}.Mine": lambda: Mine(2, 2),
    "pathlib.PosixPath": lambda: PosixPath("a"),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 5"])
@pytest.mark.parametrize("beside", [True, False], ids=["beside", "alone"])
def test_objects_are_named(trained, tmp_path, monkeypatch, kind, form, beside):
    content, path = OBJECTS[kind](), tmp_path / "a.pth"
    if beside:
        content = {"state_dict": trained.state_dict(), "best": np.float64(3), "thing": content}
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    for force in ("0", "1"):
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", force)
        line = refuses(path)
        if not (form.startswith("pickle") and beside):  # tensors are pickled by other names there
            assert f"it holds a {kind}: save its state_dict()" in line
        assert "is refused" in line


def test_a_scripted_module_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that scripting is on its way out
        torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "a.pt")
    assert refuses(tmp_path / "a.pt") == "is a TorchScript module: save its state_dict()"


def test_a_start_from_weights_of_other_classes_keeps_the_new_head(trained, tmp_path):
    path, fresh = put(trained.state_dict(), tmp_path), resnet8(num_classes=7)
    head = fresh.fc.weight.detach().clone()
    (line,) = load_weights(fresh, path, "resnet8", new_head=True)
    assert line == f"{path} has 5 classes, the data set 7: resnet8 gets a new head"
    assert torch.equal(fresh.fc.weight, head)
    assert torch.equal(fresh.conv1.weight, trained.conv1.weight)
    with pytest.raises(KdbenchError, match="is not of a resnet8x4"):
        load_weights(resnet8x4(num_classes=7), path, "resnet8x4", new_head=True)
