"""SimCLR (Chen et al. 2020, arXiv:2002.05709): two views of an image attract, all other images of the batch repel.

Loss: NT-Xent, Eq. 1, in `contrast.nt_xent`. The batch of the loss is that of all ranks, with gradient; with gradient
accumulation it is that of a part. Batch normalisation has the statistics of all ranks (section 2.2, "Global BN").

Defaults, from the paper (section 2.1, appendix A and B.6) and its code: random crops of 0.08 to 1 of the area, colour jitter of
strength 1 (0.8, 0.8, 0.8, 0.2) with chance 0.8, grey 0.2, blur with chance 0.5 for both views, no solarization; projector
2048-2048-128 with batch normalisation after both layers; temperature 0.1. Its optimizer is LARS, learning rate 0.3 x batch /
256, weight decay 1e-6, batch 4096, warm-up 10 epochs, for 100 epochs or more: `--set optim...`, a recipe's own is left.

Its code runs both views as one batch, so that a normalisation has the statistics of both together; here each view has its own,
as in all methods of this program, unless `method.joint_statistics` is set.

Letters: B images, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from univip_stream.methods.base import Encoder, Method, MethodConfig, feature_std
from univip_stream.methods.contrast import nt_xent
from univip_stream.networks import per_view_batchnorm
from univip_stream.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(MethodConfig):
    """Settings of SimCLR."""

    temperature: float = 0.1
    """Temperature, which divides the similarities. Source: SimCLR."""
    joint_statistics: bool = False
    """Take batch statistics over both views together, as they are in SimCLR's own code, one batch. False takes each view's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.above_zero("temperature")


class SimCLR(Method):
    """One network without a target. Boxes are not used."""

    Settings = SimCLRConfig
    settings: ClassVar[dict[str, object]] = {
        "views.overlap": False,
        "views.instances": 0,
        "augment.brightness": 0.8,
        "augment.contrast": 0.8,
        "augment.saturation": 0.8,
        "augment.hue": 0.2,
        "augment.blur_p": (0.5, 0.5),
        "augment.solarize_p": (0.0, 0.0),
        "method.hidden": 2048,
        "method.width": 128,
        "method.temperature": 0.1,
    }
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        self.online = Encoder(config, lambda width: simclr_head(width, config.hidden, config.width))
        per_view_batchnorm(self)

    def target_momentum(self, step: int, total: int, base: float) -> float:
        """Return 0: there is no target."""
        return 0.0

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encode = self.encode_together if self.config.joint_statistics else self.encode
        projections_2BD = encode(self.online, batch["scenes"])
        loss = nt_xent(projections_2BD[0], projections_2BD[1], self.config.temperature)
        return {"loss": loss, "feature_std": feature_std(projections_2BD)}


def simclr_head(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Build two layers, each with batch normalisation and without bias; the last normalisation has a scale but no shift."""
    last = nn.BatchNorm1d(out_width)
    last.bias.requires_grad_(False)
    return nn.Sequential(
        nn.Linear(in_width, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, out_width, bias=False),
        last,
    )
