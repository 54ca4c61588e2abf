"""Methods of a name with what they look at, and made-up batches of that: for tests that go through all methods."""

import torch
from timm.models.convnext import ConvNeXtStage
from timm.models.vision_transformer import VisionTransformer

from univip_stream.augment import AugmentConfig
from univip_stream.methods import METHODS, Method, build_method, build_plan
from univip_stream.plan import Plan
from univip_stream.views import ViewConfig


def planned(name: str, views: ViewConfig, **settings: object) -> tuple[Method, Plan]:
    """A method with its plan. Of the settings it takes those that it has."""
    kind = METHODS[name].Settings
    own = {key: value for key, value in settings.items() if hasattr(kind, key) or key in kind.__dataclass_fields__}
    config = kind(name=name, **own)
    plan = build_plan(config, views, AugmentConfig())
    return build_method(config, plan), plan


def shallow(method: Method) -> Method:
    """The method with one block where its networks repeat alike ones, which a test of operators would only go through again."""
    for module in method.modules():
        if isinstance(module, VisionTransformer | ConvNeXtStage):
            module.blocks = module.blocks[:1]
    return method


def inputs_of(plan: Plan, images: int, seed: int) -> dict[str, torch.Tensor]:
    """What `forward` takes: pictures of normal noise, and boxes of the middle of every view."""
    gen = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(*cut.layout(images), 3, cut.size, cut.size, generator=gen) for name, cut in plan.cuts.items()}
    if "boxes" in plan.facts:
        inputs["boxes"] = torch.tensor([4.0, 2.0, 28.0, 30.0]).repeat(images, *plan.facts["boxes"][:-1], 1)
    return inputs
