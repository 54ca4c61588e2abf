"""torchvision's detectors around a pre-trained ResNet: nothing frozen, batch normalisation wherever a batch has one scale."""

import copy
from collections.abc import Sequence

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
from univip_stream.evaluation.subject import Subject

MODELS = ("mask-rcnn", "faster-rcnn", "retinanet")
"""He et al. 2017, Ren et al. 2015, Lin et al. 2017, each with a feature pyramid (Lin et al. 2017)."""


def build_detector(name: str, subject: Subject, classes: int, *, sides: Sequence[int], longest: int) -> nn.Module:
    """A detector whose backbone starts from a pre-trained one, a copy.

    Mask R-CNN and Faster R-CNN have a box head of four convolutions and one linear layer (4conv1fc, as Detectron2's for
    networks trained with SyncBN). Batch normalisation is in backbone and pyramid, where each level has its own, and in those
    heads, which see the objects of all levels as one batch. RetinaNet's heads have none, as Detectron2's: they run once a level,
    and one normalisation for five levels would train on each level's statistics and be scored on the mixture of them all.
    RetinaNet's level P6 is made of the backbone's C5 (Lin et al. 2017, arXiv:1708.02002, section 4), as Detectron2's.

    Images are normalised as the subject's training normalised them.

    Args:
        name: one of MODELS.
        subject: whose backbone; a ResNet of torchvision's.
        classes: of objects, without background.
        sides: short sides in pixels that training draws from; the last is for testing.
        longest: most pixels of the long side.

    Raises:
        UsageError: no such model, or a backbone that it cannot be built around.

    """
    if name not in MODELS:
        raise UsageError(f"there is no detector {name!r}; expected one of {', '.join(MODELS)}")
    trunk = copy.deepcopy(subject.backbone.trunk).requires_grad_(True)
    if not isinstance(trunk, ResNet) or subject.config.method.small_stem:
        stem = " with the small stem" if subject.config.method.small_stem else ""
        raise UsageError(
            f"{subject.run} is a {subject.config.method.backbone}{stem}; {name} is built around a ResNet of torchvision's with its "
            "usual stem, such as resnet50"
        )
    widths = [trunk.inplanes // 8 * 2**stage for stage in range(4)]
    pixels = subject.config.augment
    given = {
        "min_size": tuple(sides), "max_size": longest, "image_mean": list(pixels.mean), "image_std": list(pixels.std),
    }  # fmt: skip
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


def first_label(name: str) -> int:
    """The number of the first class in a detector's labels: 0 is background where there is one."""
    return 0 if name == "retinanet" else 1
