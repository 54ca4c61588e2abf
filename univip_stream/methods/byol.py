"""BYOL (Grill et al. 2020, arXiv:2006.07733) in the form of the paper's Eq. 2 and 3: the baseline of its tables, Table 7 (a).

Its two views are random and it uses no instances; augmentations, heads, optimizer and schedule are the recipe's, which are
BYOL's and ORL's own numbers. With Algorithm 1's overlapping views it is Table 7 (b), the scene term of UniVIP: choose them with
`--set method.name=byol`, which changes only the method, or with `--method byol --set views.overlap=true`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from univip_stream.losses import scene_loss
from univip_stream.methods.base import UNIVIP_TERMS, Bootstrap, MethodConfig, feature_std, losses_by_term


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(MethodConfig):
    """Settings of BYOL."""

    loss_scale: float = 1.0
    """Factor of the loss. 1 is the -cos of UniVIP's paper; 2 has the gradient of BYOL's 2 - 2 cos. Source: UniVIP,
    Eq. 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.above_zero("loss_scale")


class BYOL(Bootstrap):
    """The scene term alone, on two random views. Instances are ignored."""

    Settings = BYOLConfig
    settings: ClassVar[dict[str, object]] = {"views.overlap": False, "views.instances": 0}
    terms = UNIVIP_TERMS
    config: BYOLConfig

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scenes = batch["scenes"]
        with torch.no_grad():
            targets_2BD = self.encode(self.target, scenes)
        projections_2BD = self.encode(self.online, scenes)
        loss = scene_loss(*self.predict(projections_2BD), *targets_2BD)
        return losses_by_term(loss, None, None, self.config.loss_scale) | {"feature_std": feature_std(projections_2BD)}
