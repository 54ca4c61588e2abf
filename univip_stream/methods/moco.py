"""MoCo v2 (Chen et al. 2020, arXiv:2003.04297; MoCo: He et al., arXiv:1911.05722): a query finds its key among those of a queue.

Loss: InfoNCE, Eq. 1 of MoCo, in `contrast.info_nce`; view 1 is the query, view 2 the key, of the momentum encoder (Eq. 2).

Batch normalisation: synchronised over all ranks, whereas MoCo's code shuffles the key images among GPUs. Both prevent a query from
recognising its key by their shared statistics, because these are those of many images (SimCLR, section 2.2, names both). With
one process there is nothing to shuffle over, and several ranks compute exactly what one process computes.
`sync_batchnorm=false` with several ranks would allow the cheating that MoCo's section 3.3 warns of.

Defaults, from MoCo v2's paper and code: crops of 0.2 to 1 of the area, jitter 0.4, 0.4, 0.4, 0.1 with chance 0.8, grey 0.2, blur
with chance 0.5, no solarization; projector 2048-2048-128 with biases and without batch normalisation; temperature 0.2; queue
65536; momentum 0.999 all the time. Its optimizer is SGD, learning rate 0.03 at batch 256 cosine to 0, weight decay 1e-4, no
warm-up, 200 or 800 epochs: `--set optim...`, a recipe's own is left.

Letters: B images, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from univip_stream.methods.base import Encoder, Method, MethodConfig, feature_std
from univip_stream.methods.contrast import Queue, info_nce
from univip_stream.networks import frozen_copy, per_view_batchnorm
from univip_stream.plan import Plan

MOCO_SETTINGS = {
    "views.overlap": False,
    "views.instances": 0,
    "views.crop_scale": (0.2, 1.0),
    "augment.saturation": 0.4,
    "augment.blur_p": (0.5, 0.5),
    "augment.solarize_p": (0.0, 0.0),
    "method.hidden": 2048,
    "method.width": 128,
    "method.temperature": 0.2,
    "method.queue": 65536,
    "ema": 0.999,
}
"""Views, augmentations and heads of MoCo v2's code."""


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(MethodConfig):
    """Settings of MoCo v2."""

    temperature: float = 0.2
    """Temperature, which divides the similarities. Source: MoCo v2."""
    queue: int = 65536
    """Number of keys of earlier batches that are kept as negatives. Source: MoCo v2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("queue")
        self.above_zero("temperature")


class MoCo(Method):
    """An encoder, its moving average, and a queue of the latter's keys. Boxes are not used."""

    Settings = MoCoConfig
    settings: ClassVar[dict[str, object]] = MOCO_SETTINGS
    config: MoCoConfig

    def __init__(self, config: MoCoConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        self.online = Encoder(config, lambda width: moco_head(width, config.hidden, config.width))
        per_view_batchnorm(self)
        self.target = frozen_copy(self.online)
        self.queue = Queue(config.queue, config.width)

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target, self.online)]

    def target_momentum(self, step: int, total: int, base: float) -> float:
        """Return `base`: the momentum is constant."""
        return base

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scenes = batch["scenes"]
        queries_BD = self.online(scenes[0])
        with torch.no_grad():
            keys_BD = self.target(scenes[1])
        loss = info_nce(queries_BD, keys_BD, self.queue.now(), self.config.temperature)
        self.queue.push(keys_BD)
        return {"loss": loss, "feature_std": feature_std(queries_BD[None])}


def moco_head(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Build a projector: linear, ReLU, linear; without batch normalisation."""
    return nn.Sequential(nn.Linear(in_width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_width))
