"""Distillation for people with a training loop of their own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.assembly.build import check_teachers, fit
from kdbench.assembly.probes import TrainingSet
from kdbench.distillation.any_network import AnyNetwork, with_outputs
from kdbench.distillation.losses_of_step import step_losses
from kdbench.distillation.recipes import method_of
from kdbench.distillation.stream_sgd import StreamSGD
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.networks.forward import as_in_evaluation, output_of, teacher_outputs
from kdbench.seeds import derive
from kdbench.types import Batch, Losses, Output

Taps = Mapping[str, str]


class Distiller(nn.Module):
    """A student, its teachers and a recipe: called on a batch, it returns the loss.

    Its parameters and its state are the student's and the recipe's own (adapters, banks,
    controllers), never the teachers', which stay in eval mode and go along to another device.

    Args:
        method: a name of `kdbench.methods()`, or a `Method`.
        student: any module that maps images to logits [B, K]; or to a tuple, a mapping or an object
            that holds them, as Hugging Face's do.
        teacher: the same, or several; None for a recipe without a teacher.
        example: images [B, C, H, W] as the networks take them, to learn shapes.
        train_labels: [N] int64, of the training set; for recipes that need its labels or size.
        train_images: rows [B] int64 of the training set -> its images [B, C, H, W], unaugmented;
            for recipes that need features of it (kd_pp, wkd_l, wkd_lf).
        student_taps: canonical names ("stage1", ..., see docs/methods.md) to module paths; None:
            those that are known of kdbench's networks, torchvision's ResNets and timm's.
        teacher_taps: the same for the teachers: one mapping for all, or a list of one for each.
        seed: of the recipe's own first weights and of its random numbers.
        settings: of a method that is named, as in conf/method.

    Raises:
        ConfigError: method, settings, networks and taps do not fit; it says which.
    """

    def __init__(
        self,
        method: str | Method,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        *,
        example: Tensor,
        train_labels: Tensor | None = None,
        train_images: Callable[[Tensor], Tensor] | None = None,
        student_taps: Taps | None = None,
        teacher_taps: Taps | Sequence[Taps | None] | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__()
        teachers = teachers_of(teacher)
        given = taps_of(teacher_taps, len(teachers))
        with own_random_numbers():
            torch.manual_seed(derive(seed, "method"))
            self.method = method_of(method, settings)
            self.name = method if isinstance(method, str) else type(method).__name__
            check_teachers(self.name, self.method, len(teachers), "pass teacher=NETWORK")
            parts = [part for part in self.method.modules() if isinstance(part, Method)]
            self._parts = tuple(parts)  # the method, and those that it wraps
            own = with_outputs(student, student_taps, example, "the student")
            roles = [f"teacher {i}" if len(teachers) > 1 else "the teacher"
                     for i in range(1, len(teachers) + 1)]  # fmt: skip
            # In a tuple: as submodules they would be trained, saved and counted.
            self._teachers = tuple(
                with_outputs(network, taps, example, role).eval()
                for network, taps, role in zip(teachers, given, roles, strict=True)
            )
            shown = self._shapes(own, example, train_labels, train_images)
            named = dict(zip(roles, self._teachers, strict=True))
            self._student = fit(self.method, own, named, shown, seed)
            self.method.to(example.device)
        self._generator: torch.Generator | None = None
        self._seed = seed
        self.logits: Tensor | None = None  # [B, K] of the last forward pass, detached
        self._losses: Losses | None = None  # of the last forward pass, for recipes with streams
        self._optimized = False

    def _shapes(
        self,
        student: nn.Module,
        example: Tensor,
        labels: Tensor | None,
        images: Callable[[Tensor], Tensor] | None,
    ) -> TrainingSet:
        """What is known of the training images; asking for more is an error that says how."""
        with torch.no_grad(), as_in_evaluation(student):
            classes = student(example).logits.shape[1]
        if labels is None and any(part.banks for part in self._parts):
            raise ConfigError(
                f"{self.name} keeps a row for each training image: pass train_labels=LABELS [N]"
            )
        if labels is None:  # a meta tensor: whoever reads it is told so by torch
            return TrainingSet(example.shape[1:], classes, torch.empty(0, device="meta"), None)
        return TrainingSet(example.shape[1:], classes, labels.cpu(), images)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        index: Tensor | None = None,
        epoch: float | Tensor | None = None,
        views: Tensor | Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch, to differentiate, and what it is made of.

        Args:
            images: [B, C, H, W] as the networks take them.
            labels: [B] int64.
            index: [B] int64, rows of the training set; for recipes with banks (crd).
            epoch: counts from 1; for recipes that change with it.
            views: further views of the same images, each [B, C, H, W]; for recipes that compare
                views.

        Returns:
            The loss [], and by name its value ("loss"), the loss terms and what the recipe
            observes, each [] float32, detached.

        Raises:
            ConfigError: the recipe needs an argument that is not there.
        """
        batch = self._batch(images, labels, index, epoch, views)
        outputs = as_float(teacher_outputs(self._teachers, batch))
        (student,) = as_float((output_of(self._student, batch.images),))
        with torch.autocast(images.device.type, enabled=False):
            found = step_losses(self.method, batch, student, outputs)
        if self.method.streams and torch.is_grad_enabled():
            if not self._optimized:
                raise ConfigError(
                    f"{self.name} has a momentum for each gradient stream: train it with "
                    "distiller.optimizer(lr=...), and leave loss.backward() out"
                )
            self._losses = found.losses
        self.logits = found.logits
        values = {"loss": found.total, **found.means, **found.curves}
        logs = {name: value.detach().float().mean() for name, value in values.items()}
        return found.losses.total(), logs

    def _batch(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None,
        epoch: float | Tensor | None,
        views: Tensor | Sequence[Tensor] | None,
    ) -> Batch:
        method, device = self.method, images.device
        more = [] if views is None else [views] if isinstance(views, Tensor) else list(views)
        if 1 + len(more) != method.views:
            wanted = method.views - 1
            raise ConfigError(
                f"{self.name} compares {method.views} views of each image: pass views=IMAGES, "
                f"{wanted} further one{'s' if wanted > 1 else ''}, as strongly augmented ones"
                if wanted
                else f"{self.name} reads one view of each image: leave views out"
            )
        if index is None and any(part.banks for part in self._parts):
            raise ConfigError(
                f"{self.name} keeps a row for each training image: pass index=ROWS [B] of the batch"
            )
        if epoch is None and any(part.reads_epoch for part in self._parts):
            raise ConfigError(f"{self.name} changes with the epoch: pass epoch=NUMBER, from 1")
        batch = Batch(
            images if not more else torch.stack([images, *more]),
            labels,
            torch.zeros_like(labels) if index is None else index.to(device),
            torch.as_tensor(0.0 if epoch is None else epoch, dtype=torch.float32, device=device),
        )
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(derive(self._seed, "draw"))
        return batch._replace(drawn=method.draw(batch, self._generator))

    @property
    def student(self) -> nn.Module:
        """The plain student, without hooks; of recipes that change the network, what they made."""
        network = self._student
        return network.detach() if isinstance(network, AnyNetwork) else network

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimizer: the student's parameters, and the recipe's with their own lr."""
        own = [p for p in self._student.parameters() if p.requires_grad]
        return [{"params": own}, *self.method.param_groups()]

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The student's and the recipe's parameters; `param_groups` keeps a recipe's own lr."""
        return [param for group in self.param_groups() for param in group["params"]]

    def optimizer(
        self, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> torch.optim.Optimizer:
        """The optimizer of a recipe with gradient streams (dot, deepkd); of others plain SGD."""
        self._optimized = True
        groups, streams = self.param_groups(), self.method.streams
        if not streams:
            return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
        return StreamSGD(groups, streams, self._take_losses, lr, momentum, weight_decay)

    def _take_losses(self) -> Losses:
        if self._losses is None:
            raise ConfigError("optimizer.step() follows a forward pass: call the distiller first")
        losses, self._losses = self._losses, None
        return losses

    def train(self, mode: bool = True) -> "Distiller":
        """As every module's; the teachers stay in eval mode."""
        super().train(mode)
        for teacher in self._teachers:
            teacher.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> "Distiller":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # of torch
        for teacher in self._teachers:
            teacher._apply(fn, recurse)
        return self


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """Leave torch's generators as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


def taps_of(taps: Taps | Sequence[Taps | None] | None, count: int) -> list[Taps | None]:
    """The taps of each of several teachers.

    Raises:
        ConfigError: there are more or fewer than teachers.
    """
    found = [taps] * count if taps is None or isinstance(taps, Mapping) else list(taps)
    if len(found) != count:
        raise ConfigError(f"teacher_taps has {len(found)} entries for {count} teachers")
    return found


def teachers_of(teacher: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """The teachers as a list."""
    if teacher is None:
        return []
    if isinstance(teacher, nn.Module) and not isinstance(teacher, nn.ModuleList):
        return [teacher]
    return list(teacher)


def as_float(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """Outputs in float32 where autocast made them shorter: losses are computed in that."""
    return tuple(
        Output(one.logits.float(), {name: tap.float() for name, tap in one.taps.items()})
        if one.logits.dtype in (torch.float16, torch.bfloat16)
        else one
        for one in outputs
    )
