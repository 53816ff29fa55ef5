"""Networks and losses against reference values computed from the authors' released code.

KDBENCH_GOLDEN names a folder of such values; without it they come from tests/golden. All are in
float64. A folder may hold networks (models.json), losses (an index.json with its arrays, a file a
case or packed, in the folder itself or in folders below it called losses...), or both; what it
lacks is not tested.
"""

import json
import math
import os
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.adapters import GUARDED, LOSSES
from support.golden import arrays_of, pack, read
from support.zoo import constructor, mac_count, network_names, parameter_count


def golden_folder() -> Path:
    return Path(os.environ.get("KDBENCH_GOLDEN") or Path(__file__).parent / "golden")


# --- Networks: models.json ---------------------------------------------------------------------

RELATIVE = 1e-8  # the references have ten significant digits


@cache
def model_cases() -> dict[str, dict]:
    return read(golden_folder() / "models.json") or {}


def fixed_images() -> Tensor:
    return torch.sin(0.013 * torch.arange(2 * 3 * 32 * 32).double()).reshape(2, 3, 32, 32)


def fixed_weights(key: str, shape: torch.Size) -> Tensor:
    """The value that the reference computation gave to the state-dict entry `key`."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1)
    steps = torch.arange(math.prod(shape)).double() + 1
    base = torch.sin(0.37 * steps + (crc32(key.encode()) % 1000) / 100).reshape(shape)
    if len(shape) >= 2:
        return base * math.sqrt(2 / math.prod(shape[1:]))
    if key.endswith(("running_mean", "bias")):
        return 0.1 * base
    return 1 + 0.5 * base if key.endswith("running_var") else 1 + 0.1 * base


def check_state_dict(network: nn.Module, expected: list) -> None:
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    wanted = {key: list(shape) for key, shape in expected}
    if not any(key.endswith("num_batches_tracked") for key in wanted):
        shapes = {k: v for k, v in shapes.items() if not k.endswith("num_batches_tracked")}
    assert shapes == wanted


def check_logits(logits: Tensor, expected: Tensor) -> None:
    # Relative element by element; the second part is for logits near zero, sums that cancel.
    tolerance = RELATIVE * expected.abs() + 0.01 * RELATIVE * expected.abs().max()
    assert logits.shape == expected.shape
    assert ((logits - expected).abs() <= tolerance).all()


def check_features(taps: dict[str, Tensor], expected: list[dict]) -> None:
    names = [name for name in taps if not name.endswith("_pre") and name != "map"]
    assert len(names) == len(expected)
    for name, values in zip(names, expected, strict=True):
        feature, before = taps[name], taps.get(f"{name}_pre", taps[name])
        assert list(feature.shape[1:]) == values["shape"], name
        assert before.shape == feature.shape, name
        # A mean may cancel to almost nothing, so the mean of absolute values sets the scale.
        scale = RELATIVE * max(values["abs_mean"], abs(values["preact_mean"]))
        assert abs(feature.mean().item() - values["mean"]) <= scale, name
        assert abs(feature.abs().mean().item() - values["abs_mean"]) <= scale, name
        assert abs(before.mean().item() - values["preact_mean"]) <= scale, name


def test_the_folder_has_references() -> None:
    assert model_cases() or loss_cases(), f"{golden_folder()} has no models.json and no index.json"


@pytest.mark.parametrize("name", sorted(model_cases()))
def test_network_matches_reference(name: str) -> None:
    if name not in network_names():
        pytest.fail(f"models.json has '{name}', conf/student has no {name}.yaml")
    case = model_cases()[name]
    logits = torch.tensor(case["logits"], dtype=torch.float64)
    network = constructor(name)(num_classes=logits.shape[1]).double().eval()
    assert parameter_count(network) == case["parameters"]
    assert mac_count(network, fixed_images()[:1]) == case["mac_per_image"]
    if case.get("state_dict"):
        check_state_dict(network, case["state_dict"])
    weights = network.state_dict()
    network.load_state_dict({key: fixed_weights(key, weights[key].shape) for key in weights})
    with torch.no_grad():
        output = network(fixed_images())
    check_logits(output.logits, logits)
    check_features(output.taps, case["features"])


# --- Losses: index.json ------------------------------------------------------------------------
#
# A new method adds one adapter to a file in tests/support/adapters: from a case's parameters and
# inputs to the loss as the reference reduces it. `note` in the index says what the reference
# includes.


@cache
def loss_cases() -> dict[str, tuple[Path, dict]]:
    """Each case by name, and the folder of its arrays."""
    folders = [golden_folder(), *sorted(golden_folder().glob("losses*"))]
    return {
        case["case"]: (folder, case)
        for folder in folders
        for case in read(folder / "index.json") or ()
    }


@pytest.mark.parametrize("name", sorted(loss_cases()))
def test_loss_matches_reference(name: str) -> None:
    folder, case = loss_cases()[name]
    if case["method"] not in LOSSES:
        pytest.fail(f"no adapter for the loss '{case['method']}' of {name}")
    arrays = {key: torch.from_numpy(array) for key, array in arrays_of(folder, case).items()}
    inputs = {key: arrays[key].clone() for key in case["inputs"]}
    expected = {key: arrays[key] for key in case["expected"]}
    differentiated = [key.removeprefix("grad_") for key in expected if key.startswith("grad_")]
    for key in differentiated:
        inputs[key].requires_grad_()
    result = LOSSES[case["method"]](case["params"], inputs)
    (wanted,) = (value for key, value in expected.items() if not key.startswith("grad_"))
    rtol, atol = max(1e-9, GUARDED.get(case["method"], 0)), case.get("atol") or 0.0
    torch.testing.assert_close(result.detach(), wanted.reshape(result.shape), rtol=rtol, atol=atol)
    if differentiated:
        result.backward()
    for key in differentiated:
        gradient = expected[f"grad_{key}"]
        near = max(atol, rtol * gradient.abs().max().item())
        torch.testing.assert_close(inputs[key].grad, gradient, rtol=10 * rtol, atol=near)


def test_packed_values_are_the_same_values(tmp_path):
    shared, exact = np.array([0.1, -0.2]), np.array([0.5, -2.0])
    cases = [{"case": "a"}, {"case": "b"}]
    (tmp_path / "index.json").write_text(json.dumps(cases))
    np.savez(tmp_path / "a.npz", x=shared, labels=np.array([1, 2]))
    np.savez(tmp_path / "b.npz", x=shared, y=exact)
    pack([tmp_path], tmp_path / "packed")
    index = read(tmp_path / "packed" / "index.json")
    assert index[0]["arrays"]["x"] == index[1]["arrays"]["x"], "it is stored once"
    for case, one in zip(cases, index, strict=True):
        before, after = arrays_of(tmp_path, case), arrays_of(tmp_path / "packed", one)
        assert before.keys() == after.keys()
        for key in before:
            assert before[key].dtype == after[key].dtype
            np.testing.assert_allclose(after[key], before[key], rtol=1e-11, atol=0)
    assert np.array_equal(after["y"], exact)
