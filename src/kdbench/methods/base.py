"""The interface of every distillation method."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.errors import ConfigError
from kdbench.losses import cross_entropy, soft_cross_entropy, total
from kdbench.types import Batch, Output, Probe, Stream

Terms = dict[str, Tensor]


class Method(nn.Module):
    """A recipe: the loss terms that it adds to a student, with the modules and buffers they need.

    A method never owns the networks. The step takes the mean of every term that `forward`
    returns and adds the means up; the label term is always called "ce", every other name is
    distillation.
    """

    tasks: tuple[str, ...] = ("classification",)  # the tasks of the recipe
    num_teachers: ClassVar[int | None] = 1  # the number of teachers; None: one or more
    views: int = 1  # V, the views of each image; above 1 everything is stacked
    taps: tuple[str, ...] = ()  # feature names it reads, checked against all networks at build;
    #                             those that only `setup` can know are added there
    own_taps: tuple[str, ...] = ()  # further ones of the student alone
    batch_terms: tuple[str, ...] = ()  # scalar terms that a per-sample weight leaves as they are
    banks: tuple[str, ...] = ()  # buffers with a row for each training sample, of which `forward`
    #                              changes those of its batch and no other
    reads_epoch: ClassVar[bool] = False  # whether `forward` changes with `batch.epoch`
    soft_labels: ClassVar[bool] = False  # whether it can learn from mixed images, whose labels are
    #                                      soft: it reads labels through `label_term` alone
    ce_weight: float = 1.0
    streams: tuple[Stream, ...] = ()  # parts of the loss with a momentum buffer each, none left out

    def setup(self, probe: Probe) -> None:
        """Make modules and buffers from probed shapes; called once, before `param_groups`."""

    def adapt(self, student: nn.Module, probe: Probe) -> nn.Module:
        """Return the network to train, evaluate and save, where the recipe changes it."""
        return student

    def draw(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Draw this step's random numbers, outside the graph; they arrive as `batch.drawn`."""
        return None

    def forward(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Weighted loss terms by name: [B] (or [V, B]), or [] where a term couples the batch.

        Static shapes, no random numbers, no branch on a tensor, nothing read back from the device.
        """
        raise NotImplementedError

    def label_term(self, batch: Batch, student: Output) -> Tensor:
        """The term "ce" [B]: ce_weight * -log softmax(z)_y; summed over the views [V, B, K].

        Where labels are soft, it is their cross-entropy.
        """
        logits, targets = student.logits, batch.targets
        if targets is not None:
            views = [logits] if logits.ndim == 2 else logits.unbind()
            return self.ce_weight * total(soft_cross_entropy(view, targets) for view in views)
        if logits.ndim == 2:
            return self.ce_weight * cross_entropy(logits, batch.labels)
        return self.ce_weight * total(cross_entropy(view, batch.labels) for view in logits)

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Numbers worth a curve, [B] or [], beside the loss; logged as epoch means method/NAME."""
        return {}

    def terms_and_curves(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> tuple[Terms, Terms]:
        """Return `forward` and `observe`; overridden where they share work."""
        terms = self(batch, student, teachers)
        with torch.no_grad():
            return terms, self.observe(batch, student, teachers)

    def param_groups(self) -> list[dict[str, Any]]:
        """Optimizer groups of the method's own parameters; a group may carry its own lr."""
        params = list(self.parameters())
        return [{"params": params}] if params else []


class Wrapper(Method):
    """A recipe around another one, which keeps its taps, modules, draws and parameter groups."""

    def __init__(self, inner: Method) -> None:
        super().__init__()
        if inner.num_teachers == 0:
            raise ConfigError("method.inner reads no teacher: there is nothing to wrap")
        self.inner = inner
        self.num_teachers = inner.num_teachers  # type: ignore[misc]  # a ClassVar
        self.views, self.taps, self.batch_terms = inner.views, inner.taps, inner.batch_terms
        self.streams, self.own_taps = inner.streams, inner.own_taps
        self.soft_labels = inner.soft_labels  # type: ignore[misc]  # a ClassVar

    def setup(self, probe: Probe) -> None:
        """Return the inner recipe's."""
        self.inner.setup(probe)
        # Some are known by now only.
        self.taps, self.own_taps = self.inner.taps, self.inner.own_taps

    def adapt(self, student: nn.Module, probe: Probe) -> nn.Module:
        """Return the inner recipe's."""
        return self.inner.adapt(student, probe)

    def draw(self, batch: Batch, generator: torch.Generator) -> Tensor | None:
        """Return the inner recipe's."""
        return self.inner.draw(batch, generator)

    def label_term(self, batch: Batch, student: Output) -> Tensor:
        """Return the inner recipe's."""
        return self.inner.label_term(batch, student)

    def observe(
        self, batch: Batch, student: Output, teachers: tuple[Output, ...]
    ) -> dict[str, Tensor]:
        """Return the inner recipe's."""
        return self.inner.observe(batch, student, teachers)

    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the inner recipe, and one of the wrapper's own parameters."""
        theirs = {id(parameter) for parameter in self.inner.parameters()}
        own = [parameter for parameter in self.parameters() if id(parameter) not in theirs]
        return [*self.inner.param_groups(), *([{"params": own}] if own else [])]


def check_positive(**values: float) -> None:
    """Refuse hyper-parameters that must be finite and above 0.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"method.{name} must be above 0, not {value}")


def check_weights(**values: float) -> None:
    """Refuse loss weights that are negative or not finite.

    Raises:
        ConfigError: names the first that is.
    """
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"method.{name} must be 0 or more, not {value}")


def check_finite(**values: float) -> None:
    """Refuse hyper-parameters that are not finite.

    Raises:
        ConfigError: names the first that is not.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"method.{name} must be a finite number, not {value}")
