"""SCRL (Roh et al. 2021, arXiv:2103.06122): the same place of an image has the same features in two views.

K random boxes in the overlap of the views are pooled from each view's last feature map (RoIAlign, one place), and every box
predicts the target's feature of that box in the other view: BYOL on boxes. With p = projection of the pooled box, q = predictor:

    L = 1/K sum_k |q(p_k) / |q(p_k)| - p'_k / |p'_k||^2, both ways round       (`regression.symmetric_loss`)

Defaults, from the paper and its code (kakaobrain/scrl @ 62730fb): crops of 0.2 to 1 of the area; K = 10 boxes, sides of at
least 32 px, IoU at most 0.5; RoIAlign to 1 x 1, stride of the whole network, not aligned; heads 2048-4096-256; target momentum
0.97 to 1 for 200 epochs (0.996 for 1000). Its optimizer is LARS, base learning rate 0.45,
weight decay 1e-6, 256 images a GPU, warm-up 10 epochs: a recipe's own is left.

Differences: sides are of the image's pixels, not of the smaller view's, and uniform, not by its grid; an image whose views do
not overlap does not drop out, because the stream draws views that do. The augmentations are BYOL's. Its code runs both
views as one batch, whose statistics they share: `method.joint_statistics`; here each view has its own unless that is set.

Letters: B images, K boxes an image, S side, D width, C channels, N boxes of a view (B K).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.methods.base import Bootstrap, Encoder, MethodConfig, feature_std
from univip_stream.methods.maps import check_maps, last_map, pool_boxes
from univip_stream.methods.regression import symmetric_loss
from univip_stream.methods.scenes import BoxPlan
from univip_stream.plan import Plan
from univip_stream.shapes import Float
from univip_stream.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class SCRLConfig(MethodConfig):
    """Settings of SCRL."""

    joint_statistics: bool = False
    """Take batch statistics over both views together, as they are in SCRL's own code, one batch. False takes each view's."""


class SCRL(Bootstrap):
    """BYOL's networks; projector and predictor get boxes, never whole images. The shards' boxes are not used."""

    Settings = SCRLConfig
    config: SCRLConfig
    settings: ClassVar[dict[str, object]] = {
        "views.overlap": True,
        "views.regions": "naive",
        "views.instances": 10,
        "views.min_scale": 32,
        "views.max_aspect": 100.0,
        "views.max_iou": 0.5,
        "views.crop_scale": (0.2, 1.0),
        "method.hidden": 4096,
        "method.width": 256,
        "ema": 0.97,
    }

    def __init__(self, config: SCRLConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        check_maps(self.backbone, "scrl", config.backbone)

    @classmethod
    def plan(cls, config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
        return BoxPlan(views, augment, method="scrl")

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.no_grad():
            targets_2ND = self._projections(self.target, batch)
        projections_2ND = self._projections(self.online, batch)
        if self.config.joint_statistics:
            predictions_2ND = self.predictor(projections_2ND.flatten(0, 1)).unflatten(0, projections_2ND.shape[:2])
        else:
            predictions_2ND = self.predict(projections_2ND)
        loss = symmetric_loss(*predictions_2ND, *targets_2ND)
        return {"loss": loss, "feature_std": feature_std(projections_2ND)}

    def _projections(self, encoder: Encoder, batch: Mapping[str, Tensor]) -> Float[Tensor, "2 N D"]:
        scenes, boxes = batch["scenes"], batch["boxes"].unbind(1)
        if self.config.joint_statistics:
            both = project_boxes(encoder, scenes.flatten(0, 1), torch.cat(boxes))
            return both.reshape(2, -1, both.shape[-1])
        return torch.stack([project_boxes(encoder, scenes[v], boxes[v]) for v in range(2)])


def project_boxes(encoder: Encoder, images: Float[Tensor, "B 3 S S"], boxes: Float[Tensor, "B K 4"]) -> Float[Tensor, "N D"]:
    """Return the projection of every box, pooled to one place of the last feature map."""
    pooled_NC11 = pool_boxes(last_map(encoder.backbone, images), boxes, images.shape[-1], 1, aligned=False)
    projection: Tensor = encoder.projector(pooled_NC11.flatten(1))
    return projection
