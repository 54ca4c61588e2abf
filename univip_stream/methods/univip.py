"""UniVIP (paper section 3): scene-scene similarity, scene-instance affinity and instance-instance discrimination.

Letters: B batch, K instances an image, S and I side of scene and instance, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig, draw
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
from univip_stream.methods.base import UNIVIP_TERMS, Bootstrap, MethodConfig, feature_std, losses_by_term
from univip_stream.methods.scenes import ScenePlan
from univip_stream.networks import initialise_kaiming
from univip_stream.plan import Cut, Drawn, Look, Plan
from univip_stream.shapes import Float
from univip_stream.transport import sinkhorn
from univip_stream.views import ViewConfig, Views


@dataclass(frozen=True, kw_only=True)
class UniVIPConfig(MethodConfig):
    """Settings of UniVIP; the defaults are the paper's, or `docs/method.md`'s where the paper is silent."""

    scene: bool = True
    """Train the scene-scene term, Eq. 3. Source: UniVIP, section 3.2."""
    scene_instance: bool = True
    """Train the scene-instance term, Eq. 6. Source: UniVIP, section 3.3."""
    instance: bool = True
    """Train the instance-instance term, Eq. 11. Source: UniVIP, section 3.4."""
    epsilon: float = 0.1
    """Entropic regularisation of the optimal transport, in units of its cost: larger makes plans more even. Source: OTA (Ge
    et al. 2021); UniVIP names no number."""
    iterations: int = 50
    """Sinkhorn iterations of the optimal transport. Source: OTA (Ge et al. 2021); UniVIP names no number."""
    mass: float | None = None
    """Sum of a transport plan, and so the weight of Eq. 11; null is the number of instances, K, so that each counts as one.
    Source: OTA and DeepEMD; docs/method.md says what was measured with 1, as printed."""
    through_plan: bool = False
    """Let the gradient of Eq. 11 pass through the transport plan too. Source: DeepEMD does; OTA, which Eq. 7 follows, does
    not."""
    loss_scale: float = 1.0
    """Factor of the loss. 1 is the -cos of UniVIP's paper; 2 has the gradient of BYOL's 2 - 2 cos. Source: UniVIP,
    Eq. 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least_one("iterations")
        self.above_zero("epsilon", *(["mass"] if self.mass is not None else []), "loss_scale")


class UniVIPPlan(ScenePlan):
    """A plan with `scenes` and, if K is above 0, `instances`: the regions as pictures of their own, together.

    If `views.instance_augmentations` is 2, `instances_again` are the same with other augmentations, for the target network.
    """

    def __init__(self, views: ViewConfig, augment: AugmentConfig) -> None:
        super().__init__(views, augment)
        if views.instances:
            cut = Cut(count=views.instances, size=views.instance_size, together=True, setting="views.instance_size")
            self.cuts["instances"] = cut
            if views.instance_augmentations == 2:
                self.cuts["instances_again"] = replace(cut, again="instances")

    def add(self, drawn: Drawn, found: Views, look: Look, rng: np.random.Generator) -> None:
        views = self.views
        if not views.instances:
            return
        drawn.windows["instances"] = found.instances
        names = ("instances", "instances_again")[: views.instance_augmentations]
        numbers: dict[str, list[np.ndarray]] = {name: [] for name in names}
        for _ in range(views.instances):
            for view, name in enumerate(names):
                numbers[name].append(
                    draw(rng, self.augment, view if views.instance_draws == "in-order" else int(rng.integers(2)))
                )
        drawn.draws |= {name: np.stack(found) for name, found in numbers.items()}


class Transport(NamedTuple):
    """Values of Eq. 7 to 10 for the instances: M online by N target, K each."""

    plan: Float[Tensor, "B M N"]
    """Amount that online instance m ships to target instance n (Eq. 7); sums to the mass."""
    cosines: Float[Tensor, "B M N"]
    """Cosines of the instances; the cost of Eq. 8 is 1 minus these."""
    supply: Float[Tensor, "B M"]
    """Supply of Eq. 9, before it is scaled to the mass."""
    demand: Float[Tensor, "B N"]
    """Demand of Eq. 10, before it is scaled to the mass."""


class UniVIP(Bootstrap):
    """The sum of three terms (Eq. 12), each of which can be switched off; without instances only the first remains.

    Instances run as one forward pass of B * K images. With two augmentations the online network gets the first and the target
    the second; with one, both get the same crops.
    """

    Settings = UniVIPConfig
    terms = UNIVIP_TERMS
    config: UniVIPConfig

    def __init__(self, config: UniVIPConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        self.instances = instances = plan.cuts["instances"].count if "instances" in plan.cuts else 0
        self.mass = float(instances) if config.mass is None else config.mass
        self.with_scene_instance = config.scene_instance and instances > 0
        self.with_instance = config.instance and instances > 0
        if not (config.scene or self.with_scene_instance or self.with_instance):
            raise UsageError(
                f"No loss is left: scene={config.scene}, scene_instance={config.scene_instance}, instance={config.instance}"
                f" with {instances} instances an image. Switch one on (the instance terms need instances)."
            )
        # Only if it is used: distributed training waits for the gradient of every parameter.
        self.aggregate = nn.Linear(instances * config.width, config.width) if self.with_scene_instance else None
        if self.aggregate is not None and config.init == "kaiming":
            initialise_kaiming(self.aggregate)

    @classmethod
    def plan(cls, config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
        return UniVIPPlan(views, augment)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scenes = batch["scenes"]
        with torch.no_grad():
            targets = self.encode(self.target, scenes)
        projections_2BD = self.encode(self.online, scenes)
        predictions = self.predict(projections_2BD)
        scene = scene_loss(*predictions, *targets) if self.config.scene else None
        scene_instance = discrimination = None
        if self.with_scene_instance or self.with_instance:
            o_BKD = self._of_instances(self.online, batch["instances"], predicted=True)
            if self.aggregate is not None:
                aggregate_BD = self.aggregate(o_BKD.flatten(1))  # Eq. 4
                scene_instance = scene_instance_loss(aggregate_BD, *targets)
            if self.with_instance:
                with torch.no_grad():
                    t_BKD = self._of_instances(self.target, batch.get("instances_again", batch["instances"]))
                discrimination = instance_loss(
                    o_BKD,
                    t_BKD,
                    *predictions,
                    *targets,
                    epsilon=self.config.epsilon,
                    iterations=self.config.iterations,
                    mass=self.mass,
                    through_plan=self.config.through_plan,
                )
        losses = losses_by_term(scene, scene_instance, discrimination, self.config.loss_scale)
        return losses | {"feature_std": feature_std(projections_2BD)}

    @torch.no_grad()
    def transport(self, batch: Mapping[str, Tensor]) -> Transport:
        """Return the transport plan that `forward` weighs instances with, and its ingredients, for inspection."""
        targets = self.encode(self.target, batch["scenes"])
        predictions = self.predict(self.encode(self.online, batch["scenes"]))
        o_BKD = self._of_instances(self.online, batch["instances"], predicted=True)
        t_BKD = self._of_instances(self.target, batch.get("instances_again", batch["instances"]))
        cosines_BMN = instance_cosines(o_BKD, t_BKD)
        b_BM, a_BN = supply(o_BKD, *targets), demand(t_BKD, *predictions)
        c = self.config
        plan_BMN = sinkhorn(transport_cost(cosines_BMN), b_BM, a_BN, c.epsilon, c.iterations, mass=self.mass)
        return Transport(plan_BMN, cosines_BMN, b_BM, a_BN)

    def _of_instances(
        self, encoder: nn.Module, crops: Float[Tensor, "B K 3 I I"], *, predicted: bool = False
    ) -> Float[Tensor, "B K D"]:
        if crops.shape[1] != self.instances:
            raise ValueError(f"the method was built for {self.instances} instances an image, the batch has {crops.shape[1]}")
        vectors: Tensor = encoder(crops.flatten(0, 1))
        if predicted:
            vectors = self.predictor(vectors)
        return vectors.reshape(-1, self.instances, vectors.shape[-1])
