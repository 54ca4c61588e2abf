"""Base classes of methods: settings, networks, and the interface of a step.

Letters: B batch, V views, S side of a view, D width, N vectors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods.scenes import ScenePlan
from univip_stream.networks import (
    Backbone,
    build_backbone,
    frozen_copy,
    initialise_kaiming,
    per_view_batchnorm,
    projector,
    update_ema,
    views_in_batch,
)
from univip_stream.plan import Plan
from univip_stream.schedules import ema_momentum
from univip_stream.shapes import Float
from univip_stream.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Settings that all methods share. A method with more settings adds fields in a subclass, its `Settings`."""

    name: str = "univip"
    """The method: a name of `--method`'s list, or a class of your own as module:Class."""
    backbone: str = "resnet50"
    """The network that is trained: a torchvision ResNet, such as resnet50, or any timm model. Source: ResNet-50 is the
    paper's."""
    pretrained: bool = False
    """Start from the weights that torchvision or timm publish for the backbone (ImageNet's, mostly) instead of random ones.
    They are downloaded once, so the first start needs a network. Source: the paper starts from random weights."""
    small_stem: bool = False
    """Give a ResNet a first convolution of 3 x 3 with stride 1 and no max-pooling, for images of 32 to 96 pixels. Only
    ResNets have it."""
    hidden: int = 4096
    """Width of the hidden layer of projector and predictor, in numbers. Source: BYOL."""
    width: int = 256
    """Width of projections and predictions, in numbers. Source: BYOL."""
    init: Literal["library", "kaiming"] = "library"
    """Initial weights: library takes the libraries' own, kaiming is Kaiming normal, fan-in, in backbone and heads. Source:
    kaiming is ORL's."""
    joint_views: bool = False
    """Run both scene views as one forward pass, batch statistics still kept per view: fewer and larger kernels, but every
    batch normalisation copies its output once more. False runs a pass for each view."""

    def __post_init__(self) -> None:
        self.at_least_one("hidden", "width")
        if self.init not in ("library", "kaiming"):
            raise UsageError(f"method.init is {self.init!r}; expected library or kaiming")

    @staticmethod
    def class_of(values: Mapping[str, Any]) -> type["MethodConfig"]:
        """Return the class of the settings `values`: the `Settings` of the method that they name.

        Raises:
            UsageError: there is no such method.

        """
        from univip_stream.methods.registry import method_class  # it imports the methods, which import this module

        return method_class(values["name"]).Settings if isinstance(values.get("name"), str) else MethodConfig

    def at_least_one(self, *names: str) -> None:
        """Raise UsageError if one of these settings is less than 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise UsageError(f"method.{name} is {getattr(self, name)}; expected at least 1")

    def above_zero(self, *names: str) -> None:
        """Raise UsageError if one of these settings is not above 0, or is infinite."""
        for name in names:
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"method.{name} is {getattr(self, name)}; expected more than 0")


class Encoder(nn.Module):
    """Backbone and projector: images (B, 3, H, W) to projections (B, D).

    Args:
        config: settings with the name of the backbone and the widths.
        head: builds the projector from the backbone's width; None is BYOL's.

    """

    def __init__(self, config: MethodConfig, head: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.backbone: Backbone = build_backbone(config.backbone, pretrained=config.pretrained, small_stem=config.small_stem)
        width = self.backbone.width
        self.projector = head(width) if head is not None else projector(width, config.hidden, config.width)
        if config.init == "kaiming":
            initialise_kaiming(self if not config.pretrained else self.projector)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        projection: Tensor = self.projector(self.backbone(images))
        return projection


class Method(nn.Module, ABC):
    """A method: its plan, settings, networks and loss. It is built with (config, plan).

    The network that is exported must be `online.backbone`, or the property `backbone` must return it. All state (queues,
    counters) is in buffers, so that it is saved, restored and moved with the weights. `docs/how-to/custom-method.md` shows how
    to add one.
    """

    Settings: ClassVar[type[MethodConfig]] = MethodConfig
    """Class of its settings, `--set method...`."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """The paper's views, augmentations and heads, as dotted settings: with `--method NAME` they override the recipe."""
    terms: ClassVar[tuple[str, ...]] = ()
    """Names of the losses that `forward` returns beside `loss`, for the metrics: `loss_...`."""

    online: Encoder

    def __init__(self, config: MethodConfig, plan: Plan) -> None:
        super().__init__()
        self.config = config

    @classmethod
    def plan(cls, config: MethodConfig, views: ViewConfig, augment: AugmentConfig) -> Plan:
        """Return the method's plan: by default the two scene views alone.

        Raises:
            UsageError: the method cannot work with these settings.

        """
        return ScenePlan(views, augment)

    @property
    def backbone(self) -> Backbone:
        """The online backbone, the result of pre-training."""
        return self.online.backbone

    def online_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters that the optimizer trains: all but a target's."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return the (target, online) modules of the moving average; none for a method without a target."""
        return []

    def target_momentum(self, step: int, total: int, base: float) -> float:
        """Return the momentum of the moving average after a step: by default BYOL's cosine from `base`, the setting `ema`, to 1."""
        return ema_momentum(step, total, base)

    def update_target(self, momentum: float) -> None:
        """Move the target's parameters towards the online network's (Eq. 1). Called after the optimizer's step."""
        for target, online in self.target_pairs():
            update_ema(target, online, momentum)

    @abstractmethod
    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the losses of one batch, 0-dimensional: the metrics of a step.

        `loss` carries the gradient; `terms` are its summands. `feature_std`, detached, shows collapse: about 1 for features
        spread over the sphere, 0 if all images have the same.

        Args:
            batch: the plan's cuts, augmented and normalised, float32 (N, B, 3, S, S) or, if a cut's pictures are together,
                (B, N, 3, S, S); and its facts, float32 (B, ...); each under its name.

        """

    def encode(self, encoder: nn.Module, views: Float[Tensor, "V B 3 S S"]) -> Float[Tensor, "V B D"]:
        """Run every view through a network, batch statistics kept per view."""
        return self._per_view(encoder, views)

    def encode_together(self, encoder: nn.Module, views: Float[Tensor, "V B 3 S S"]) -> Float[Tensor, "V B D"]:
        """Run all views through a network as one batch, whose statistics they share."""
        together: Tensor = encoder(views.flatten(0, 1))
        return together.reshape(*views.shape[:2], -1)

    def _per_view(self, module: nn.Module, views: Tensor) -> Tensor:
        if not self.config.joint_views:
            return torch.stack([module(view) for view in views])
        with views_in_batch(module, len(views)):
            joint: Tensor = module(views.flatten(0, 1))
        return joint.reshape(*views.shape[:2], -1)


class Bootstrap(Method):
    """A method with an online network, a predictor, and a target network that follows by moving average (Eq. 1).

    The target starts as a copy of the online network. It stays in train mode and normalises with its own batch
    statistics; no gradient reaches it.
    """

    def __init__(self, config: MethodConfig, plan: Plan) -> None:
        super().__init__(config, plan)
        self.online = Encoder(config)
        self.predictor = projector(config.width, config.hidden, config.width)
        if config.init == "kaiming":
            initialise_kaiming(self.predictor)
        per_view_batchnorm(self)
        self.target = frozen_copy(self.online)

    def target_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.target, self.online)]

    def predict(self, projections: Float[Tensor, "V B D"]) -> Float[Tensor, "V B D"]:
        """Run every view's projections through the predictor, batch statistics kept per view."""
        return self._per_view(self.predictor, projections)


UNIVIP_TERMS = ("loss_scene", "loss_scene_instance", "loss_instance")
"""Terms of Eq. 12, in its order; byol's metrics have the same columns."""


def losses_by_term(
    scene: Float[Tensor, ""] | None,
    scene_instance: Float[Tensor, ""] | None,
    instance: Float[Tensor, ""] | None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Return the sum of Eq. 12 with equal weights, times `scale`, and its terms, unscaled; None stands for a term that is off."""
    terms = dict(zip(UNIVIP_TERMS, (scene, scene_instance, instance), strict=True))
    loss = torch.stack([term for term in terms.values() if term is not None]).sum() * scale
    off = torch.zeros_like(loss)
    return {"loss": loss} | {name: off if term is None else term for name, term in terms.items()}


@torch.no_grad()
def feature_std(projections: Float[Tensor, "V N D"]) -> Float[Tensor, ""]:
    """Return the standard deviation of the l2-normalised features, mean over dimensions, times sqrt(D): 1 spread, 0 collapsed."""
    unit_ND = F.normalize(projections.detach().float().flatten(0, 1), dim=-1)
    spread: Tensor = unit_ND.std(0, correction=0).mean() * unit_ND.shape[-1] ** 0.5
    return spread
