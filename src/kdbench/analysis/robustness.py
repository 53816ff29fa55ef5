"""How a student does on images that are spoilt: CIFAR-100-C, or three corruptions of ours.

Source: Hendrycks and Dietterich 2019 (arXiv 1903.12261) for files in the form of CIFAR-100-C. Where
there are none, Gaussian noise, Gaussian blur and JPEG are made on the fly, at five strengths each
that are ours: such numbers compare the networks of one figure, and with nobody else's.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from kdbench.analysis.drawings import Line, lines
from kdbench.analysis.result import Drawing, Result, Table, fixed
from kdbench.analysis.subjects import Subject, first_seeds, logits_of
from kdbench.data.base import Split
from kdbench.errors import KdbenchError, first_line
from kdbench.seeds import derive

STRENGTHS = 5
NOISE = (5.0, 10.0, 15.0, 20.0, 30.0)  # standard deviation, of pixels in 0..255
BLUR = (0.4, 0.6, 0.8, 1.0, 1.3)  # sigma in pixels of an image of 32; in proportion of larger ones
JPEG = (80, 60, 40, 25, 10)  # quality
LABELS = "labels.npy"


class Spoilt(NamedTuple):
    """Test images under one corruption, at one strength from 1 to 5."""

    corruption: str
    strength: int
    split: Split


def ours(split: Split) -> Iterator[Spoilt]:
    """Yield noise, blur and JPEG of a split; the bytes are the same every time."""
    images = split.images[:]
    for number in range(STRENGTHS):
        made = {
            "gaussian noise": noisy(images, NOISE[number]),
            "gaussian blur": blurred(images, BLUR[number]),
            "jpeg": compressed(images, JPEG[number]),
        }
        for name, spoilt in made.items():
            yield Spoilt(name, number + 1, Split(spoilt, split.labels))


def noisy(images: Tensor, spread: float) -> Tensor:
    """Return pixels uint8 [N, C, H, W] plus Gaussian noise of this standard deviation."""
    generator = torch.Generator().manual_seed(derive(0, "noise"))
    noise = torch.randn(images.shape, generator=generator) * spread
    return (images.float() + noise).round().clamp(0, 255).to(torch.uint8)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Return pixels uint8 [N, C, H, W] under a Gaussian filter; `sigma` is of a height of 32."""
    sigma *= images.shape[2] / 32
    size = 2 * int(np.ceil(3 * sigma)) + 1
    found: Tensor = gaussian_blur(images, [size, size], [sigma, sigma])
    return found


def compressed(images: Tensor, quality: int) -> Tensor:
    """Return pixels uint8 [N, 3, H, W] out of a JPEG file of this quality each."""
    found = []
    for pixels in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        found.append(torch.from_numpy(np.array(Image.open(file))))
    return torch.stack(found).permute(0, 3, 1, 2)


def from_files(folder: Path, shape: Sequence[int]) -> Iterator[Spoilt]:
    """Yield a folder's images as CIFAR-100-C has them: NAME.npy [5 n, H, W, C], labels.npy.

    Strength s is the s-th fifth of each file. Files are read as they are needed.

    Raises:
        KdbenchError: a file is missing, damaged or of other images than [n, C, H, W] `shape`.
    """
    files = sorted(path for path in folder.glob("*.npy") if path.name != LABELS)
    if not files:
        raise KdbenchError(f"no NAME.npy in {folder}: set corrupted=DIR to CIFAR-100-C")
    labels = torch.from_numpy(np.array(_read(folder / LABELS))).long()
    n, channels, height, width = shape
    for path in files:
        pixels = _read(path)
        wanted = (STRENGTHS * n, height, width, channels)
        if pixels.shape != wanted or pixels.dtype != np.uint8 or len(labels) != wanted[0]:
            raise KdbenchError(
                f"{path} holds {pixels.dtype} {list(pixels.shape)} with {len(labels)} labels, not "
                f"uint8 {list(wanted)}: fetch it again, or name the folder of this data set"
            )
        for number in range(STRENGTHS):
            part = slice(number * n, (number + 1) * n)
            images = torch.from_numpy(np.array(pixels[part])).permute(0, 3, 1, 2)
            yield Spoilt(path.stem.replace("_", " "), number + 1, Split(images, labels[part]))


def _read(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = np.load(path, mmap_mode="r")  # and no pickle, which is NumPy's default
    except (OSError, ValueError) as error:
        raise KdbenchError(f"cannot read {path} ({first_line(error)}): fetch it again") from None
    return found


def measure(subjects: Sequence[Subject], folder: str | None) -> Result:
    """Measure each student's top-1 under each corruption, as means over five strengths."""
    test = subjects[0].dataset.test
    found: dict[str, dict[str, list[float]]] = {one.name: {} for one in subjects}
    spoilt = ours(test) if folder is None else from_files(Path(folder), test.images.shape)
    for part in spoilt:
        for one in subjects:
            logits = logits_of(one.network, part.split, one.dataset, one.device)
            correct = logits.argmax(axis=1) == part.split.labels.numpy()
            found[one.name].setdefault(part.corruption, []).append(100 * float(correct.mean()))
    clean = {
        one.name: 100 * float((one.logits.argmax(axis=1) == one.labels).mean()) for one in subjects
    }
    names = list(found[subjects[0].name])
    rows = [
        [name, fixed(clean[name]), fixed(mean(mean(v) for v in by_name.values())),
         *(fixed(mean(by_name[one])) for one in names)]
        for name, by_name in found.items()
    ]  # fmt: skip
    which = "corruptions of ours, which no paper has" if folder is None else Path(folder).name
    table = Table(
        f"Top-1 under {which}, percent: means over five strengths; mean: over corruptions.",
        ["network", "clean", "mean", *names],
        rows,
    )
    numbers = {
        "corruptions": which,
        "top1": {name: {"clean": clean[name], **found[name]} for name in found},
    }
    shown = [one.name for one in first_seeds(subjects)]
    return Result(numbers, [table], [_drawing(shown, clean, found, which)])


def _drawing(
    shown: Sequence[str],
    clean: Mapping[str, float],
    found: Mapping[str, Mapping[str, Sequence[float]]],
    which: str,
) -> Drawing:
    def line(name: str) -> Line:
        means = [mean(values) for values in zip(*found[name].values(), strict=True)]
        return Line(name, range(STRENGTHS + 1), [clean[name], *means])

    return Drawing(
        "robustness",
        "Top-1 on spoilt images",
        f"Mean over {which}, by strength; 0 is the test set as it is.",
        lambda palette: lines(palette, [line(name) for name in shown], "strength", "top-1, %"),
    )
