"""A folder of image files, one folder a class: torchvision's ImageFolder layout."""

import torch

from kdbench.data.base import Loaded, Split, assembled, folder_of, pick_test_split
from kdbench.data.decoding.decode import allocate, decode_into
from kdbench.data.layout import check_classes, scan
from kdbench.data.passed_over import PassedOver
from kdbench.errors import ConfigError


@assembled
def image_folder(
    root: str | None,
    test_split: str | None,
    image_size: int,
    max_gib: float,
) -> Loaded:
    """Load the images of `root`/train and `root`/`test_split` as uint8 [3, S, S], S = `image_size`.

    Each image becomes RGB, its shorter side is scaled to S, and its centre is kept. Classes are
    numbered in the order of their folders' names in train, and include the images of subfolders, as
    in torchvision's ImageFolder. The data set has the folder's name.

    Raises:
        ConfigError: `root` is not set or has no train or test folder; the images do not fit.
        KdbenchError: a class is empty or only on one side, or an image cannot be read.
    """
    folder = folder_of(root)
    if not (folder / "train").is_dir():
        raise ConfigError(
            f"no folder {folder / 'train'}: dataset.root=DIR needs DIR/train and DIR/val, each "
            "with one folder a class"
        )
    there = [name for name in ("val", "test") if (folder / name).is_dir()]
    scored = pick_test_split(folder, there, test_split)
    passed, names = PassedOver(), ("train", scored)
    found = {name: scan(folder / name, passed) for name in names}
    classes = sorted(found["train"])
    check_classes(folder, classes, list(found[scored]), scored)
    passed.say(folder)
    by_class = {name: [found[name][one] for one in classes] for name in names}
    files = [folder / name / path for name in names for one in by_class[name] for path, _ in one]
    images = allocate(len(files), image_size, max_gib)
    decode_into(images, files, [str(file) for file in files])
    counts = [torch.tensor([len(one) for one in by_class[name]]) for name in names]
    labels = [torch.arange(len(classes)).repeat_interleave(count) for count in counts]
    splits = map(Split, images.split([len(one) for one in labels]), labels)
    return Loaded(folder.name, len(classes), *splits)
