"""What explains a score: each term's gradient at the backbone, what the transport plan matches, how like instances are.

Letters: B images, K instances an image.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from univip_stream.methods import build_plan
from univip_stream.methods.base import UNIVIP_TERMS
from univip_stream.methods.univip import UniVIP
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.pretrain.load import load_method
from univip_stream.stream import Stream

BATCHES = 4
_SEED = 10_000
"""Of the views that are looked at: other ones than were trained on."""


def explain(run: Path, shards: Path) -> dict[str, float]:
    """Means over a few batches of 64 images, in float32, of the newest checkpoint.

    Returns:
        gradient_TERM: norm of the term's gradient at the backbone, as it stands in the loss (mass included). For a method with
        instances also own_mass, the share of the plan on an instance's own match (1 / K is chance), own_cosine and
        other_cosine, of an instance to itself and to the others of its image. Empty for other methods than univip and byol.

    """
    method, config = load_method(run)
    if config.method.name not in ("univip", "byol"):
        return {}
    stream = Stream(
        str(shards), build_plan(config.method, config.views, config.augment),
        replace(config.stream, batch_size=64, seed=_SEED, workers=0),
    )  # fmt: skip
    found: dict[str, list[float]] = {}
    for batch in itertools.islice(stream, BATCHES):
        inputs = inputs_on(torch.device("cpu"), batch, config.augment)
        losses = method(inputs)
        parameters = list(method.backbone.parameters())
        for term in UNIVIP_TERMS:
            if losses[term].requires_grad:
                gradients = torch.autograd.grad(
                    losses[term] * config.method.loss_scale, parameters, retain_graph=True, allow_unused=True
                )
                norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
                found.setdefault(f"gradient_{term.removeprefix('loss_')}", []).append(float(norm))
        if isinstance(method, UniVIP) and "instances" in inputs:
            plan, cosines, *_ = method.transport(inputs)
            K = plan.shape[-1]
            found.setdefault("own_mass", []).append(float(_own(plan).sum(-1).mean() / method.mass))
            found.setdefault("own_cosine", []).append(float(_own(cosines).mean()))
            found.setdefault("other_cosine", []).append(
                float((cosines.sum((-2, -1)) - _own(cosines).sum(-1)).mean()) / (K * (K - 1))
            )
    return {name: sum(values) / len(values) for name, values in found.items()}


def _own(pairs: Tensor) -> Tensor:
    """The diagonal: an instance with itself."""
    return pairs.diagonal(dim1=-2, dim2=-1)
