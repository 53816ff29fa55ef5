"""Any timm or torchvision classifier by name, with taps on the modules that a file names.

The network stays what its library made it: state-dict keys are the library's own. Forward hooks
collect the taps, and one on the network as a whole turns its logits into `Output`; so call the
network, not its `forward`, and compile the function that calls it.
A tap is the output of the module at a path such as `layer1`: [B, C, H, W] or [B, D]. A
transformer's tokens [B, N, D] become a map [B, D, H, W] where they are a square grid, class and
distillation tokens apart, and so do maps [B, H, W, C], as Swin's. A module that runs several times
in a forward pass gives its last output. "pooled" is always offered: the input [B, D] of the last
linear layer; and of a DeiT with two heads "head" and "head_dist", the logits [B, K] of each.
In-place activations are switched off, so that a tap keeps the values it was captured with. A
`+=` on a tapped tensor, as torchvision's ResNets have after the last BN of a block, still shows.
Weights are random, and nothing is downloaded, unless a file asks for pretrained ones.
"""

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from types import UnionType
from typing import Any, Literal

import timm
import torchvision
from torch import Tensor, nn

from kdbench.errors import ConfigError, first_line, nearest
from kdbench.networks.features import as_map, channels_of, known_paths, prefix_of
from kdbench.networks.hooks import check_paths, keep_output, keep_pooled, tap_of
from kdbench.networks.layers import set_taps
from kdbench.networks.own_input import with_own_input
from kdbench.types import Output

AUXILIARY = ("googlenet", "inception_v3")
TWO_HEADS = {"head": "head", "head_dist": "head_dist"}  # of a distilled DeiT
Taps = dict[str, str] | Literal["auto"] | None


def timm_model(
    model: str,
    num_classes: int,
    in_channels: int = 3,
    pretrained: bool = False,
    taps: Taps = None,
    size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    settings: dict[str, Any] | None = None,
) -> nn.Module:
    """Build the timm model of that name.

    Args:
        model: timm's name.
        num_classes: K.
        in_channels: C of the images.
        pretrained: fetch the weights that timm knows of.
        taps: canonical names to module paths; "auto": stages as timm describes them.
        size: the side that images are resized to on the device; None: that of the data set.
        mean: of the normalisation that it expects; None: that of the data set.
        std: the same.
        settings: of the model, such as {img_size: 32, patch_size: 4, drop_path_rate: 0.1}.

    Raises:
        ConfigError: there is no such model, or it cannot be built so.
    """
    if not timm.is_model(model):
        raise _unknown("timm", model, timm.list_models())
    check_settings(model, settings or {})
    network = _created(model, pretrained, num_classes, in_channels, settings or {})
    with_own_input(network, size, mean, std, in_channels)
    get_classifier = network.get_classifier
    assert callable(get_classifier)  # every timm model has it
    heads = get_classifier()
    head = heads[0] if isinstance(heads, tuple) else heads  # the second is for distillation
    paths = known_paths(network) if taps == "auto" else dict(taps or {})
    if isinstance(heads, tuple):
        paths |= {name: path for name, path in TWO_HEADS.items() if name not in paths}
    return _tapped(network, model, _last(head, nn.Linear | nn.Conv2d), paths)


def check_settings(model: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings of a model that are no numbers, or that say where its weights come from.

    Raises:
        ConfigError: names the first.
    """
    of_timm = set(inspect.signature(timm.create_model).parameters)
    for key, value in settings.items():
        numbers = value if isinstance(value, list) else [value]
        if key in of_timm or not all(isinstance(one, bool | int | float) for one in numbers):
            raise ConfigError(
                f"{model} takes no setting {key}={value!r}: settings are numbers, true or false, "
                "or lists of them, such as {drop_path_rate: 0.1}"
            )


def _created(
    model: str, pretrained: bool, num_classes: int, in_channels: int, settings: Mapping[str, Any]
) -> nn.Module:
    given = {"num_classes": num_classes, "in_chans": in_channels, **settings}
    try:
        network: nn.Module = timm.create_model(model, pretrained=pretrained, **given)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        weights = timm.get_pretrained_cfg(model)
        where = (weights and (weights.hf_hub_id or weights.url)) or "timm's documentation"
        raise ConfigError(
            f"{model} with pretrained=true needs its weights ({first_line(error)}): fetch "
            f"model.safetensors of {where} elsewhere, and name the file as student.checkpoint=FILE "
            "or teacher.NAME.checkpoint=FILE"
        ) from error
    return network


def torchvision_model(
    model: str,
    num_classes: int,
    in_channels: int = 3,
    weights: str | None = None,
    taps: Taps = None,
    size: int | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> nn.Module:
    """Build the torchvision classifier of that name; see `timm_model`.

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
    with_own_input(network, size, mean, std, in_channels)
    paths = known_paths(network) if taps == "auto" else dict(taps or {})
    return _tapped(network, model, _last(network, nn.Linear), paths)


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
    channels = channels_of(network)
    shapes = {name: (prefix_of(network), channels.get(path)) for name, path in taps.items()}
    network.register_forward_pre_hook(partial(_forget, captured))
    # These are the hook's own names: a tap added after it, such as class maps, extends TAPS.
    network.register_forward_hook(partial(_output, captured, names, shapes))
    return network


def _forget(captured: dict[str, Tensor], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    captured.clear()  # of a failed forward pass


def _output(
    captured: dict[str, Tensor],
    names: tuple[str, ...],
    shapes: dict[str, tuple[int, int | None]],
    network: nn.Module,
    inputs: tuple[Tensor, ...],
    logits: Tensor,
) -> Output:
    taps = {
        name: as_map(tap_of(name, captured), *shapes[name])
        if name in shapes
        else tap_of(name, captured)
        for name in names
    }
    captured.clear()
    return Output(logits, taps)
