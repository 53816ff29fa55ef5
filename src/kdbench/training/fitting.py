"""Which schedules, methods and data sets go together."""

from kdbench.data.base import Dataset
from kdbench.errors import ConfigError
from kdbench.methods.base import Method, Wrapper
from kdbench.system.runtime import Runtime
from kdbench.training.schedule import Schedule


def check_fit(schedule: Schedule, name: str, method: Method, dataset: Dataset) -> None:
    """Refuse a schedule that does what a method or a data set cannot do with.

    Args:
        schedule: the recipe.
        name: the method's, for error lines.
        method: the method, not yet set up.
        dataset: the data that it is to learn.

    Raises:
        ConfigError: says what does not go together, and what to set.
    """
    check_streams(schedule, name, method)
    check_labels(schedule, name, method)
    if schedule.changes_images and method.views > 1:
        raise ConfigError(
            f"method {name} compares {method.views} views of each image, and schedule.mixup, "
            "cutmix, random_erasing, rand_augment and repeats would change one of them: leave them "
            "out, or choose another method"
        )
    if schedule.repeats > 1 and any(isinstance(m, Method) and m.banks for m in method.modules()):
        raise ConfigError(
            f"method {name} keeps a row for each image, and schedule.repeats={schedule.repeats} "
            "brings an image several times: set it to 1"
        )
    if schedule.rand_augment is not None:
        from kdbench.data.augmentation.timm_randaugment import policy_of  # timm takes a second

        policy_of(schedule.rand_augment, dataset.mean, dataset.train.images.shape[-1])
    smallest = min(schedule.batch_size, len(dataset.train.labels)) // schedule.micro_batches
    if schedule.batch_changes.mixing.mixes and smallest < 2:
        raise ConfigError(
            "schedule.mixup and schedule.cutmix mix the images of a batch with each other, and "
            "there is one: set them to 0, or take more images or a larger schedule.batch_size"
        )


def check_device(schedule: Schedule, runtime: Runtime) -> None:
    """Refuse fp16 on a CPU.

    Raises:
        ConfigError: names the precision that a CPU has.
    """
    if schedule.precision == "fp16" and runtime.device.type != "cuda":
        raise ConfigError(
            "schedule.precision=fp16 is of a GPU: set schedule.precision=bf16, or runtime=cuda"
        )


def check_streams(schedule: Schedule, name: str, method: Method) -> None:
    """Refuse settings that a method with a momentum buffer for each part of its loss has not.

    Raises:
        ConfigError: names the first.
    """
    if not method.streams:
        return
    if schedule.precision == "fp16":
        raise ConfigError(
            f"method {name} has a gradient for each part of its loss, which fp16's loss scaling "
            "does not know: set schedule.precision=bf16"
        )
    for key, plain in (("optimizer", "sgd"), ("nesterov", False), ("clip_grad", None)):
        value = getattr(schedule, key)
        if value != plain:
            raise ConfigError(
                f"schedule.{key}={value} does not go with method {name}, which is SGD with a "
                f"momentum buffer for each part of its loss: set schedule.{key}="
                f"{'null' if plain is None else str(plain).lower()}"
            )


def check_labels(schedule: Schedule, name: str, method: Method) -> None:
    """Refuse soft labels that a method would not see, or could not use.

    Raises:
        ConfigError: names the setting.
    """
    if schedule.batch_changes.mixing.mixes and not method.soft_labels:
        raise ConfigError(
            f"method {name} reads each image's own label or keeps a row for each image, and "
            "schedule.mixup and schedule.cutmix mix two images: set them to 0, or choose another "
            "method"
        )
    while isinstance(method, Wrapper):
        method = method.inner
    own = type(method).label_term is not Method.label_term
    if schedule.label_smoothing and own and not method.soft_labels:
        raise ConfigError(
            f"method {name} has a label loss of its own, which schedule.label_smoothing does not "
            "reach: set it to 0"
        )
