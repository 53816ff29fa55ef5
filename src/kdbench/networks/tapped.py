"""Any timm or torchvision classifier by name, with taps on the modules that a file names.

The network stays what its library made it: state-dict keys are the library's own. Forward hooks
collect the taps, and one on the network as a whole turns its logits into `Output`; so call the
network, not its `forward`, and compile the function that calls it.
A tap is the output of the module at a path such as `layer1`, in the shape it has there:
[B, C, H, W] or [B, D]; a transformer's tokens stay [B, N, D], and a network that works in
[B, H, W, C] (Swin) taps that. A module that runs several times in a forward pass gives its last
output. "pooled" is always offered, last: the input [B, D] of the last linear layer.
In-place activations are switched off, so that a tap keeps the values it was captured with. A
`+=` on a tapped tensor, as torchvision's ResNets have after the last BN of a block, still shows.
Weights are random, and nothing is downloaded, unless a file asks for pretrained ones.
"""

from collections.abc import Iterable
from functools import partial
from types import UnionType

import timm
import torchvision
from torch import Tensor, nn

from kdbench.errors import ConfigError, nearest
from kdbench.networks.hooks import check_paths, keep_output, keep_pooled, tap_of
from kdbench.networks.layers import set_taps
from kdbench.types import Output

AUXILIARY = ("googlenet", "inception_v3")


def timm_model(
    model: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    taps: dict[str, str] | None = None,
) -> nn.Module:
    """Build the timm model of that name; `taps` maps canonical names to module paths."""
    if not timm.is_model(model):
        raise _unknown("timm", model, timm.list_models())
    network = timm.create_model(
        model, pretrained=pretrained, num_classes=num_classes, in_chans=in_channels
    )
    get_classifier = network.get_classifier
    assert callable(get_classifier)  # every timm model has it
    heads = get_classifier()
    head = heads[0] if isinstance(heads, tuple) else heads  # the second is for distillation
    return _tapped(network, model, _last(head, nn.Linear | nn.Conv2d), taps or {})


def torchvision_model(
    model: str,
    num_classes: int,
    in_channels: int = 3,
    weights: str | None = None,
    taps: dict[str, str] | None = None,
) -> nn.Module:
    """Build the torchvision classifier of that name; `taps` maps canonical names to module paths.

    `weights` names the released ones, such as IMAGENET1K_V1; they have their own classes.
    """
    names = set(torchvision.models.list_models(module=torchvision.models)) - set(AUXILIARY)
    if model in AUXILIARY:
        raise ConfigError(f"torchvision's {model} trains auxiliary classifiers, kdbench does not")
    if model not in names:
        raise _unknown("torchvision", model, names)
    if in_channels != 3:
        raise ConfigError(
            f"torchvision's {model} takes 3 channels, not {in_channels}: use a timm model"
        )
    if weights is not None:
        _check_weights(model, weights, num_classes)
    network = torchvision.models.get_model(model, weights=weights, num_classes=num_classes)
    return _tapped(network, model, _last(network, nn.Linear), taps or {})


def _unknown(library: str, model: str, names: Iterable[str]) -> ConfigError:
    return ConfigError(f"{library} has no model '{model}': {nearest(model, names)}")


def _check_weights(model: str, weights: str, num_classes: int) -> None:
    released = torchvision.models.get_model_weights(model).__members__
    if weights not in released:
        raise ConfigError(f"{model} has no weights '{weights}': {nearest(weights, released)}")
    classes = len(released[weights].meta["categories"])
    if classes != num_classes:
        raise ConfigError(f"{model}'s {weights} have {classes} classes, not {num_classes}")


def _last(module: nn.Module, kind: type | UnionType) -> nn.Module | None:
    if isinstance(module, nn.ModuleList):  # a classifier for each of several branches
        return None
    return next((m for m in reversed(list(module.modules())) if isinstance(m, kind)), None)


def _tapped(
    network: nn.Module, model: str, classifier: nn.Module | None, taps: dict[str, str]
) -> nn.Module:
    if classifier is None:
        raise ConfigError(f"{model} has no single linear classifier, whose input 'pooled' would be")
    if "pooled" in taps:
        raise ConfigError(f"{model}: 'pooled' is always offered, leave it out of taps")
    modules = {path: module for path, module in network.named_modules() if path}
    for module in modules.values():
        if getattr(module, "inplace", False):
            module.inplace = False
    # The hooks are partials over one dictionary, which a deep copy of the network copies with
    # them; closures would leave the copy writing into the original's.
    captured: dict[str, Tensor] = {}
    check_paths(model, taps, network)
    for name, path in taps.items():
        modules[path].register_forward_hook(partial(keep_output, captured, name))
    classifier.register_forward_pre_hook(partial(keep_pooled, captured))
    names = (*taps, "pooled")
    set_taps(network, names)
    network.register_forward_pre_hook(partial(_forget, captured))
    # These are the hook's own names: a tap added after it, such as class maps, extends TAPS.
    network.register_forward_hook(partial(_output, captured, names))
    return network


def _forget(captured: dict[str, Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    captured.clear()  # of a failed forward pass


def _output(
    captured: dict[str, Tensor],
    names: tuple[str, ...],
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    logits: Tensor,
) -> Output:
    taps = {name: tap_of(name, captured) for name in names}
    captured.clear()
    return Output(logits, taps)
