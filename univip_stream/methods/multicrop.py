"""Multi-crop BYOL: BYOL (Grill et al. 2020, arXiv:2006.07733) with the views of SwAV (Caron et al. 2020, arXiv:2006.09882).

An image gives two large and six small crops. The target network gets only the large ones, the online network all; every view
predicts every large one but itself (SwAV, section 3.3: "we compute codes using only the full resolution crops"):

    L = -1/N sum over large t and all v other than t of cos(q(z_v), z'_t)          N the number of such pairs

Without small crops, the two remaining pairs give half of Eq. 3: the mean instead of the sum.

Defaults, from SwAV's paper and code: 2 crops of 224 px of 0.14 to 1 of the area, 6 of 96 px of 0.05 to 0.14. Augmentations and
heads are BYOL's; odd views (the first, the third, ...) have the probabilities of BYOL's first view, even ones of its second.

Letters: B images, N views, S their side, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from univip_stream.augment import AugmentConfig, draw
from univip_stream.errors import UsageError
from univip_stream.methods.base import Bootstrap, MethodConfig, feature_std
from univip_stream.plan import Cut, Drawn, Look, Plan
from univip_stream.views import ViewConfig, random_crops


@dataclass(frozen=True, kw_only=True)
class MultiCropConfig(MethodConfig):
    """Settings of multi-crop BYOL."""

    small_views: int = 6
    """Small crops of an image. Source: SwAV."""
    small_size: int = 96
    """Side of a small crop, in pixels; views.scene_size is that of the two large ones. Source: SwAV."""
    small_scale: tuple[float, float] = (0.05, 0.14)
    """Smallest and largest area of a small crop as a share of the image's; views.crop_scale is that of the large ones. Source:
    SwAV."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.small_views <= 64:
            raise UsageError(f"method.small_views is {self.small_views}; expected 0 to 64")
        if not 8 <= self.small_size <= 4096:
            raise UsageError(f"method.small_size is {self.small_size}; expected 8 to 4096 pixels")
        low, high = self.small_scale
        if not 0 < low <= high <= 1:
            raise UsageError(
                f"method.small_scale is {self.small_scale}; expected two shares of the area, 0 < low <= high <= 1"
            )


class MultiCropPlan(Plan):
    """`large` and `small` random crops; no boxes."""

    def __init__(self, config: MultiCropConfig, views: ViewConfig, augment: AugmentConfig) -> None:
        self.config, self.views, self.augment = config, views, augment
        self.cuts = {"large": Cut(count=2, size=views.scene_size, setting="views.scene_size")}
        if config.small_views:
            self.cuts["small"] = Cut(count=config.small_views, size=config.small_size, setting="method.small_size")
        self.interpolation = views.interpolation

    def draw(self, look: Look, rng: np.random.Generator) -> Drawn:
        drawn = Drawn()
        scales = {"large": self.views.crop_scale, "small": self.config.small_scale}
        for name, cut in self.cuts.items():
            drawn.windows[name] = random_crops(rng, cut.count, look.width, look.height, scales[name], self.views.crop_ratio)
            drawn.draws[name] = np.stack([draw(rng, self.augment, view % 2) for view in range(cut.count)])
        return drawn


class MultiCrop(Bootstrap):
    """BYOL's networks; the online network gets all crops."""

    Settings = MultiCropConfig
    settings: ClassVar[dict[str, object]] = {"views.overlap": False, "views.instances": 0, "views.crop_scale": (0.14, 1.0)}
    terms = ("loss_large", "loss_small")

    @classmethod
    def plan(cls, config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
        assert isinstance(config, MultiCropConfig)
        return MultiCropPlan(config, views, augment)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        large = batch["large"]
        with torch.no_grad():
            targets_2BD = self.encode(self.target, large)
        projections_2BD = self.encode(self.online, large)
        q1, q2 = self.predict(projections_2BD)
        t1, t2 = targets_2BD
        pairs = [-_cosine(q1, t2), -_cosine(q2, t1)]
        if "small" in batch:
            small = self.predict(self.encode(self.online, batch["small"]))
            pairs += [-_cosine(q, t) for q in small for t in (t1, t2)]
        terms = {"loss_large": torch.stack(pairs[:2]).sum() / len(pairs)}
        terms["loss_small"] = torch.stack([*pairs[2:], torch.zeros_like(pairs[0])]).sum() / len(pairs)
        return {"loss": terms["loss_large"] + terms["loss_small"], **terms, "feature_std": feature_std(projections_2BD)}


def _cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cosine of the rows, in float32."""
    with torch.autocast(predictions.device.type, enabled=False):
        mean: Tensor = F.cosine_similarity(predictions.float(), targets.float(), dim=-1).mean()
    return mean
