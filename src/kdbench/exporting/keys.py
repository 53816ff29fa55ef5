"""State dicts under the keys of other code bases, and the networks there that load them."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.exporting.classifier import Classifier
from kdbench.networks.heads import ReusedHead
from kdbench.networks.own_input import adapt_input, with_own_input
from kdbench.schema.node import Node
from kdbench.types import Output

# What is called otherwise in the ResNets of timm and torchvision; names end at a dot.
RENAMED = {"linear": "fc", "shortcut": "downsample"}
# kdbench's ResNets for small images by what makes them: the same networks there but for the stem.
RESNETS = {
    f"kdbench.networks.resnet_four_stage.ResNet{depth}": f"resnet{depth}" for depth in (18, 34, 50)
}
OTHERS = {
    "kdbench.networks.tapped.timm_model": "timm",
    "kdbench.networks.tapped.torchvision_model": "torchvision",
}


def state_dict_as(network: nn.Module, node: Node, style: str) -> dict[str, Tensor]:
    """Return a network's weights under the keys of a code base, on the CPU.

    Args:
        network: as trained.
        node: what makes it.
        style: repdistiller (the keys of kdbench's zoo, which are mdistiller's too), timm or
            torchvision.

    Raises:
        ConfigError: that code base has no such network.
    """
    check_style(network, node, style)
    tensors = {
        key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()
    }
    if node.target not in RESNETS or style == "repdistiller":
        return tensors
    return {_renamed(key): value for key, value in tensors.items()}


def _renamed(key: str) -> str:
    return ".".join(RENAMED.get(part, part) for part in key.split("."))


def check_style(network: nn.Module, node: Node, style: str) -> None:
    """Refuse keys of a code base that has no such network.

    Raises:
        ConfigError: says which it has.
    """
    name, target = node.name, node.target
    if isinstance(network, ReusedHead):
        raise ConfigError(
            f"{name} has another head than any {name} elsewhere (method=simkd reuses the "
            "teacher's): choose format=torch_export or onnx"
        )
    if target in OTHERS:
        has = ["timm", "torchvision"] if twin(network, node) else [OTHERS[target]]
    else:
        has = ["repdistiller", *(("timm", "torchvision") if target in RESNETS else ())]
    if style not in has:
        raise ConfigError(f"{style} has no network like {name}: choose keys={' or '.join(has)}")


def twin(network: nn.Module, node: Node) -> bool:
    """Return whether timm and torchvision both have this network, with the same keys and shapes.

    Their ResNets, ResNeXts and DenseNets are so; their VGGs share no more than the name.
    """
    model = str(node.settings["model"])
    both = timm.is_model(model) and model in torchvision.models.list_models(torchvision.models)
    if not both or node.settings.get("settings"):
        return False
    found = {key: value.shape for key, value in network.state_dict().items()}
    (classes,) = [shape for key, shape in found.items() if key.endswith(".bias")][-1]
    with torch.device("meta"):
        pair = (
            timm.create_model(model, num_classes=classes),
            torchvision.models.get_model(model, weights=None, num_classes=classes),
        )
    return all({k: v.shape for k, v in one.state_dict().items()} == found for one in pair)


class Bare(nn.Module):
    """Another library's classifier, whose output is the logits, as kdbench calls networks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Output:
        """Logits [B, K] without taps."""
        return Output(self.network(images), {})


def network_there(node: Node, style: str, classes: int, channels: int) -> nn.Module:
    """Return the network of timm or torchvision that a state dict of that style is for.

    Of kdbench's ResNets for small images it is the library's own with their stem: a 3x3
    convolution of stride 1 and no pooling.
    """
    target = node.target
    model = RESNETS.get(target) or str(node.settings["model"])
    if style == "timm":
        settings = node.settings.get("settings") or {}
        made = timm.create_model(model, num_classes=classes, in_chans=channels, **settings)
    else:
        made = torchvision.models.get_model(model, weights=None, num_classes=classes)
    network: Any = made
    if target in RESNETS:
        network.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    return network


def classifier_there(
    node: Node, style: str, tensors: Mapping[str, Tensor], channels: int, classes: int
) -> Classifier:
    """Return the other library's network with the weights, as a `Classifier`."""
    network = network_there(node, style, classes, channels)
    network.load_state_dict(dict(tensors))
    return Classifier(Bare(network).eval())


def adapt(classifier: Classifier, node: Node, dataset: Dataset) -> None:
    """Let another library's network take the data set's images, resized as the student's were."""
    size, mean, std = (node.settings.get(key) for key in ("size", "mean", "std"))
    library = classifier.network.get_submodule("network")
    with_own_input(library, size, mean, std, len(dataset.mean))
    adapt_input(library, dataset.mean, dataset.std)
