"""Networks that stand beside a run in a table: random weights, a library's supervised ones, and files that others published."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError, UsageError
from univip_stream.methods import UniVIPConfig
from univip_stream.networks import Backbone, build_backbone
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.initial import first_weights, tensors_in
from univip_stream.pretrain.load import load_backbone
from univip_stream.suggest import did_you_mean
from univip_stream.views import ViewConfig

KINDS = ("torchvision", "timm", "random")
"""What may stand before the colon of a reference."""
GRAMMAR = (
    "torchvision:resnet50 (its first weights, IMAGENET1K_V1; @NAME for others), timm:NETWORK, random:NETWORK (@SEED for another "
    "than 0), torchvision:NETWORK=FILE or timm:NETWORK=FILE, or a file of weights"
)
"""The references that can be named, in words."""

_RESNETS: dict[tuple[tuple[int, ...], int, int, bool], str] = {
    ((2, 2, 2, 2), 64, 64, False): "resnet18",
    ((3, 4, 6, 3), 64, 64, False): "resnet34",
    ((3, 4, 6, 3), 64, 64, True): "resnet50",
    ((3, 4, 23, 3), 64, 64, True): "resnet101",
    ((3, 8, 36, 3), 64, 64, True): "resnet152",
    ((3, 4, 6, 3), 128, 4, True): "resnext50_32x4d",
    ((3, 4, 6, 3), 128, 128, True): "wide_resnet50_2",
    ((3, 4, 23, 3), 128, 128, True): "wide_resnet101_2",
}
"""torchvision's ResNets by their blocks a stage, the first block's two widths, and whether a block has three convolutions."""


def judged_backbone(origin: str | Path, *, untrained: bool = False) -> tuple[Backbone, PretrainConfig]:
    """Load a network to judge: a run's, or a reference, in evaluation mode on the CPU.

    Args:
        origin: a run folder, checkpoint or backbone.safetensors of ours (see `load_backbone`); `torchvision:`, `timm:` or
            `random:` with a network; or a file of a ResNet's weights with torchvision's names, as others publish them.
        untrained: give the network random weights instead.

    Returns:
        The backbone, B x 3 x S x S normalised images -> B x D pooled features; and a configuration that says which network
        it is, its mean and std (timm's own for timm's weights, else ImageNet's) and the side of its images.

    Raises:
        UsageError: no such library or network.
        InputError: nothing is there, weights cannot be had or are of another network.

    """
    kind, colon, rest = str(origin).partition(":")
    path = Path(origin)
    if colon and kind in KINDS and not path.exists():
        return _reference(kind, rest, untrained=untrained)
    if colon and re.fullmatch(r"[a-z]+", kind) and not path.exists():
        guess = did_you_mean(kind, KINDS) or ";"
        raise UsageError(f"there is no library {kind!r}{guess} expected a run, or {GRAMMAR}")
    if path.is_file() and (weights := _foreign_weights(path)) is not None:
        network = _network_of(weights)
        if network is None:
            first = next(iter(weights), "none")
            raise InputError(
                f"{path} holds weights, and does not say of which network: its first is {first!r}, and they are no ResNet's by "
                f"torchvision's names; say it: --subject timm:NETWORK={path} or torchvision:NETWORK={path}"
            )
        return _from_file("torchvision", network, str(path), untrained=untrained)
    return load_backbone(path, untrained=untrained)


def _reference(kind: str, rest: str, *, untrained: bool) -> tuple[Backbone, PretrainConfig]:
    network, equals, file = rest.partition("=")
    network, at, variant = network.partition("@")
    if not network or (equals and not file) or (at and not variant):
        raise UsageError(f"{kind}:{rest} is not understood; expected {GRAMMAR}")
    if kind == "random":
        if equals or not re.fullmatch(r"[0-9]{0,18}", variant):  # torch takes seeds of up to 64 bits
            raise UsageError(
                f"random:{rest} is not understood; expected random:NETWORK, or random:NETWORK@SEED, a number of up to 18 digits"
            )
        return _built(network, seed=int(variant or 0))
    if equals:
        return _from_file(kind, network, file, untrained=untrained)
    if untrained:
        return _built(network if kind == "torchvision" else f"timm/{network}")
    return _torchvision(network, variant) if kind == "torchvision" else _timm(network, variant)


def _built(name: str, *, seed: int = 0) -> tuple[Backbone, PretrainConfig]:
    torch.manual_seed(seed)
    return build_backbone(name).eval(), PretrainConfig(method=UniVIPConfig(backbone=name), seed=seed)


def _torchvision(network: str, variant: str) -> tuple[Backbone, PretrainConfig]:
    import torchvision.models as zoo

    if network not in zoo.list_models(module=zoo) or not re.match(r"(wide_)?res", network):
        resnets = [name for name in zoo.list_models(module=zoo) if re.match(r"(wide_)?res", name)]
        guess = did_you_mean(network, resnets) or ";"
        raise UsageError(f"torchvision has no ResNet {network!r}{guess} it has {', '.join(resnets)}")
    kinds: Any = zoo.get_model_weights(network)
    names = [weights.name for weights in kinds]
    if variant and variant not in names:
        raise UsageError(f"torchvision has no weights {variant!r} of {network}; it has {', '.join(names)}")
    # The first ones are the papers' supervised row (76.1 % of ResNet-50); later ones come of a recipe that the papers had not.
    chosen = kinds[variant or names[0]]
    backbone, config = _built(network)
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of urllib, of a disk, of a file that is cut off: whatever torch.hub meets
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"the weights {chosen.name} of torchvision's {network} are not at hand and cannot be fetched ({reason[0]}); where a "
            f"network is, fetch {chosen.url}, and put the file into {torch.hub.get_dir()}/checkpoints here, or name it: "
            f"--subject torchvision:{network}=FILE"
        ) from error
    backbone.trunk.load_state_dict({name: value for name, value in state.items() if not name.startswith("fc.")})
    return backbone, config


def _timm(network: str, variant: str) -> tuple[Backbone, PretrainConfig]:
    if variant:
        raise UsageError(f"timm:{network}@{variant} is not understood: timm's weights are named NETWORK.TAG, without @")
    instead = f"give a file that has them: --subject timm:{network}=FILE"
    backbone = build_backbone(f"timm/{network}", pretrained=True, instead=instead).eval()
    told: Any = getattr(backbone.trunk, "pretrained_cfg", {})
    augment = AugmentConfig(
        mean=tuple(told.get("mean", AugmentConfig().mean)), std=tuple(told.get("std", AugmentConfig().std))
    )
    views = ViewConfig(scene_size=int(told.get("input_size", (3, 224, 224))[-1]))
    return backbone, PretrainConfig(method=UniVIPConfig(backbone=f"timm/{network}"), augment=augment, views=views)


def _from_file(kind: str, network: str, file: str, *, untrained: bool) -> tuple[Backbone, PretrainConfig]:
    name = network if kind == "torchvision" else f"timm/{network}"
    backbone, config = _built(name)
    if untrained:
        return backbone, config
    found = first_weights(file, backbone, name, option="--subject")
    lacking = [*found.missing, *found.misshapen]
    if lacking:
        raise InputError(
            f"--subject {file} lacks {len(lacking)} tensors of {name}, such as {lacking[0]}; expected all of them, because the "
            "rest would be judged at random"
        )
    backbone.trunk.load_state_dict(found.weights)
    return backbone, config


def _foreign_weights(path: Path) -> Mapping[str, Tensor] | None:
    """Read the tensors of a file that others wrote; None for ours, and for what cannot be read: `load_backbone` says why."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                told = file.metadata() or {}
                return None if "backbone" in told else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        return None
    if isinstance(loaded, Mapping) and {"method", "config"} <= loaded.keys():
        return None
    return tensors_in(loaded) or None


def _network_of(weights: Mapping[str, Tensor]) -> str | None:
    """Name torchvision's ResNet that has these weights, by their names below any prefix, and their shapes."""
    first = "layer1.0.conv1.weight"
    beginning = next((name.removesuffix(first) for name in weights if name.endswith(first)), None)
    if beginning is None or f"{beginning}layer1.0.conv2.weight" not in weights:
        return None
    blocks = tuple(
        len({name.split(".")[0] for name in (key.removeprefix(f"{beginning}layer{stage}.") for key in weights
             if key.startswith(f"{beginning}layer{stage}."))})
        for stage in range(1, 5)
    )  # fmt: skip
    widths = len(weights[f"{beginning}{first}"]), weights[f"{beginning}layer1.0.conv2.weight"].shape[1]
    return _RESNETS.get((blocks, *widths, f"{beginning}layer1.0.conv3.weight" in weights))
