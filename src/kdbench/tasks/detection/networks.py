"""Faster R-CNN with a feature pyramid, over torchvision's parts and under torchvision's names.

Ren et al. 2015, arXiv 1506.01497; Lin et al. 2017, arXiv 1612.03144. Called like torchvision's own,
a detector does what torchvision's does; distillation uses `learn`, `maps`, `output` and `detect`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import FrozenBatchNorm2d

from kdbench.errors import ConfigError, KdbenchError
from kdbench.records.state_dicts import candidates
from kdbench.records.weight_files import read_content
from kdbench.system.precision import arithmetic
from kdbench.types import NetworkProbe, Output

LEVELS = {"0": "p2", "1": "p3", "2": "p4", "3": "p5", "pool": "p6"}  # torchvision's name -> ours
STAGES = 5  # of a backbone: before stride 4, and up to strides 4, 8, 16, 32
# In torchvision's MobileNetV2: the blocks at which these stages start, those at which the last four
# end, and the channels there.
MOBILENET_STARTS = (0, 2, 4, 7, 14)
MOBILENET_ENDS, MOBILENET_CHANNELS = (3, 6, 13, 17), (24, 32, 96, 320)
ANCHOR_SIZES = [32, 64, 128, 256, 512]  # of p2 ... p6
PYRAMID_CHANNELS = 256
SIDE = 64  # of a blank image, in pixels


class Learned(NamedTuple):
    """The result of a student's training pass."""

    output: Output  # logits [R, K] of the sampled proposals of all images; taps p2 ... p6
    labels: Tensor  # [R] int64, their classes; 0 is the background
    losses: dict[str, Tensor]  # "box", "rpn_objectness", "rpn_box": each []
    proposals: list[Tensor]  # of each image [r, 4], in its pixels


class Detector(FasterRCNN):  # type: ignore[misc]  # torchvision declares no types
    """A Faster R-CNN whose box head can classify any proposals.

    Under autocast the backbone with its pyramid and the box head compute in its precision; anchors,
    proposals, boxes and losses stay float32.

    Args:
        backbone: the backbone with a pyramid of five maps, named as in torchvision.
        num_classes: K, including the background.
        anchor_sizes: the sizes for the five maps, in pixels; three shapes each.
        proposals: the number kept after non-maximum suppression.
        rois_per_image: R / B, the training proposals of an image; up to a quarter are on objects.

    Raises:
        ConfigError: a setting that makes no sense.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        anchor_sizes: Sequence[int],
        proposals: int,
        rois_per_image: int,
    ) -> None:
        if len(anchor_sizes) != len(LEVELS) or min(anchor_sizes) < 1:
            raise ConfigError(f"anchor_sizes must be {len(LEVELS)} sizes: {list(anchor_sizes)}")
        if min(proposals, rois_per_image) < 1:
            raise ConfigError("proposals and rois_per_image must be 1 or more")
        anchors = AnchorGenerator(
            tuple((size,) for size in anchor_sizes), ((0.5, 1.0, 2.0),) * len(LEVELS)
        )
        super().__init__(
            backbone,
            num_classes,
            rpn_anchor_generator=anchors,
            rpn_pre_nms_top_n_train=2 * proposals,
            rpn_pre_nms_top_n_test=proposals,
            rpn_post_nms_top_n_train=proposals,
            rpn_post_nms_top_n_test=proposals,
            box_batch_size_per_image=rois_per_image,
        )
        # torchvision's pool derives the maps' strides from its first images and keeps them; from a
        # square they are right, whichever image a run or its resume begins with.
        blank = torch.zeros(1, 3, SIDE, SIDE)
        with torch.no_grad():
            boxes = [torch.tensor([[0.0, 0.0, SIDE, SIDE]])]
            self.eval().roi_heads.box_roi_pool(self.backbone(blank), boxes, [(SIDE, SIDE)])
        self.train()

    def learn(self, images: ImageList, targets: list[dict[str, Tensor]]) -> Learned:
        """Do a training pass; the training proposals are drawn from torch's generator.

        Args:
            images: the normalised images [B, 3, H, W].
            targets: for each image "boxes" [n, 4] and "labels" [n].
        """
        maps = self.maps(images)
        with in_full(images.tensors):
            proposals, rpn = self.rpn(images, maps, targets)
            proposals, _, labels, offsets = self.roi_heads.select_training_samples(
                proposals, targets
            )
        logits, found = self._heads(maps, proposals, images)
        with in_full(images.tensors):
            _, box = fastrcnn_loss(logits, found, labels, offsets)
        losses = {
            "box": box,
            "rpn_objectness": rpn["loss_objectness"],
            "rpn_box": rpn["loss_rpn_box_reg"],
        }
        return Learned(Output(logits, _named(maps)), torch.cat(labels), losses, proposals)

    def maps(self, images: ImageList) -> dict[str, Tensor]:
        """Return the feature pyramid of images, float32 at any precision of the pass."""
        return {name: one.float() for name, one in self.backbone(images.tensors).items()}

    def output(self, images: ImageList, maps: dict[str, Tensor], proposals: list[Tensor]) -> Output:
        """Return a teacher's output: logits [R, K] of a student's proposals, over its own maps."""
        logits, _ = self._heads(maps, proposals, images)
        return Output(logits, _named(maps))

    def detect(self, images: ImageList) -> list[dict[str, Tensor]]:
        """Return each image's "boxes" [n, 4] in pixels, "labels" and "scores" [n], best first."""
        maps = self.maps(images)
        with in_full(images.tensors):
            proposals, _ = self.rpn(images, maps)
        logits, offsets = self._heads(maps, proposals, images)
        with in_full(images.tensors):
            found = self.roi_heads.postprocess_detections(
                logits, offsets, proposals, images.image_sizes
            )
        return [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(*found, strict=True)
        ]

    def probe(self) -> NetworkProbe:
        """Return the shapes of the maps of a blank image; the network is unchanged."""
        training, parameter = self.training, next(self.parameters())
        with torch.no_grad(), arithmetic("fp32"):
            maps = self.eval().backbone(torch.zeros(1, 3, SIDE, SIDE).to(parameter))
        self.train(training)
        return NetworkProbe({name: value.shape[1:] for name, value in _named(maps).items()})

    def _heads(
        self, maps: dict[str, Tensor], proposals: list[Tensor], images: ImageList
    ) -> tuple[Tensor, Tensor]:
        heads = self.roi_heads
        with in_full(images.tensors):
            pooled = heads.box_roi_pool(maps, proposals, images.image_sizes)
        logits, offsets = heads.box_predictor(heads.box_head(pooled))
        return logits.float(), offsets.float()


def in_full(tensor: Tensor) -> torch.autocast:
    """Compute the enclosed code in the precision of its tensors, within a pass in bfloat16."""
    return torch.autocast(tensor.device.type, enabled=False)


def _named(maps: dict[str, Tensor]) -> dict[str, Tensor]:
    return {LEVELS[name]: value for name, value in maps.items()}


def fasterrcnn_resnet(
    num_classes: int,
    depth: Literal[18, 34, 50, 101],
    backbone: str | None = None,
    trainable_stages: int = 3,
    anchor_sizes: list[int] = ANCHOR_SIZES,
    proposals: int = 1000,
    rois_per_image: int = 512,
) -> Detector:
    """Build Faster R-CNN over a ResNet, as torchvision's `resnet_fpn_backbone`.

    `backbone` is a file of ImageNet weights. With it, batch norms keep their statistics and
    weights, and only the last `trainable_stages` of stem and four stages are trained; without it,
    everything is trained.

    Raises:
        ConfigError: a setting that makes no sense.
        KdbenchError: the file is not of this ResNet.
    """
    _check_stages(trainable_stages)
    pyramid = resnet_fpn_backbone(
        backbone_name=f"resnet{depth}",
        weights=None,
        norm_layer=_norm(backbone),
        trainable_layers=STAGES if backbone is None else trainable_stages,
    )
    if backbone is not None:
        load_backbone(pyramid.body, Path(backbone), f"ResNet{depth}")
    return Detector(pyramid, num_classes, anchor_sizes, proposals, rois_per_image)


def fasterrcnn_mobilenet_v2(
    num_classes: int,
    backbone: str | None = None,
    trainable_stages: int = 3,
    anchor_sizes: list[int] = ANCHOR_SIZES,
    proposals: int = 1000,
    rois_per_image: int = 512,
) -> Detector:
    """Build Faster R-CNN over torchvision's MobileNetV2 without its last convolution.

    Arguments and errors are those of `fasterrcnn_resnet`; a stage ends where the next stride
    begins.
    """
    _check_stages(trainable_stages)
    features = models.mobilenet_v2(weights=None, norm_layer=_norm(backbone)).features
    body = features[: MOBILENET_ENDS[-1] + 1]
    if backbone is not None:
        load_backbone(body, Path(backbone), "MobileNetV2")
        first = (*MOBILENET_STARTS, len(body))[STAGES - trainable_stages]
        body[:first].requires_grad_(False)
    levels = {str(end): str(level) for level, end in enumerate(MOBILENET_ENDS)}
    pyramid = BackboneWithFPN(body, levels, list(MOBILENET_CHANNELS), PYRAMID_CHANNELS)
    return Detector(pyramid, num_classes, anchor_sizes, proposals, rois_per_image)


def _check_stages(trainable_stages: int) -> None:
    if not 0 <= trainable_stages <= STAGES:
        raise ConfigError(
            f"student.trainable_stages must be from 0 to {STAGES}, not {trainable_stages}"
        )


def _norm(backbone: str | None) -> Callable[..., nn.Module]:
    """Choose batch norms by torchvision's rule: a pretrained backbone keeps its statistics."""
    return nn.BatchNorm2d if backbone is None else FrozenBatchNorm2d


def load_backbone(body: nn.Module, path: Path, name: str) -> None:
    """Load ImageNet weights without their classifier.

    Args:
        body: the backbone without a pyramid.
        path: a file that `kdbench.records.weight_files` reads, with torchvision's names.
        name: the network's name, for error lines.

    Raises:
        KdbenchError: the file cannot be read, or is of another network.
    """
    own = body.state_dict()
    found = candidates(read_content(path), own)
    tensors = found[0].tensors if found else {}
    for key, value in own.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key not in tensors or tensors[key].shape != value.shape:
            size = list(tensors[key].shape) if key in tensors else "nothing"
            raise KdbenchError(
                f"{path} is not of a {name} ({key} should be {list(value.shape)}, is {size}): "
                "name a file of its ImageNet weights, as torchvision has them"
            )
    body.load_state_dict({key: tensors.get(key, value) for key, value in own.items()})
