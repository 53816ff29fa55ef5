"""Any `nn.Module` that classifies, with the features that recipes read.

Forward hooks collect the features; the module itself stays what its author made it.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from kdbench.distillation.tap_plan import TapPlan, logits_of, plan_taps
from kdbench.networks.features import as_map, channels_of, prefix_of
from kdbench.networks.hooks import keep_copy, keep_input, keep_pooled, tap_of
from kdbench.types import Output


def with_outputs(
    network: nn.Module, taps: Mapping[str, str] | None, example: Tensor, role: str
) -> nn.Module:
    """The network as one that returns `Output`: itself, if it is one of kdbench's.

    Args:
        network: any classifier.
        taps: canonical names to module paths; None: those that are known of it (`known_paths`).
        example: images [B, C, H, W] that it takes.
        role: what it is called in error lines.

    Raises:
        ConfigError: a path names no module, or the network returns no logits.
    """
    plan = plan_taps(network, taps, example, role)
    return network if plan is None else AnyNetwork(network, plan, role)


class AnyNetwork(nn.Module):
    """A classifier of anybody's, which returns `Output`: logits [B, K] and taps.

    A tap is what the module at a path returns, [B, C, H, W] or [B, D]. Tokens [B, N, D] that form a
    square grid become [B, D, H, W], the class token apart, and so do maps [B, H, W, C].

    Args:
        network: returns logits, a tuple or list with logits, a mapping or an object with "logits".
        plan: where its taps come from.
        role: what it is called in error lines.
    """

    def __init__(self, network: nn.Module, plan: TapPlan, role: str) -> None:
        super().__init__()
        self.network, self.plan, self.role = network, plan, role
        self.channels = channels_of(network)
        self.prefix = prefix_of(network)
        self.captured: dict[str, Tensor] = {}
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def forward(self, images: Tensor) -> Output:
        """[B, C, H, W] -> logits [B, K] and taps."""
        self.attach()
        self.captured.clear()
        logits = logits_of(self.network(images), self.role)
        taps = {name: self._tap(name, path) for name, path in self.plan.outputs.items()}
        taps |= {name: self._tap(name, path) for name, path in self.plan.inputs.items()}
        taps |= {name: taps[other] for name, other in self.plan.aliases.items()}
        self.captured.clear()
        return Output(logits, taps)

    def attach(self) -> None:
        """Put the hooks on, where they are not."""
        if self.hooks:
            return
        modules = dict(self.network.named_modules())
        for name, path in self.plan.outputs.items():
            keep = partial(keep_copy, self.captured, name)
            self.hooks.append(modules[path].register_forward_hook(keep))
        for name, path in self.plan.inputs.items():
            given = partial(keep_input, self.captured, name)
            if name == "pooled":
                given = partial(keep_pooled, self.captured)
            self.hooks.append(modules[path].register_forward_pre_hook(given))

    def detach(self) -> nn.Module:
        """Take the hooks off; returns the network as it was given."""
        while self.hooks:
            self.hooks.pop().remove()
        self.captured.clear()
        return self.network

    def _tap(self, name: str, path: str) -> Tensor:
        return as_map(tap_of(name, self.captured), self.prefix, self.channels.get(path))
