"""Optimizer, learning rate, batch size, epochs and precision of a recipe."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from kdbench.data.augmentation.batches import BatchChanges
from kdbench.data.augmentation.mixing import Mixing, MixMode
from kdbench.errors import ConfigError
from kdbench.system.precision import Precision, TablePrecision

Decay = Literal["step", "cosine", "linear"]
DecayBy = Literal["epoch", "step"]
ClipMode = Literal["norm", "value", "agc"]


@dataclass(frozen=True)
class Schedule:
    """How a student is trained; by default SGD with step decay, as in RepDistiller and mdistiller.

    The optimizers beside SGD, the decays beside drops at milestones and the groups of parameters
    are timm's, with timm's meaning of their names; `sgd` is PyTorch's, and takes Nesterov's step
    where `nesterov` says so.

    Raises:
        ConfigError: a setting that cannot be trained with.
    """

    epochs: int
    batch_size: int
    lr: float
    milestones: list[int]  # epochs after which the learning rate drops
    gamma: float = 0.1  # factor of each drop
    momentum: float = 0.9  # of optimizers that have one
    weight_decay: float = 5e-4  # on every parameter: batch norm, biases and the method's own
    precision: Precision = "fp32"  # of the networks' forward passes; losses and weights are fp32
    table_precision: TablePrecision = "fp32"  # of the output cache
    warmup_epochs: int = 0  # the learning rate rises linearly over their steps, to `lr` in the last
    micro_batches: int = 1  # of a batch, computed in sequence or on several ranks
    optimizer: str = "sgd"
    optimizer_settings: dict[str, Any] | None = None  # the optimizer's own, such as betas and eps
    nesterov: bool = False
    filter_bias_and_bn: bool = False  # no weight decay on the student's biases and norms, nor on
    #                                   what its network exempts, such as position embeddings
    layer_decay: float | None = None  # factor of the learning rate from a layer to the one below
    clip_grad: float | None = None  # the limit of a step's gradients
    clip_mode: ClipMode = "norm"  # of all gradients together, of each number, or adaptive (AGC)
    decay: Decay = "step"
    decay_by: DecayBy = "epoch"  # how often cosine, linear and a warm-up from `warmup_lr` move
    decay_epochs: float | None = None  # a drop after every so many epochs, in place of milestones
    min_lr: float = 0.0  # where cosine and linear end
    warmup_lr: float | None = None  # where a warm-up starts; None: at lr / its steps, by the step
    ema_decay: float | None = None  # of a moving average of the weights, scored beside them
    label_smoothing: float = 0.0  # the part of a label that is spread over all classes
    mixup: float = 0.0  # alpha of the Beta distribution of an image's share; 0: no mixup
    cutmix: float = 0.0  # the same of CutMix
    mixup_prob: float = 1.0  # of a draw to mix
    mixup_switch_prob: float = 0.5  # of CutMix, where there are both
    mixup_mode: MixMode = "batch"  # what a draw is for: a batch, two images, or one
    random_erasing: float = 0.0  # the probability of an image to be erased in part, with noise
    rand_augment: str | None = None  # of timm's form, as rand-m9-mstd0.5-inc1
    repeats: int = 1  # how often an epoch has an image, each in another view; so fewer images

    def __post_init__(self) -> None:
        """Check every setting."""
        check_schedule(self, "epochs", "batch_size", "micro_batches", "repeats")
        check_decay(self)
        check_optimizer(self)
        check_changes(self)

    @property
    def batch_changes(self) -> BatchChanges:
        """What is done to batches of views."""
        mixing = Mixing(
            self.mixup, self.cutmix, self.mixup_prob, self.mixup_switch_prob, self.mixup_mode
        )
        return BatchChanges(mixing, self.random_erasing, self.label_smoothing)

    def lr_factor(self, epoch: int) -> float:
        """Return the factor of the learning rate in `epoch` (from 1).

        gamma ^ #{milestones m : epoch > m}, the rule of RepDistiller and mdistiller: a milestone of
        150 takes effect from epoch 151.
        """
        return self.gamma ** sum(epoch > milestone for milestone in self.milestones)

    @property
    def changes_images(self) -> bool:
        """Whether networks see other images than the views that the data set is cut to."""
        return self.batch_changes.images or self.rand_augment is not None or self.repeats > 1

    @property
    def drops_alone(self) -> bool:
        """Whether the rate only drops at milestones, after a warm-up by the step at most."""
        return self.decay == "step" and self.decay_epochs is None and self.warmup_lr is None

    def warm_up_factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the further factor of the learning rate in `step` (from 0, over all epochs).

        (step + 1) / (steps of the warm-up), the rule of Tf-KD and DR-KD; 1 after the warm-up.
        """
        warm_up = self.warmup_epochs * steps_per_epoch
        return (step + 1) / warm_up if step < warm_up else 1.0


def check_schedule(schedule: Any, length: str, *counts: str) -> None:
    """Check the settings that all schedules have: counts, SGD's numbers, a warm-up and milestones.

    Args:
        schedule: has `lr`, `gamma`, `momentum`, `weight_decay`, `milestones` and the named keys.
        length: "epochs" or "steps", the unit of its length.
        counts: further keys whose values must be 1 or more.

    Raises:
        ConfigError: a setting that cannot be trained with.
    """
    for key in (length, *counts):
        if getattr(schedule, key) < 1:
            raise ConfigError(f"schedule.{key} must be 1 or more, not {getattr(schedule, key)}")
    total, warmup = getattr(schedule, length), getattr(schedule, f"warmup_{length}")
    if not 0 <= warmup <= total:
        raise ConfigError(
            f"schedule.warmup_{length} must be from 0 to schedule.{length}={total}, not {warmup}"
        )
    for key in ("lr", "gamma"):
        if not 0 < getattr(schedule, key) < float("inf"):
            raise ConfigError(f"schedule.{key} must be above 0, not {getattr(schedule, key)}")
    for key in ("momentum", "weight_decay"):
        if not 0 <= getattr(schedule, key) < float("inf"):
            raise ConfigError(f"schedule.{key} must be 0 or more, not {getattr(schedule, key)}")
    milestones = schedule.milestones
    if any(later <= earlier for earlier, later in pairwise([0, *milestones])):
        raise ConfigError(f"schedule.milestones must rise from 1, not {milestones}")
    if milestones and milestones[-1] >= total:
        raise ConfigError(
            f"schedule.milestones={milestones} reach beyond the last drop that could have an "
            f"effect: with {total} {length} each must be below {total}"
        )


def check_decay(schedule: Schedule) -> None:
    """Check the decay of the learning rate beside drops at milestones.

    Raises:
        ConfigError: a setting that has no effect with the others, or reaches beyond the end.
    """
    decay, every = schedule.decay, schedule.decay_epochs
    if decay != "step" and schedule.milestones:
        raise ConfigError(
            f"schedule.decay={decay} has no drops: set schedule.milestones=[], or "
            "schedule.decay=step"
        )
    if every is not None and (decay != "step" or schedule.milestones):
        raise ConfigError(
            "schedule.decay_epochs is of schedule.decay=step without milestones: set it to null, "
            "or schedule.milestones=[]"
        )
    if every is not None and not 0 < every < schedule.epochs:
        raise ConfigError(
            f"schedule.decay_epochs={every} must be above 0 and below "
            f"schedule.epochs={schedule.epochs}: no drop would come before the end"
        )
    if not 0 <= schedule.min_lr < schedule.lr:
        raise ConfigError(
            f"schedule.min_lr must be from 0 to below schedule.lr={schedule.lr}, "
            f"not {schedule.min_lr}"
        )
    if schedule.min_lr and decay == "step":
        raise ConfigError("schedule.min_lr is of schedule.decay=cosine or linear: leave it out")
    start = schedule.warmup_lr
    if start is not None and not 0 <= start < float("inf"):
        raise ConfigError(f"schedule.warmup_lr must be 0 or more, not {start}")
    if start is not None and not schedule.warmup_epochs:
        raise ConfigError("schedule.warmup_lr starts a warm-up: set schedule.warmup_epochs too")


def check_optimizer(schedule: Schedule) -> None:
    """Check the optimizer's name, its own settings and what is done to gradients.

    Raises:
        ConfigError: a setting that cannot be trained with, or that the optimizer has not.
    """
    if schedule.layer_decay is not None and not 0 < schedule.layer_decay <= 1:
        raise ConfigError(
            f"schedule.layer_decay must be above 0 and at most 1, not {schedule.layer_decay}"
        )
    if schedule.clip_grad is not None and not 0 < schedule.clip_grad < float("inf"):
        raise ConfigError(f"schedule.clip_grad must be above 0, not {schedule.clip_grad}")
    if schedule.ema_decay is not None and not 0 <= schedule.ema_decay < 1:
        raise ConfigError(
            f"schedule.ema_decay must be 0 or more and below 1, not {schedule.ema_decay}"
        )
    if schedule.nesterov and (schedule.optimizer != "sgd" or not schedule.momentum):
        raise ConfigError(
            "schedule.nesterov is of schedule.optimizer=sgd with momentum: leave it out"
        )
    if schedule.optimizer == "sgd":
        if schedule.optimizer_settings:
            raise ConfigError(
                "schedule.optimizer=sgd has no schedule.optimizer_settings beside "
                "schedule.momentum, nesterov and weight_decay: leave them out"
            )
        return
    from kdbench.training.timm_optimizers import check_timm_optimizer  # timm takes a second

    check_timm_optimizer(schedule.optimizer, schedule.optimizer_settings or {})


def check_changes(schedule: Schedule) -> None:
    """Check what is done to images and labels.

    Raises:
        ConfigError: a setting out of its range.
    """
    for key in ("mixup", "cutmix"):
        if not 0 <= getattr(schedule, key) < float("inf"):
            raise ConfigError(f"schedule.{key} must be 0 or more, not {getattr(schedule, key)}")
    for key in ("mixup_prob", "mixup_switch_prob", "random_erasing"):
        if not 0 <= getattr(schedule, key) <= 1:
            raise ConfigError(f"schedule.{key} must be from 0 to 1, not {getattr(schedule, key)}")
    if not 0 <= schedule.label_smoothing < 1:
        raise ConfigError(
            "schedule.label_smoothing must be 0 or more and below 1, "
            f"not {schedule.label_smoothing}"
        )
