"""UniVIP (paper section 3): scene-scene similarity, scene-instance affinity and instance-instance discrimination.

Letters: A augmentations of an instance, B batch, K instances an image, S and I side of scene and instance, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from univip_stream.errors import UsageError
from univip_stream.losses import (
    demand,
    instance_cosines,
    instance_loss,
    scene_instance_loss,
    scene_loss,
    supply,
    transport_cost,
)
from univip_stream.methods.base import UNIVIP_TERMS, Bootstrap, MethodConfig, Wants, feature_std, losses_by_term
from univip_stream.networks import initialise_kaiming
from univip_stream.shapes import Float
from univip_stream.transport import sinkhorn


class Transport(NamedTuple):
    """What Eq. 7 to 10 say of instances: M online by N target, K each."""

    plan: Float[Tensor, "B M N"]
    """Eq. 7: what online instance m ships to target instance n; sums to `mass`."""
    cosines: Float[Tensor, "B M N"]
    """The cost of Eq. 8 is 1 less these."""
    supply: Float[Tensor, "B M"]
    """Eq. 9, as it is, before it is scaled to the mass."""
    demand: Float[Tensor, "B N"]
    """Eq. 10."""


class UniVIP(Bootstrap):
    """The sum of three terms (Eq. 12), each of which can be switched off; without instances only the first remains.

    Instances run as one forward of B * K images. With two augmentations the online network sees the first and the target
    the second; with one, both see the same crops.
    """

    wants = Wants(crops=True)
    terms = UNIVIP_TERMS

    def __init__(self, config: MethodConfig, instances: int) -> None:
        super().__init__(config, instances)
        self.instances = instances
        self.with_scene_instance = config.scene_instance and instances > 0
        self.with_instance = config.instance and instances > 0
        if not (config.scene or self.with_scene_instance or self.with_instance):
            raise UsageError(
                f"No loss is left: scene={config.scene}, scene_instance={config.scene_instance}, instance={config.instance}"
                f" with {instances} instances an image. Switch one on (the instance terms need instances)."
            )
        # Only where it is used: distributed training waits for the gradient of every parameter there is.
        self.aggregate = nn.Linear(instances * config.width, config.width) if self.with_scene_instance else None
        if self.aggregate is not None and config.init == "kaiming":
            initialise_kaiming(self.aggregate)

    def forward(
        self, scenes: Float[Tensor, "2 B 3 S S"], instances: Float[Tensor, "A B K 3 I I"] | None = None
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            targets = self.encode(self.target, scenes)
        projections_2BD = self.encode(self.online, scenes)
        predictions = self.predict(projections_2BD)
        scene = scene_loss(*predictions, *targets) if self.config.scene else None
        scene_instance = discrimination = None
        if self.with_scene_instance or self.with_instance:
            crops_ABK3II = self._checked(instances)
            o_BKD = self._per_instance(self.predictor(self.online(crops_ABK3II[0].flatten(0, 1))))
            if self.aggregate is not None:
                aggregate_BD = self.aggregate(o_BKD.flatten(1))  # Eq. 4
                scene_instance = scene_instance_loss(aggregate_BD, *targets)
            if self.with_instance:
                with torch.no_grad():
                    t_BKD = self._per_instance(self.target(crops_ABK3II[-1].flatten(0, 1)))
                discrimination = instance_loss(
                    o_BKD,
                    t_BKD,
                    *predictions,
                    *targets,
                    epsilon=self.config.epsilon,
                    iterations=self.config.iterations,
                    mass=self.config.mass,
                    through_plan=self.config.through_plan,
                )
        losses = losses_by_term(scene, scene_instance, discrimination, self.config.loss_scale)
        return losses | {"feature_std": feature_std(projections_2BD)}

    @torch.no_grad()
    def transport(self, scenes: Float[Tensor, "2 B 3 S S"], instances: Float[Tensor, "A B K 3 I I"]) -> Transport:
        """The plan that `forward` weighs instances with, and what it is made of, to be looked at."""
        crops_ABK3II = self._checked(instances)
        targets = self.encode(self.target, scenes)
        predictions = self.predict(self.encode(self.online, scenes))
        o_BKD = self._per_instance(self.predictor(self.online(crops_ABK3II[0].flatten(0, 1))))
        t_BKD = self._per_instance(self.target(crops_ABK3II[-1].flatten(0, 1)))
        cosines_BMN = instance_cosines(o_BKD, t_BKD)
        b_BM, a_BN = supply(o_BKD, *targets), demand(t_BKD, *predictions)
        c = self.config
        plan_BMN = sinkhorn(transport_cost(cosines_BMN), b_BM, a_BN, c.epsilon, c.iterations, mass=c.mass)
        return Transport(plan_BMN, cosines_BMN, b_BM, a_BN)

    def _checked(self, instances: Tensor | None) -> Tensor:
        if instances is None or instances.shape[2] != self.instances:
            found = "none" if instances is None else instances.shape[2]
            raise ValueError(f"the method was built for {self.instances} instances an image, the batch has {found}")
        return instances

    def _per_instance(self, vectors: Float[Tensor, "BK D"]) -> Float[Tensor, "B K D"]:
        return vectors.reshape(-1, self.instances, vectors.shape[-1])
