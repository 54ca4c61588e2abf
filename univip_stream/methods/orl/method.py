"""ORL (Xie et al. 2021, arXiv:2106.11952), stage 3: BYOL on the image, within a region, and between similar regions.

Stage 1 is `--method byol`, stage 2 `univip-stream embed` and `univip-stream retrieve` (`evaluation.retrieval`). Stage 3, here,
starts from random weights and adds three losses. Each is BYOL's symmetric loss of two pictures (`regression.symmetric_loss`);
they share backbone, projector and target, but each has its own predictor:

    L = L_global(two views of the image) + L_intra(a region, one near it) + L_inter(a region, its match in another image)

Defaults, from its code (Jiahao000/ORL @ 2ad64f7): the three weigh the same; BYOL's views; a region at random, one near it by
`boxes.nearby_box`, then a neighbour and one of its pairs at random (`pairs`); patches of 96 px, not cropped further; BYOL's
augmentations, the first picture of each two with the first view's, the second with the second's; heads 2048-4096-256; target
momentum 0.99 to 1. Its optimizer on COCO is what the recipe `coco` has, 800 epochs. Its loss is
2 - 2 cos each way, as ours.

Difference: regions are the shards' boxes, or the whole image if there are none. ORL's have sides of at least 96 px and number at
most 100 per image; if none passes, ORL uses the first candidate. For ORL's boxes, run
`univip-stream refilter SHARDS --min-scale 96 --max-boxes 100` before `embed` and `retrieve`.

Letters: B images, H side of a picture, D width.
"""

from collections.abc import Mapping
from copy import copy
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods.base import Bootstrap, MethodConfig, feature_std
from univip_stream.methods.orl.pairs import Pairs
from univip_stream.methods.regression import symmetric_loss
from univip_stream.methods.scenes import ScenePlan
from univip_stream.networks import per_view_batchnorm, projector
from univip_stream.plan import Cut, Drawn, Look, Plan
from univip_stream.shapes import Float
from univip_stream.shards import ShardSet
from univip_stream.views import ViewConfig, Views


class ORLPlan(ScenePlan):
    """A plan with the scene views, and `patches`: a region, one near it, a region of a pair, and its match in another image."""

    all_shards = True

    def __init__(self, views: ViewConfig, augment: AugmentConfig) -> None:
        super().__init__(views, augment)
        if not views.pairs:
            raise UsageError(
                "orl looks at pairs of regions, and views.pairs names no file of them; `univip-stream retrieve` makes one: --set "
                "views.pairs=pairs.parquet"
            )
        self.cuts["patches"] = Cut(count=4, size=views.instance_size, setting="views.instance_size")
        self.pairs: Pairs | None = None

    def opened(self, index: ShardSet) -> "ORLPlan":
        plan = copy(self)
        plan.pairs = Pairs(str(self.views.pairs), index.whole())
        plan.fingerprint = plan.pairs.fingerprint
        return plan

    def add(self, drawn: Drawn, found: Views, look: Look, rng: np.random.Generator) -> None:
        assert self.pairs is not None, "a plan draws after it was opened"
        other, regions = self.pairs.draw(look.sample, rng)
        drawn.windows["patches"], drawn.draws["patches"] = regions, self.numbers(rng, 0, 1, 0, 1)
        drawn.elsewhere["patches", 3] = other
        drawn.instead["patches"] = regions[[0, 1, 0, 1]]


class ORL(Bootstrap):
    """BYOL's networks with three predictors."""

    settings: ClassVar[dict[str, object]] = {
        "views.overlap": False,
        "views.instances": 0,
        "views.instance_size": 96,
        "method.hidden": 4096,
        "method.width": 256,
        "ema": 0.99,
    }
    terms = ("loss_global", "loss_intra", "loss_inter")

    def __init__(self, config: MethodConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        self.intra_predictor, self.inter_predictor = (projector(config.width, config.hidden, config.width) for _ in range(2))
        per_view_batchnorm(self)

    @classmethod
    def plan(cls, config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
        return ORLPlan(views, augment)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scenes, patches = batch["scenes"], batch["patches"]
        projections_2BD = self.encode(self.online, scenes)
        terms = {"loss_global": self._pair(scenes, projections_2BD, self.predictor)}
        for name, pair, predictor in (
            ("loss_intra", patches[:2], self.intra_predictor),
            ("loss_inter", patches[2:], self.inter_predictor),
        ):
            terms[name] = self._pair(pair, self.encode(self.online, pair), predictor)
        return {"loss": torch.stack([*terms.values()]).sum(), **terms, "feature_std": feature_std(projections_2BD)}

    def _pair(
        self, pictures: Float[Tensor, "2 B 3 H H"], projections: Float[Tensor, "2 B D"], predictor: nn.Module
    ) -> Tensor:
        """Return BYOL's loss of two pictures."""
        with torch.no_grad():
            targets_2BD = self.encode(self.target, pictures)
        return symmetric_loss(*self._per_view(predictor, projections), *targets_2BD)
