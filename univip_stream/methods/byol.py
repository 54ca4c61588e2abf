"""BYOL (Grill et al. 2020) as the paper's Eq. 2 and 3 have it: the baseline of its tables, Table 7(a) with random views."""

import torch
from torch import Tensor

from univip_stream.losses import scene_loss
from univip_stream.methods.base import UNIVIP_TERMS, Bootstrap, feature_std, losses_by_term
from univip_stream.shapes import Float


class BYOL(Bootstrap):
    """The scene term alone. Instances are ignored; the views should be random ones."""

    terms = UNIVIP_TERMS

    def forward(
        self, scenes: Float[Tensor, "2 B 3 S S"], instances: Float[Tensor, "A B K 3 I I"] | None = None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            targets_2BD = self.encode(self.target, scenes)
        projections_2BD = self.encode(self.online, scenes)
        loss = scene_loss(*self.predict(projections_2BD), *targets_2BD)
        return losses_by_term(loss, None, None, self.config.loss_scale) | {"feature_std": feature_std(projections_2BD)}
