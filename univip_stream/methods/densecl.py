"""DenseCL (Wang et al. 2021, arXiv:2011.09157): MoCo v2, and the same at every place of the last feature map.

Beside MoCo's global head, a dense head turns the map into a vector at each of its S^2 places. The positive key of place i of
view 1 is the place of view 2 whose backbone feature is most similar to its own (Eq. 4: c_i = argmax_j sim(f_i, f'_j)); its
negatives are a second queue, of the mean dense vector of each image.

    L   = (1 - lambda) L_q + lambda L_r                                                              Eq. 3
    L_r = mean_i -log( exp(r_i . t_i+ / t) / (exp(r_i . t_i+ / t) + sum_t- exp(r_i . t- / t)) )      Eq. 2

Batch normalisation as `moco-v2`: synchronised.

Defaults, from the paper (section 3.4 and 4.1) and its code (WXinlong/DenseCL @ b64bbb6): views and augmentations of MoCo v2,
lambda 0.5, temperature 0.2, both heads 2048-2048-128, queues of 65536, momentum 0.999, the map at full size (no grid). Its
optimizer for COCO is SGD, learning rate 0.3 at batch 256 cosine to 0, weight decay 1e-4, 800 epochs: a recipe's own is left.

Letters: B images, D width, C channels, P and R places of a map of view 1 and 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from univip_stream.errors import UsageError
from univip_stream.methods.base import feature_std
from univip_stream.methods.contrast import Queue, info_nce, unit
from univip_stream.methods.maps import check_maps, last_map, map_head, mean_map
from univip_stream.methods.moco import MOCO_SETTINGS, MoCo, MoCoConfig
from univip_stream.networks import frozen_copy, per_view_batchnorm
from univip_stream.plan import Plan
from univip_stream.shapes import Float, Int


@dataclass(frozen=True, kw_only=True)
class DenseCLConfig(MoCoConfig):
    """Settings of DenseCL."""

    dense_weight: float = 0.5
    """Share of the dense loss; the global loss has the rest. Source: DenseCL's lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dense_weight <= 1:
            raise UsageError(f"method.dense_weight is {self.dense_weight}; expected a share, 0 to 1")


class DenseCL(MoCo):
    """MoCo v2 with a dense head, a dense target head and a second queue. Boxes are not used."""

    Settings = DenseCLConfig
    settings: ClassVar[dict[str, object]] = MOCO_SETTINGS | {"method.dense_weight": 0.5}
    terms = ("loss_global", "loss_dense")
    config: DenseCLConfig

    def __init__(self, config: DenseCLConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        check_maps(self.backbone, "densecl", config.backbone)
        self.dense = map_head(self.backbone.width, config.hidden, config.width)
        self.dense_target = frozen_copy(self.dense)
        self.dense_queue = Queue(config.queue, config.width)
        per_view_batchnorm(self)

    def target_pairs(self) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
        return [(self.target, self.online), (self.dense_target, self.dense)]

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scenes = batch["scenes"]
        map_q = last_map(self.online.backbone, scenes[0])
        query_BD, dense_q = self.online.projector(mean_map(map_q)), self.dense(map_q)
        with torch.no_grad():
            map_k = last_map(self.target.backbone, scenes[1])
            key_BD, dense_k = self.target.projector(mean_map(map_k)), self.dense_target(map_k)
            matched_BP = correspondence(map_q.flatten(2).mT, map_k.flatten(2).mT)
            keys_BPD = dense_k.flatten(2).mT.gather(1, matched_BP.unsqueeze(2).expand(-1, -1, dense_k.shape[1]))
        t, share = self.config.temperature, self.config.dense_weight
        loss_global = info_nce(query_BD, key_BD, self.queue.now(), t)
        loss_dense = info_nce(dense_q.flatten(2).mT.flatten(0, 1), keys_BPD.flatten(0, 1), self.dense_queue.now(), t)
        self.queue.push(key_BD)
        self.dense_queue.push(mean_map(dense_k))
        terms = {"loss_global": (1 - share) * loss_global, "loss_dense": share * loss_dense}
        return {"loss": terms["loss_global"] + terms["loss_dense"], **terms, "feature_std": feature_std(query_BD[None])}


@torch.no_grad()
def correspondence(first: Float[Tensor, "B P C"], second: Float[Tensor, "B R C"]) -> Int[Tensor, "B P"]:
    """Return, for every place of the first map, the place of the second whose feature has the largest cosine (Eq. 4)."""
    with torch.autocast(first.device.type, enabled=False):
        similar_BPR = _units(first) @ _units(second).mT
    return similar_BPR.argmax(dim=2)


def _units(vectors: Float[Tensor, "B P C"]) -> Float[Tensor, "B P C"]:
    return unit(vectors.flatten(0, 1)).reshape(vectors.shape)
