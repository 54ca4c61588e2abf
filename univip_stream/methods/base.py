"""What every method shares: its settings, the online and the target network, and the form of a step.

Letters: A augmentations of an instance, B batch, K instances an image, V views, S and I side of scene and instance, D width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from univip_stream.errors import UsageError
from univip_stream.networks import (
    Backbone,
    build_backbone,
    frozen_copy,
    per_view_batchnorm,
    projector,
    update_ema,
    views_in_batch,
)
from univip_stream.shapes import Float


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings of a method; the defaults are the paper's, or `docs/method.md`'s where the paper is silent."""

    name: str = "univip"
    """A name of `METHODS`: "univip" or "byol"."""
    backbone: str = "resnet50"
    """A torchvision ResNet or any timm model."""
    pretrained: bool = False
    """Start from the library's weights instead of random ones."""
    small_stem: bool = False
    """A 3 x 3 stride-1 first convolution without max-pooling, for small images; ResNets only."""
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor."""
    width: int = 256
    """Width of projections and predictions."""
    scene: bool = True
    """The scene-scene term, Eq. 3."""
    scene_instance: bool = True
    """The scene-instance term, Eq. 6; UniVIP only."""
    instance: bool = True
    """The instance-instance term, Eq. 11; UniVIP only."""
    epsilon: float = 0.1
    """Entropic regularisation of the transport, in units of cost."""
    iterations: int = 50
    """Sinkhorn iterations."""
    mass: float = 1.0
    """Sum of a transport plan, and so the weight of Eq. 11; K counts every instance once."""
    joint_views: bool = False
    """Both scene views as one forward, batch statistics still kept per view: fewer and larger kernels, but every batch
    normalisation copies its output once more. False runs a forward for each view."""

    def __post_init__(self) -> None:
        for name in ("hidden", "width", "iterations"):
            if getattr(self, name) < 1:
                raise UsageError(f"method.{name} is {getattr(self, name)}; expected at least 1")
        for name in ("epsilon", "mass"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"method.{name} is {getattr(self, name)}; expected more than 0")


class Encoder(nn.Module):
    """Backbone and projector: images (B, 3, H, W) to projections (B, D)."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.backbone: Backbone = build_backbone(config.backbone, pretrained=config.pretrained, small_stem=config.small_stem)
        self.projector = projector(self.backbone.width, config.hidden, config.width)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        projection: Tensor = self.projector(self.backbone(images))
        return projection


class Method(nn.Module, ABC):
    """An online network with a predictor, and a target network that follows it by moving average (Eq. 1).

    The target starts as a copy of the online network. It stays in train mode and normalises with its own batch
    statistics; no gradient reaches it. Call `update_target` after the optimizer's step.
    """

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.config = config
        self.online = Encoder(config)
        self.predictor = projector(config.width, config.hidden, config.width)
        per_view_batchnorm(self)
        self.target = frozen_copy(self.online)

    @property
    def backbone(self) -> Backbone:
        """The online backbone: what pre-training is for."""
        return self.online.backbone

    def online_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the optimizer trains: all but the target's."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(target, online) modules of the moving average."""
        return [(self.target, self.online)]

    def update_target(self, momentum: float) -> None:
        """Eq. 1: move the target's parameters towards the online network's."""
        for target, online in self.target_pairs():
            update_ema(target, online, momentum)

    @abstractmethod
    def forward(
        self, scenes: Float[Tensor, "2 B 3 S S"], instances: Float[Tensor, "A B K 3 I I"] | None = None
    ) -> dict[str, Tensor]:
        """Return the losses of one batch, 0-dimensional: the metrics of a step.

        `loss` carries the gradient and is the sum of `loss_scene`, `loss_scene_instance` and `loss_instance`, of which a
        term that is off is zero. `feature_std`, detached, tells collapse: about 1 for features spread over the sphere,
        0 where all images have the same.
        """

    def encode(self, encoder: nn.Module, views: Float[Tensor, "V B 3 S S"]) -> Float[Tensor, "V B D"]:
        """Run every view through a network, batch statistics kept per view."""
        return self._per_view(encoder, views)

    def predict(self, projections: Float[Tensor, "V B D"]) -> Float[Tensor, "V B D"]:
        """Run every view's projections through the predictor, batch statistics kept per view."""
        return self._per_view(self.predictor, projections)

    def _per_view(self, module: nn.Module, views: Tensor) -> Tensor:
        if not self.config.joint_views:
            return torch.stack([module(view) for view in views])
        with views_in_batch(module, len(views)):
            joint: Tensor = module(views.flatten(0, 1))
        return joint.reshape(*views.shape[:2], -1)


def losses_by_term(
    scene: Float[Tensor, ""] | None, scene_instance: Float[Tensor, ""] | None, instance: Float[Tensor, ""] | None
) -> dict[str, Tensor]:
    """Eq. 12: the sum with equal weights, and its terms; None for a term that is off."""
    terms = {"loss_scene": scene, "loss_scene_instance": scene_instance, "loss_instance": instance}
    loss = torch.stack([term for term in terms.values() if term is not None]).sum()
    off = torch.zeros_like(loss)
    return {"loss": loss} | {name: off if term is None else term for name, term in terms.items()}


@torch.no_grad()
def feature_std(projections: Float[Tensor, "V B D"]) -> Float[Tensor, ""]:
    """Standard deviation of the l2-normalised features, mean over dimensions, times sqrt(D): 1 spread, 0 collapsed."""
    unit_ND = F.normalize(projections.detach().float().flatten(0, 1), dim=-1)
    spread: Tensor = unit_ND.std(0, correction=0).mean() * unit_ND.shape[-1] ** 0.5
    return spread
