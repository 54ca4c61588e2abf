"""Rank the candidates of shards by the features of a run's own backbone: what is written of it for workers, and what these do."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from univip_stream.errors import InputError
from univip_stream.pretrain.load import BACKBONE, as_safetensors, backbone_facts, load_backbone
from univip_stream.pretrain.provenance import PROVENANCE, digest_of, read_provenance, weights_sha256
from univip_stream.pretrain.reference import judged_backbone
from univip_stream.probe.objectness import SHARE, SIDE, VERSION, check_backbone, image_map, objectness, order_by

MADE_WITH = ("torch", "torchvision", "timm")
"""Packages that an order may depend on."""


def ranking_file(run: str | Path, share: float = SHARE) -> tuple[dict[str, Any], bytes]:
    """Return what a set says of the backbone that ranked it, and the file that workers load it from.

    Args:
        run: as in `judged_backbone`: a run folder (its newest checkpoint), a checkpoint, a backbone.safetensors, or a reference.
        share: how much the features say of the new order, 0 to 1; the order of before says the rest.

    Raises:
        InputError, UsageError: there is no such run, it has no weights yet or damaged ones, or features too coarse for boxes.

    """
    backbone, config = judged_backbone(run)
    check_backbone(backbone, str(run))
    if not all(value.isfinite().all() for value in backbone.state_dict().values()):
        raise InputError(f"{run}: the backbone's weights are not finite: they are damaged, or training diverged")
    settings = backbone_facts(config)
    facts = {
        # Its name and no path: the same run in another place gives the same set.
        "run": Path(str(run)).name,
        "weights_sha256": weights_sha256(backbone),
        **({} if (chain := _chain(Path(run))) is None else {"provenance_sha256": chain}),
        "backbone": settings["backbone"],
        "small_stem": settings["small_stem"] == "True",
        "share": share,
        "side": SIDE,
        "version": VERSION,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.trunk.state_dict().items()}
    return facts, as_safetensors(weights, settings | {"share": repr(share)})


def ranker_of(data: bytes) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Return the function that ranks an image's candidates: (uint8 height x width x 3, int32 N x 4) -> int64 N, their new order.

    Args:
        data: file of `ranking_file`.

    """
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as place:
        path = Path(place, BACKBONE)
        path.write_bytes(data)
        backbone, config = load_backbone(path)
        with safe_open(path, "pt") as file:
            share = float(file.metadata()["share"])

    def ranker(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        threads = torch.get_num_threads()
        # With another number of threads sums may be rounded otherwise, and workers have one each.
        torch.set_num_threads(1)
        try:
            found = image_map(backbone, pixels, config.augment, "the backbone")
            return order_by(objectness(found, boxes, pixels.shape[1], pixels.shape[0]), share)
        finally:
            torch.set_num_threads(threads)

    return ranker


def _chain(run: Path) -> str | None:
    """Return the SHA-256 of a finished run's provenance, which leads on to its images; None if it has none."""
    try:
        found = read_provenance(run / PROVENANCE)
    except InputError:
        return None
    return digest_of(found) if "weights" in found else None
