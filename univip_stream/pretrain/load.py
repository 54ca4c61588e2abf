"""Load what a run saved: its configuration and its backbone."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.checkpoint import Checkpoints, load_checkpoint
from univip_stream.errors import InputError, UsageError, why
from univip_stream.methods import METHODS, Method, UniVIPConfig, build_method, build_plan
from univip_stream.networks import Backbone, build_backbone
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.settings import from_dict
from univip_stream.views import ViewConfig

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
BACKBONE = "backbone.safetensors"


def load_backbone(run: str | Path, *, untrained: bool = False) -> tuple[Backbone, PretrainConfig]:
    """Load the backbone of a run (its newest checkpoint), a checkpoint or a backbone.safetensors, in evaluation mode on the CPU.

    Args:
        run: folder or file.
        untrained: give the weights the run began with instead: the floor to compare with.

    Returns:
        The backbone, B x 3 x S x S images normalised by `augment.mean` and `augment.std` -> B x D pooled features; and the
        run's configuration, of which a backbone.safetensors knows the network, these two and the scenes' side.

    Raises:
        InputError: no run there, no checkpoint yet, or a damaged one.

    """
    if Path(run).suffix == ".safetensors" and Path(run).is_file():
        return _exported(Path(run), untrained=untrained)
    method, config = load_method(run, untrained=untrained)
    return method.backbone.eval(), config


def backbone_facts(config: PretrainConfig) -> dict[str, str]:
    """Return what a backbone's file records and `load_backbone` reads: its network, its pixels' mean and std, its scenes' side."""
    return {
        "backbone": config.method.backbone,
        "small_stem": str(config.method.small_stem),
        "mean": json.dumps(config.augment.mean),
        "std": json.dumps(config.augment.std),
        "scene_size": str(config.views.scene_size),
    }


def as_safetensors(weights: dict[str, Tensor], facts: dict[str, str]) -> bytes:
    """Return a file of safetensors: the same weights and facts give the same bytes, which the library's order of facts does not."""
    from safetensors.torch import save

    data = save(weights, metadata={"format": "pt", **facts})
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight, as the format demands
    return len(text).to_bytes(8, "little") + text + data[end:]


def told_now(values: dict[str, Any]) -> dict[str, Any]:
    """Rewrite a stored configuration in today's form: without settings of other methods, which every run once had."""
    method = values.get("method")
    if not isinstance(method, dict) or method.get("name") not in METHODS:
        return values
    own = {member.name for member in fields(METHODS[method["name"]].Settings)}
    others = {member.name for kind in METHODS.values() for member in fields(kind.Settings)} - own
    views = {name: value for name, value in values.get("views", {}).items() if name != "instance_crops"}
    return values | {"method": {name: value for name, value in method.items() if name not in others}, "views": views}


def load_method(run: str | Path, *, untrained: bool = False) -> tuple[Method, PretrainConfig]:
    """Load the whole method of a run folder (its newest checkpoint) or a checkpoint: networks, heads, target; in training mode.

    Raises:
        InputError: as `load_backbone`.

    """
    state = _state(Path(run))
    try:
        config = from_dict(PretrainConfig, told_now(json.loads(state["config"])))
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{run}: the checkpoint's configuration cannot be read ({why(error)})") from error
    torch.manual_seed(config.seed)
    # Nothing is downloaded: the weights are in the checkpoint. What a pretrained network began with is not, so `untrained` is
    # the same network with random weights.
    plan = build_plan(config.method, config.views, config.augment)
    method = build_method(replace(config.method, pretrained=False), plan)
    if not untrained:
        try:
            method.load_state_dict(state["method"])
        except (RuntimeError, TypeError, AttributeError, KeyError) as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(f"{run}: the checkpoint's weights are not those of its configuration: {first}") from error
    return method, config


def _exported(path: Path, *, untrained: bool) -> tuple[Backbone, PretrainConfig]:
    """Load a backbone that lies alone: its file says what it is, but not how it was trained."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {why(error)}") from error
    if "backbone" not in facts:
        raise InputError(f"{path} does not say which network it is; expected a backbone.safetensors that `train` wrote")
    method = UniVIPConfig(backbone=facts["backbone"], small_stem=facts.get("small_stem") == "True")
    config = PretrainConfig(method=method, augment=_pixels(path, facts), views=_views(path, facts))
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.method.backbone, small_stem=config.method.small_stem)
    if not untrained:
        try:
            backbone.trunk.load_state_dict(weights)
        except RuntimeError as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(f"{path}: the weights are not those of {config.method.backbone}: {first}") from error
    return backbone.eval(), config


def _pixels(path: Path, facts: dict[str, str]) -> AugmentConfig:
    """Return the mean and standard deviation that a file names; ImageNet's for a file from before they were written."""
    told = {name: facts[name] for name in ("mean", "std") if name in facts}
    try:
        return from_dict(AugmentConfig, {name: json.loads(text) for name, text in told.items()})
    except (ValueError, UsageError) as error:
        raise InputError(
            f"{path}: its mean and std are {told}; expected three numbers each, such as [0.5, 0.5, 0.5]"
        ) from error


def _views(path: Path, facts: dict[str, str]) -> ViewConfig:
    """Views of the side that a file names, on which it is judged; one of before that was written has the default's."""
    if "scene_size" not in facts:
        return ViewConfig()
    try:
        return ViewConfig(scene_size=int(facts["scene_size"]))
    except (ValueError, UsageError) as error:
        raise InputError(f"{path}: its scene_size is {facts['scene_size']!r:.40}; expected a number of pixels") from error


def _state(run: Path) -> dict[str, Any]:
    if run.is_file():
        return load_checkpoint(run)
    if not run.exists():
        raise InputError(f"{run}: no such run; expected a folder that `univip-stream train --out` made, or a checkpoint")
    state = Checkpoints(run / CHECKPOINTS).load_latest()
    if state is None:
        raise InputError(
            f"{run} has no checkpoint in {CHECKPOINTS}/; expected a folder that `univip-stream train --out` made"
        )
    return state
