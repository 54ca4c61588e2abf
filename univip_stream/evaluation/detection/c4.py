"""Faster and Mask R-CNN without a pyramid (C4): the first four stages look at the image, the fifth at each region.

Shape letters: B images, N regions of all images, C channels of res5, P side of a pooled region.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import roi_align

POOLED = 14
"""Side of a pooled region, on which res5 makes 7 x 7 (Detectron2 02b5c4e, configs/Base-RCNN-C4.yaml)."""
_STRIDE = 16
"""Pixels of the image per place of res4."""


class Region5(nn.Module):
    """Pool regions of res4 by RoIAlign (aligned, as Detectron2's ROIAlignV2), and run res5 and one more normalisation on each.

    The normalisation behind res5 is MoCo's (arXiv:1911.05722, section 4.2; its `Res5ROIHeadsExtraNorm`).

    Args:
        res5: the last stage of a ResNet.
        width: C.

    """

    def __init__(self, res5: nn.Module, width: int) -> None:
        super().__init__()
        self.res5, self.norm = res5, nn.BatchNorm2d(width)

    def forward(self, res4: Tensor, regions: list[Tensor]) -> Tensor:
        pooled = roi_align(res4, regions, POOLED, spatial_scale=1 / _STRIDE, sampling_ratio=0, aligned=True)
        return cast(Tensor, self.norm(self.res5(pooled)))


class Res5Heads(RoIHeads):  # type: ignore[misc]
    """torchvision's heads on the maps of res5. Masks are learnt on the maps that boxes were learnt on, those of the objects.

    So res5 runs once a step, on one batch of regions, and its normalisation is scored with what it was trained on; torchvision's
    own heads would run it on boxes and on masks, whose regions are others (Detectron2's `Res5ROIHeads` does as here).
    """

    def __init__(self, region: Region5, predictor: nn.Module, mask_predictor: nn.Module | None, **settings: Any) -> None:
        super().__init__(None, None, predictor, **settings)
        self.region, self.mask_on = region, mask_predictor is not None
        if mask_predictor is not None:
            self.mask_predictor = mask_predictor

    def has_mask(self) -> bool:
        return self.mask_on

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        (res4,) = features.values()
        if self.training:
            return [], self._losses(res4, proposals, targets)
        maps_NCPP = self.region(res4, proposals)
        logits, moves = self.box_predictor(maps_NCPP.mean((2, 3)))
        boxes, scores, labels = self.postprocess_detections(logits, moves, proposals, image_shapes)
        found = [
            {"boxes": box, "labels": label, "scores": score} for box, label, score in zip(boxes, labels, scores, strict=True)
        ]
        if self.mask_on:
            masks = maskrcnn_inference(self.mask_predictor(self.region(res4, boxes)), labels)
            found = [{**one, "masks": mask} for one, mask in zip(found, masks, strict=True)]
        return found, {}

    def _losses(self, res4: Tensor, proposals: list[Tensor], targets: list[dict[str, Tensor]] | None) -> dict[str, Tensor]:
        proposals, matched, labels, moves = self.select_training_samples(proposals, targets)
        maps_NCPP = self.region(res4, proposals)
        class_loss, box_loss = fastrcnn_loss(*self.box_predictor(maps_NCPP.mean((2, 3))), labels, moves)
        losses = {"loss_classifier": class_loss, "loss_box_reg": box_loss}
        if self.mask_on and targets is not None:
            of_objects = torch.cat([label > 0 for label in labels])
            kept = [label > 0 for label in labels]
            losses["loss_mask"] = maskrcnn_loss(
                self.mask_predictor(maps_NCPP[of_objects]),
                [boxes[keep] for boxes, keep in zip(proposals, kept, strict=True)],
                [target["masks"] for target in targets],
                [target["labels"] for target in targets],
                [match[keep] for match, keep in zip(matched, kept, strict=True)],
            )
        return losses


def build_c4(trunk: ResNet, classes: int, *, masks: bool, **transform: Any) -> FasterRCNN:
    """Build Faster R-CNN, or with `masks` Mask R-CNN, around a ResNet that it takes over: Detectron2's C4, normalised as MoCo's.

    Detectron2's numbers (02b5c4e, configs/Base-RCNN-C4.yaml and its defaults): anchors of 32 to 512 px in three shapes on res4,
    12,000 proposals before and 2,000 after suppression in training, 6,000 and 1,000 in testing, 512 regions an image to learn from,
    a quarter of objects. The mask head is one transposed convolution on res5. Different here: box losses are smooth L1 with
    torchvision's bend at 1/9, where Detectron2's have none.

    Args:
        trunk: a ResNet of torchvision's.
        classes: number of object classes, without background.
        masks: whether it learns outlines too.
        transform: what `FasterRCNN` takes for resizing and normalising images.

    """
    width = trunk.inplanes
    region = Region5(trunk.layer4, width)
    backbone = _Res4(trunk, width // 2)
    predictor = FastRCNNPredictor(width, classes + 1)
    for layer, deviation in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):  # Detectron2's FastRCNNOutputLayers
        nn.init.normal_(layer.weight, std=deviation)
        nn.init.zeros_(layer.bias)
    detector = FasterRCNN(
        backbone, None, box_head=nn.Identity(), box_predictor=predictor,
        rpn_anchor_generator=AnchorGenerator(((32, 64, 128, 256, 512),), ((0.5, 1.0, 2.0),)),
        rpn_pre_nms_top_n_train=12_000, rpn_pre_nms_top_n_test=6_000, rpn_post_nms_top_n_train=2_000,
        rpn_post_nms_top_n_test=1_000, **transform,
    )  # fmt: skip
    detector.roi_heads = Res5Heads(
        region, predictor, MaskRCNNPredictor(width, 256, classes + 1) if masks else None,
        fg_iou_thresh=0.5, bg_iou_thresh=0.5, batch_size_per_image=512, positive_fraction=0.25, bbox_reg_weights=None,
        score_thresh=0.05, nms_thresh=0.5, detections_per_img=100,
    )  # fmt: skip
    return detector


class _Res4(nn.Module):
    """The first four stages of a ResNet, as a backbone for torchvision's detectors."""

    def __init__(self, trunk: ResNet, width: int) -> None:
        super().__init__()
        self.body = IntermediateLayerGetter(trunk, {"layer3": "0"})
        self.out_channels = width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.body(images)
        return found
