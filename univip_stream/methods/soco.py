"""SoCo (Wei et al. 2021, arXiv:2106.02637): an object has the same features at any position and size in a view.

Selective search proposes objects; K of them are drawn. View 1 is the whole image, view 2 a random crop, view 3 view 2 at half
its side. Every object's feature is pooled from each view's map by its box (RoIAlign), and BYOL predicts between views:

    L = 1/K sum_k [ -2 cos(q(v_k), v'_k) - 2 cos(q'(v'_k), v_k) ] of views 1 and 2, and the same of views 1 and 3

with q the online network's prediction and v the target's projection. (2 is added to each, as in BYOL's Eq. 2: no gradient.)

Of the paper's two architectures, this is C4. The boxes are pooled from the third stage's map to 14 x 14 (7 x 7 in view 3), the
fourth stage runs on every box, and its mean is the object's feature. So only the backbone itself is trained and transferred,
and `export` writes it as for any other method. The FPN variant would train layers that only a detector with FPN can use; it is
left out, with its assignment of boxes to levels.

Defaults, from the paper and its code (hologerry/SoCo @ 2be1229): K = 4; crops of 0.5 to 1 of the area (0.6 in the code's C4
script); view 3 of 112 px; boxes of view 1 jittered by up to a tenth of their sides with chance 0.5; heads 2048-4096-256; target
momentum 0.99 to 1; BYOL's augmentations, each view its own. Its optimizer is LARS, base learning rate 1.0,
weight decay 1e-5, 128 images a GPU, warm-up 10 epochs, 100 or 400 epochs: a recipe's own is left.

The released C4 variant (`SoCo_C4_100ep.sh`) has no third view, and cuts squares out of the boxes in view 2: `--method soco --set
views.third_size=0 --set method.cutout_p=0.5 --set views.crop_scale=[0.6,1.0]`. Each box has with that chance a square of 0.1 to 0.3
of its area around a point in it, filled with the mean colour after all augmentations.

Differences: boxes are those of the shards, by UniVIP's filter; SoCo's own (sides of at least 32 px, 0.3 to 0.8 of the image's, no
IoU) is `univip-stream refilter`'s to approach. All K boxes lie wholly inside view 2; too few are filled by random ones, where SoCo
repeats some. View 3 has view 2's window and boxes, as the paper says; the code crops it anew.

Letters: B images, K boxes an image, T side, D width, N boxes of a view (B K).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from univip_stream.augment import FLIP, AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods.base import Bootstrap, Encoder, MethodConfig, feature_std
from univip_stream.methods.maps import check_stages, early_map, last_stage, mean_map, pool_boxes
from univip_stream.methods.regression import symmetric_loss
from univip_stream.methods.scenes import BoxPlan, boxes_in_view
from univip_stream.plan import Cut, Drawn, Look, Plan
from univip_stream.shapes import Float, Float32
from univip_stream.views import ViewConfig, Views

POOLED = 14
"""Side of a pooled box in C4, before the last stage, as in Faster R-CNN with C4 and in SoCo; in view 3 half of it."""


@dataclass(frozen=True, kw_only=True)
class SoCoConfig(MethodConfig):
    """Settings of SoCo."""

    cutout_p: float = 0.0
    """Chance that a square is cut out of a box in the second view. Source: SoCo's code has 0.5 in its C4 variant."""
    cutout_scale: tuple[float, float] = (0.1, 0.3)
    """Smallest and largest area of such a square as a share of the box's. Source: SoCo's code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cutout_p <= 1:
            raise UsageError(f"method.cutout_p is {self.cutout_p}; expected a chance, 0 to 1")
        low, high = self.cutout_scale
        if not 0 < low <= high <= 1:
            raise UsageError(
                f"method.cutout_scale is {self.cutout_scale}; expected two shares of the area, 0 < low <= high <= 1"
            )


class SoCoPlan(BoxPlan):
    """A plan with scene views and boxes, and `third`: the second view's window at another size, the third view of `boxes`.

    Without a third size there are two views. `cutouts`, (K, 4), are squares in the second view, x1, y1, x2, y2 in whole pixels
    of it; those of no area are none.
    """

    def __init__(self, config: SoCoConfig, views: ViewConfig, augment: AugmentConfig) -> None:
        super().__init__(views, augment, method="soco")
        self.config = config
        if views.third_size:
            self.cuts["third"] = Cut(count=1, size=views.third_size, setting="views.third_size")
            self.facts = {"boxes": (3, views.instances, 4)}
        if config.cutout_p:
            self.facts["cutouts"] = (views.instances, 4)

    def add(self, drawn: Drawn, found: Views, look: Look, rng: np.random.Generator) -> None:
        super().add(drawn, found, look, rng)
        if self.config.cutout_p:
            second = drawn.facts["boxes"][1]
            drawn.facts["cutouts"] = draw_cutouts(
                second, self.views.scene_size, self.config.cutout_p, self.config.cutout_scale, rng
            )
        if not self.views.third_size:
            return
        window, numbers = found.scenes[1], self.numbers(rng, 1)
        drawn.windows["third"], drawn.draws["third"] = window[None], numbers
        regions = found.instances.astype(np.float32)
        third = boxes_in_view(regions, window, bool(numbers[0, FLIP] > 0), self.views.third_size)
        drawn.facts["boxes"] = np.concatenate([drawn.facts["boxes"], third[None]])


def draw_cutouts(
    boxes_K4: np.ndarray, side: int, chance: float, scale: tuple[float, float], rng: np.random.Generator
) -> Float32[np.ndarray, "K 4"]:
    """Draw a square for each box: with a chance, around a point in it, of a share of its area (SoCo's `RandomCutoutInBbox`).

    Args:
        boxes_K4: x1, y1, x2, y2 in pixels of a view.
        side: side of the view, pixels.
        chance: chance of a square.
        scale: smallest and largest area of a square as a share of the box's.
        rng: random generator.

    Returns:
        x1, y1, x2, y2 in whole pixels of the view, the last ones outside the square; zeros for none.

    """
    squares = np.zeros((len(boxes_K4), 4), np.float32)
    for at, (x1, y1, x2, y2) in enumerate(boxes_K4.tolist()):
        drawn, share, *place = rng.random(4)
        if drawn >= chance:
            continue
        area = (x2 - x1 + 1) * (y2 - y1 + 1) * (scale[0] + (scale[1] - scale[0]) * share)
        half = round(area**0.5) // 2
        x, y = (int(low + (high - low) * number) for low, high, number in zip((x1, y1), (x2, y2), place, strict=True))
        squares[at] = [max(x - half, 0), max(y - half, 0), min(x + half + 1, side), min(y + half + 1, side)]
    return squares


def cut_out(images: Float[Tensor, "B 3 S S"], squares: Float[Tensor, "B K 4"]) -> Float[Tensor, "B 3 S S"]:
    """Return normalised images with the mean colour, 0, in all their squares."""
    places = torch.arange(images.shape[-1], device=images.device)
    x1, y1, x2, y2 = (edges[..., None] for edges in squares.unbind(-1))
    rows, columns = (places >= y1) & (places < y2), (places >= x1) & (places < x2)
    inside = (rows[..., :, None] & columns[..., None, :]).any(1)
    # A copy keeps its layout; `masked_fill` would give its result another one.
    return images.clone().masked_fill_(inside[:, None], 0.0)


class SoCo(Bootstrap):
    """BYOL's networks on boxes; the last stage of the backbone runs on each box by itself."""

    Settings = SoCoConfig
    config: SoCoConfig
    settings: ClassVar[dict[str, object]] = {
        "views.overlap": True,
        "views.whole_first": True,
        "views.third_size": 112,
        "views.instances": 4,
        "views.crop_scale": (0.5, 1.0),
        "views.box_jitter": 0.1,
        "views.box_jitter_p": 0.5,
        "method.hidden": 4096,
        "method.width": 256,
        "ema": 0.99,
    }
    terms = ("loss_places", "loss_sizes")

    def __init__(self, config: SoCoConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        check_stages(self.backbone, "soco", config.backbone)

    @classmethod
    def plan(cls, config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
        assert isinstance(config, SoCoConfig)
        return SoCoPlan(config, views, augment)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scenes, boxes = batch["scenes"], batch["boxes"].unbind(1)
        second = cut_out(scenes[1], batch["cutouts"]) if "cutouts" in batch else scenes[1]
        views = [(scenes[0], POOLED), (second, POOLED)]
        if "third" in batch:
            views.append((batch["third"][0], POOLED // 2))
        with torch.no_grad():
            t1, t2, *t3 = (
                project_objects(self.target, view, at, size) for (view, size), at in zip(views, boxes, strict=True)
            )
        projections_VND = torch.stack(
            [project_objects(self.online, view, at, size) for (view, size), at in zip(views, boxes, strict=True)]
        )
        q1, q2, *q3 = self.predict(projections_VND)
        places = symmetric_loss(q1, q2, t1, t2)
        sizes = symmetric_loss(q1, q3[0], t1, t3[0]) if q3 else torch.zeros_like(places)
        terms = {"loss_places": places, "loss_sizes": sizes}
        return {"loss": places + sizes, **terms, "feature_std": feature_std(projections_VND)}


def project_objects(
    encoder: Encoder, images: Float[Tensor, "B 3 T T"], boxes: Float[Tensor, "B K 4"], size: int
) -> Float[Tensor, "N D"]:
    """Return the projection of every box, pooled from C4 to `size` x `size` and run through the last stage."""
    pooled = pool_boxes(early_map(encoder.backbone, images), boxes, images.shape[-1], size, aligned=True)
    projection: Tensor = encoder.projector(mean_map(last_stage(encoder.backbone, pooled)))
    return projection
