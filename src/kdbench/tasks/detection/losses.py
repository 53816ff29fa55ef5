"""A detector's loss: Faster R-CNN's own, and a method's on the sampled proposals."""

import torch
from torch import Tensor

from kdbench.methods.base import Method
from kdbench.tasks.detection.batches import DetectionBatch
from kdbench.tasks.detection.frozen import Taught
from kdbench.tasks.detection.networks import Detector
from kdbench.tasks.task import Sums
from kdbench.types import Batch, Losses


def losses_and_sums(
    student: Detector, method: Method, batch: DetectionBatch, teachers: tuple[Taught, ...]
) -> tuple[Losses, Sums]:
    """Return the losses to differentiate, and this batch's contribution to the sums.

    A method sees the sampled proposals of all images as its samples: logits [R, K] and labels [R]
    of the student's box head, and the teachers' logits of the same proposals. Its term "ce" is
    Faster R-CNN's classification loss. The losses of boxes and proposals are added to it,
    unweighted and undistilled.
    """
    learned = student.learn(batch.images, batch.targets)
    read = teachers if method.num_teachers != 0 else ()
    outputs = tuple(teacher.output(learned.proposals) for teacher in read)
    seen = Batch(batch.images.tensors, learned.labels, batch.index, batch.epoch, batch.drawn)
    terms, numbers = method.terms_and_curves(seen, learned.output, outputs)
    means = {name: term.mean() for name, term in terms.items()}
    distillation = [mean for name, mean in means.items() if name != "ce"]
    own = [mean for name, mean in means.items() if name == "ce"] + list(learned.losses.values())
    losses = Losses(
        torch.stack(own).sum(), torch.stack(distillation).sum() if distillation else None
    )
    count = len(batch.index)
    values: dict[str, Tensor] = {"loss": losses.total()}
    values |= {f"term/{name}": mean for name, mean in {**means, **learned.losses}.items()}
    values |= {f"method/{name}": value.detach().double().mean() for name, value in numbers.items()}
    return losses, {name: value.detach().double() * count for name, value in values.items()}
