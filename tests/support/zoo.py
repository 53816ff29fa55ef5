"""The networks by name, as configuration files give them, and what a test counts in one."""

import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

STUDENTS = Path(__file__).parents[2] / "conf" / "student"
FOREIGN = ("timm", "torchvision", "imagenet_", "fasterrcnn_")  # of other libraries, or detectors


def network_names() -> list[str]:
    return sorted(
        path.stem for path in STUDENTS.glob("*.yaml") if not path.stem.startswith(FOREIGN)
    )


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def constructor(name: str) -> Callable[..., nn.Module]:
    """The `_target_` of conf/student/<name>.yaml."""
    module, _, attribute = read_yaml(STUDENTS / f"{name}.yaml")["_target_"].rpartition(".")
    return getattr(import_module(module), attribute)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def mac_count(network: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of convolutions and linear layers on one image [1, C, H, W]."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        counts.append(output.numel() * math.prod(module.weight.shape[1:]))

    handles = [
        module.register_forward_hook(count)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(image)
    for handle in handles:
        handle.remove()
    return sum(counts)


def trained(network: nn.Module) -> nn.Module:
    """In eval mode, with norms as training might leave them."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 3)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False)
