from pathlib import Path

import numpy as np
import pytest
import torch

from kdbench.analysis.robustness import blurred, compressed, from_files, noisy, ours
from kdbench.data.base import Split
from kdbench.errors import KdbenchError

GREY = torch.full((8, 3, 32, 32), 128, dtype=torch.uint8)


def test_noise_has_the_spread_that_it_says():
    found = noisy(GREY, 10.0).float() - 128
    assert found.std() == pytest.approx((100 + 1 / 12) ** 0.5, rel=0.02), "and rounding's"
    assert found.mean() == pytest.approx(0, abs=0.3)
    assert noisy(GREY, 10.0).equal(noisy(GREY, 10.0))


def test_blur_is_of_an_image_of_32():
    point = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    point[..., 16, 16] = 255
    found = blurred(point, 0.8)[0, 0].float()
    offsets = torch.arange(32.0) - 16
    assert found.sum() == pytest.approx(255, rel=0.06), "pixels are rounded"
    spread = ((found.sum(0) * offsets**2).sum() / found.sum()).sqrt()
    assert spread == pytest.approx(0.8, rel=0.06)
    large = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    large[..., 32, 32] = 255
    assert (blurred(large, 0.8)[0, 0] > 0).sum() > (found > 0).sum()


def test_jpeg_keeps_what_is_smooth_and_spoils_the_rest():
    ramp = torch.arange(32, dtype=torch.uint8).mul(7).expand(1, 3, 32, 32).contiguous()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=generator)
    errors = [
        (compressed(one, quality).float() - one.float()).abs().mean()
        for one in (ramp, noise)
        for quality in (80, 10)
    ]
    assert errors[0] < 3
    assert errors[1] < errors[3]
    assert errors[2] < errors[3]


def test_ours_are_three_at_five_strengths_with_their_labels():
    found = list(ours(Split(GREY, torch.arange(8))))
    assert sorted({one.corruption for one in found}) == ["gaussian blur", "gaussian noise", "jpeg"]
    assert [one.strength for one in found[::3]] == [1, 2, 3, 4, 5]
    assert all(one.split.labels.equal(torch.arange(8)) for one in found)


def write(folder: Path, name: str, pixels: np.ndarray) -> Path:
    np.save(folder / "labels.npy", np.tile(np.arange(4), 5))
    np.save(folder / f"{name}.npy", pixels)
    return folder


def test_files_as_cifar100_c_has_them(tmp_path):
    pixels = np.zeros((20, 6, 5, 3), dtype=np.uint8)
    pixels[:, 2, 1, 0] = np.arange(20)
    found = list(from_files(write(tmp_path, "motion_blur", pixels), (4, 3, 6, 5)))
    assert [(one.corruption, one.strength) for one in found][::4] == [
        ("motion blur", 1), ("motion blur", 5),
    ]  # fmt: skip
    assert found[1].split.images.shape == (4, 3, 6, 5)
    assert found[1].split.images[:, 0, 2, 1].tolist() == [4, 5, 6, 7]
    assert found[1].split.labels.tolist() == [0, 1, 2, 3]


def test_bad_files_are_told(tmp_path):
    with pytest.raises(KdbenchError, match="set corrupted=DIR to CIFAR-100-C"):
        list(from_files(tmp_path, (4, 3, 6, 5)))
    folder = write(tmp_path, "fog", np.zeros((10, 6, 5, 3), dtype=np.uint8))
    with pytest.raises(KdbenchError, match=r"fog.npy holds uint8 \[10, 6, 5, 3\] with 20 labels"):
        list(from_files(folder, (4, 3, 6, 5)))
    (tmp_path / "fog.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(KdbenchError, match=r"cannot read .*fog.npy"):
        list(from_files(folder, (4, 3, 6, 5)))
