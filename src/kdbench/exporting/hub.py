"""A folder as the Hugging Face hub wants it: weights, their configuration, a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kdbench.assembly.finished import Source
from kdbench.data.base import Dataset
from kdbench.exporting.keys import OTHERS, RESNETS

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def config_of(source: Source, dataset: Dataset, style: str) -> dict[str, Any]:
    """Return what a reader must know to build the network and to feed it.

    With timm's keys it is a configuration as `timm.create_model("local-dir:DIR")` reads it.
    """
    settings = source.network.settings
    channels, height, width = dataset.test.images.shape[1:]
    side = settings.get("size")
    shape = [channels, side or height, side or width]
    facts: dict[str, Any] = {
        "architecture": source.network.name,
        "num_classes": dataset.num_classes,
        "keys": style,
        "network": {k: v for k, v in source.network.spelt().items() if k != "pretrained"},
        "input_size": shape,
        "mean": list(settings.get("mean") or dataset.mean),
        "std": list(settings.get("std") or dataset.std),
    }
    if OTHERS.get(source.network.target) == "timm":
        facts["architecture"] = settings["model"]
        if settings.get("settings"):
            facts["model_args"] = settings["settings"]
        facts["pretrained_cfg"] = {key: facts.pop(key) for key in ("input_size", "mean", "std")}
        facts["pretrained_cfg"]["num_classes"] = dataset.num_classes
    return facts


def loading(source: Source, dataset: Dataset, style: str) -> str:
    """Return Python that loads the folder's weights; it is run by a test."""
    target, channels = source.network.target, dataset.test.images.shape[1]
    load = f'load_file("{WEIGHTS}")'
    head = "from safetensors.torch import load_file\n"
    shape = f"num_classes={dataset.num_classes}"
    if style == "repdistiller":
        module, _, name = target.rpartition(".")
        settings = [f"{key}={value!r}" for key, value in source.network.settings.items()]
        words = ", ".join([*settings, shape, f"in_channels={channels}"])
        made = f"from {module} import {name}\n\nnetwork = {name}({words})\n"
    elif style == "timm":
        model = RESNETS.get(target) or source.network.settings["model"]
        given = source.network.settings.get("settings") or {}
        also = "".join(f", {key}={value!r}" for key, value in given.items())
        call = f'timm.create_model("{model}", {shape}, in_chans={channels}{also})'
        made = f"import timm\n\nnetwork = {call}\n"
    else:
        model = RESNETS.get(target) or source.network.settings["model"]
        made = f'import torchvision\n\nnetwork = torchvision.models.get_model("{model}", {shape})\n'
    if target in RESNETS and style != "repdistiller":
        made = f"import torch\n{made}" + (
            f"network.conv1 = torch.nn.Conv2d({channels}, 64, 3, 1, 1, bias=False)\n"
            "network.maxpool = torch.nn.Identity()\n"
        )
    return f"{head}{made}network.load_state_dict({load})\nnetwork.eval()\n"


def read_folder(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the configuration and the tensors of a folder."""
    config: Mapping[str, Any] = json.loads((folder / CONFIG).read_text())
    return config, load_file(folder / WEIGHTS)
