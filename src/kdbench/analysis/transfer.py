"""What a student's features are worth elsewhere: a linear classifier on them for other data.

Source of the experiment: CRD (Tian et al. 2020, arXiv 1910.10699, section 4.1), which freezes a
network trained on CIFAR-100 and trains a linear classifier of its last features on STL-10 and on
Tiny-ImageNet, all images at 32 x 32. CRD's paper gives no schedule; this one is that of DCD's
released script (120 epochs of SGD, lr 0.05, a tenth of it from epoch 30, 60 and 90 on, weight decay
5e-4, batch 64, last epoch). Departures: the network is in eval mode, where that script leaves it in
training mode, so that its BN statistics drift with the new images; images are not augmented, so
that features are computed once; one learning rate for all networks, where the script has 0.01 for
MobileNets; momentum 0.9 is ours, for the notes on that script do not say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.analysis.result import Result, Table, fixed
from kdbench.analysis.subjects import Subject, features_of
from kdbench.assembly.make import make
from kdbench.data.base import Dataset, Images, Split
from kdbench.errors import ConfigError
from kdbench.ledger.transfers import over_seeds
from kdbench.losses import cross_entropy
from kdbench.schema.node import Node
from kdbench.seeds import derive

EPOCHS, DROPS, BATCH = 120, (30, 60, 90), 64
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
PROTOCOL = "linear-120ep-b64-eval-last"
CHUNK = 2000  # images that are resized at once


def linear_probe(features: Tensor, labels: Tensor, num_classes: int, seed: int = 0) -> nn.Linear:
    """Train a linear classifier of features [N, D] with labels [N], as the module says.

    Features are standardised by the training ones' mean and spread, one number for each: a scale
    that a network happens to have is then no learning rate.
    """
    generator = torch.Generator().manual_seed(derive(seed, "probe"))
    layer = nn.Linear(features.shape[1], num_classes)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(
        layer.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, DROPS)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(layer(features[rows]), labels[rows]).mean().backward()
            optimizer.step()
        schedule.step()
    return layer.requires_grad_(False)


def probe_top1(train: Split, test: Split, num_classes: int) -> float:
    """Return the percentage of test features [n, D] that a probe of the training ones gets right.

    `images` of a split are its features here.
    """
    features, others = train.images[:], test.images[:]
    mean, spread = features.mean(), features.std().clamp(min=1e-12)
    layer = linear_probe((features - mean) / spread, train.labels, num_classes)
    chosen = layer((others - mean) / spread).argmax(dim=1)
    return 100 * float((chosen == test.labels).double().mean())


def at_size(images: Images, side: tuple[int, int]) -> Tensor:
    """Resize pixels uint8 [N, C, H, W]: bilinear with antialiasing, rounded."""
    if tuple(images.shape[2:]) == side:
        return images[:]
    rows = torch.arange(images.shape[0]).split(CHUNK)
    smaller = [
        F.interpolate(images[part].float(), side, mode="bilinear", antialias=True) for part in rows
    ]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8) for part in smaller])


def measure(subjects: Sequence[Subject], node: Node | None) -> Result:
    """Probe each student's features; return a record each, and the table of all seeds.

    Raises:
        ConfigError: no other data set is named, or its images have other channels.
    """
    if node is None:
        raise ConfigError("no data set to transfer to is named: set dataset@transfer=stl10")
    target: Dataset = make(node, "dataset")
    shape = subjects[0].dataset.test.images.shape[1:]
    if target.test.images.shape[1] != shape[0]:
        raise ConfigError(
            f"{target.name} has {target.test.images.shape[1]} channels, the networks take "
            f"{shape[0]}: choose another data set to transfer to"
        )
    side = int(shape[1]), int(shape[2])
    splits = [Split(at_size(one.images, side), one.labels) for one in (target.train, target.test)]
    records = {}
    for one in subjects:
        train, test = (
            Split(features_of(one.network, split, one.dataset, one.device), split.labels)
            for split in splits
        )
        source = one.source
        records[f"{source.path.stem if source.record is None else source.name}-{target.name}"] = {
            "run": source.name,
            "configuration": source.cell or source.name,
            "seed": source.seed,
            "sha256": source.sha256,
            "from": {"name": one.dataset.name, "sha256": one.dataset.fingerprint},
            "to": {"name": target.name, "sha256": target.fingerprint, "side": side[0]},
            "protocol": PROTOCOL,
            "top1": probe_top1(train, test, target.num_classes),
        }
    table = table_of(list(records.values()))
    return Result(dict(records), [table], [], {f"transfer-{target.name}": records})


def table_of(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of probes on one data set: a row a configuration, over its seeds."""
    rows = [
        [name, fixed(found.mean), fixed(found.std), str(found.n)]
        for name, found in over_seeds(records).items()
    ]
    where, side = records[0]["to"]["name"], records[0]["to"]["side"]
    return Table(
        f"Transfer from {records[0]['from']['name']} to {where} at {side} x {side}: top-1 of a "
        "linear classifier on frozen features in eval mode, percent (protocol "
        f"{PROTOCOL}); the normalisation is the network's own.",
        ["configuration", "mean top-1", "std", "seeds"],
        rows,
    )
