"""Detectors of torchvision's parts around a ResNet: nothing frozen, batch normalisation wherever a batch has one scale."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torchvision.models import ResNet
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from univip_stream.errors import UsageError
from univip_stream.evaluation.detection.c4 import build_c4
from univip_stream.evaluation.subject import Subject

MODELS = ("mask-rcnn", "faster-rcnn", "retinanet", "mask-rcnn-c4", "faster-rcnn-c4")
"""He et al. 2017, Ren et al. 2015, Lin et al. 2017, each with a feature pyramid (Lin et al. 2017); and the first two without."""


def build_detector(name: str, subject: Subject, classes: int, *, sides: Sequence[int], longest: int) -> nn.Module:
    """Build a detector around a copy of a pre-trained backbone.

    Mask R-CNN and Faster R-CNN have a box head of four convolutions and one linear layer (4conv1fc, as in Detectron2 for
    networks trained with SyncBN). Batch normalisation is in backbone and pyramid, separately for each level, and in those
    heads, which get the objects of all levels as one batch. RetinaNet's heads have none, as in Detectron2: they run once per
    level, and one normalisation for five levels would train on each level's statistics but be scored with their mixture.
    RetinaNet's level P6 is computed from the backbone's C5 (Lin et al. 2017, arXiv:1708.02002, section 4), as in Detectron2.
    The models without a pyramid (C4) run the backbone's last stage on each region (`c4.build_c4`).

    Images are normalised as in the subject's training.

    Args:
        name: one of MODELS.
        subject: provides the backbone, a ResNet of torchvision's.
        classes: number of object classes, without background.
        sides: short sides in pixels that training draws from; testing uses the last.
        longest: maximal pixels of the long side.

    Raises:
        UsageError: there is no such model, or it cannot be built around the backbone.

    """
    if name not in MODELS:
        raise UsageError(f"there is no detector {name!r}; expected one of {', '.join(MODELS)}")
    trunk = copy.deepcopy(subject.backbone.trunk).requires_grad_(True)
    if not isinstance(trunk, ResNet) or subject.config.method.small_stem:
        stem = " with the small stem" if subject.config.method.small_stem else ""
        raise UsageError(
            f"{subject.run} is a {subject.config.method.backbone}{stem}; {name} is built around a ResNet of torchvision's with its "
            f"usual stem{' and its res5, which runs on each region' if name.endswith('-c4') else ''}, such as resnet50"
        )
    widths = [trunk.inplanes // 8 * 2**stage for stage in range(4)]
    pixels = subject.config.augment
    given: dict[str, Any] = {
        "min_size": tuple(sides), "max_size": longest, "image_mean": list(pixels.mean), "image_std": list(pixels.std),
    }  # fmt: skip
    if name.endswith("-c4"):
        c4: nn.Module = build_c4(trunk, classes, masks=has_masks(name), **given)
        return c4
    if name == "retinanet":
        pyramid = BackboneWithFPN(
            trunk,
            {f"layer{at + 1}": str(at - 1) for at in (1, 2, 3)},
            widths[1:],
            256,
            LastLevelP6P7(widths[-1], 256),
            nn.BatchNorm2d,
        )
        # Three sizes an octave, as RetinaNet's paper has it.
        anchors = AnchorGenerator(
            tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512)),
            ((0.5, 1.0, 2.0),) * 5,
        )
        head = RetinaNetHead(256, anchors.num_anchors_per_location()[0], classes)
        retinanet: nn.Module = RetinaNet(pyramid, classes, anchor_generator=anchors, head=head, **given)
        return retinanet
    pyramid = BackboneWithFPN(
        trunk, {f"layer{at + 1}": str(at) for at in range(4)}, widths, 256, LastLevelMaxPool(), nn.BatchNorm2d
    )
    box_head = FastRCNNConvFCHead((256, 7, 7), [256] * 4, [1024], norm_layer=nn.BatchNorm2d)
    detector: nn.Module
    if name == "faster-rcnn":
        detector = FasterRCNN(pyramid, classes + 1, box_head=box_head, **given)
    else:
        mask_head = MaskRCNNHeads(256, [256] * 4, 1, norm_layer=nn.BatchNorm2d)
        detector = MaskRCNN(pyramid, classes + 1, box_head=box_head, mask_head=mask_head, **given)
    return detector


def has_masks(name: str) -> bool:
    """Whether a detector learns and finds outlines."""
    return name.startswith("mask-rcnn")


def first_label(name: str) -> int:
    """Return the label of a detector's first class: 1 if 0 is the background, else 0."""
    return 0 if name == "retinanet" else 1
