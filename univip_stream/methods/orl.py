"""ORL (Xie et al. 2021, arXiv:2106.11952), stage 3: BYOL on the image, within a region, and between regions that look alike.

Stage 1 is `--method byol`, stage 2 `univip-stream embed` and `univip-stream retrieve` (`evaluation.retrieval`). Stage 3, here,
begins from scratch and adds up three losses. Each is BYOL's of two pictures, both ways round (`regression.symmetric_loss`); they
share backbone, projector and target, and have a predictor each:

    L = L_global(two views of the image) + L_intra(a region, one near it) + L_inter(a region, its like in another image)

Defaults, from its code (Jiahao000/ORL @ 2ad64f7): the three weigh the same; BYOL's views; a region at random, one near it by
`boxes.nearby_box`, then a neighbour and one of its pairs at random (`stream.pairs`); patches of 96 px, not cropped further; BYOL's
augmentations, the first picture of each two with the first view's, the second with the second's; heads 2048-4096-256; target
momentum 0.99 to 1. Its optimizer on COCO is what the recipe `coco` has, 800 epochs. Its loss is
2 - 2 cos each way, as ours.

Difference: regions are the shards' boxes, the whole image where there is none. ORL's have sides of at least 96 px and are at
most 100 an image, of which it falls back on the first candidate: `univip-stream refilter SHARDS --min-scale 96 --max-boxes 100`,
before `embed` and `retrieve`.

Letters: A augmentations, B images, K instances, S and I sides of scene and instance, I2 of a patch, D width.
"""

import torch
from torch import Tensor, nn

from univip_stream.methods.base import Bootstrap, MethodConfig, Wants, feature_std
from univip_stream.methods.regression import symmetric_loss
from univip_stream.networks import per_view_batchnorm, projector
from univip_stream.shapes import Float


class ORL(Bootstrap):
    """BYOL's networks with three predictors."""

    wants = Wants(
        patches=True,
        settings={
            "views.overlap": False,
            "views.instances": 0,
            "views.instance_size": 96,
            "method.hidden": 4096,
            "method.width": 256,
            "ema": 0.99,
        },
    )
    terms = ("loss_global", "loss_intra", "loss_inter")

    def __init__(self, config: MethodConfig, instances: int = 0) -> None:
        super().__init__(config, instances)
        self.intra_predictor, self.inter_predictor = (projector(config.width, config.hidden, config.width) for _ in range(2))
        per_view_batchnorm(self)

    def forward(  # type: ignore[override]  # a method that wants patches is given them
        self,
        scenes: Float[Tensor, "2 B 3 S S"],
        instances: Float[Tensor, "A B K 3 I I"] | None = None,
        *,
        patches: Float[Tensor, "4 B 3 I2 I2"],
    ) -> dict[str, Tensor]:
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
        """BYOL's loss of two pictures."""
        with torch.no_grad():
            targets_2BD = self.encode(self.target, pictures)
        return symmetric_loss(*self._per_view(predictor, projections), *targets_2BD)
