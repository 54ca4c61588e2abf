"""The optimizer of a run, from its settings."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from univip_stream.methods import Method
from univip_stream.pretrain.config import OptimConfig


def build_optimizer(method: Method, config: OptimConfig) -> Optimizer:
    """SGD, LARS or AdamW over what the method trains; the target network is not among it."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    named = _named_by_network(method) if config.name == "adamw" else set()
    for parameter in method.online_parameters():
        # Normalisations' scales and all biases are the parameters with one axis.
        spare = config.exclude_norm_and_bias and (parameter.ndim <= 1 or id(parameter) in named)
        (spared if spare else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    if config.name == "lars":
        from timm.optim.lars import Lars

        # timm adapts groups with weight decay, and leaves out the others; a decay of zero is no reason to leave out all.
        groups[0]["always_adapt"] = True
        lars: Optimizer = Lars(groups, lr=config.lr, momentum=config.momentum, trust_coeff=config.trust)  # type: ignore[no-untyped-call]
        return lars
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, config.beta2), fused=True)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)


def _named_by_network(method: Method) -> set[int]:
    """Parameters that timm's networks say are to have no weight decay: positions, class and register tokens."""
    trunk = method.backbone.trunk
    names: set[str] = getattr(trunk, "no_weight_decay", set)()
    return {id(parameter) for name, parameter in trunk.named_parameters() if name in names}


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group the rate of this step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
