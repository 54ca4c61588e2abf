"""Dense features: what a backbone has at every place of an image before it is pooled.

Letters: B images, h and w sides of a map, D width of a feature.
"""

from typing import Any

import torch
from torch import Tensor

from univip_stream.errors import UsageError
from univip_stream.methods.maps import last_map
from univip_stream.networks import Backbone


def dense_map(backbone: Backbone, images: Tensor, name: str) -> Tensor:
    """Run a backbone up to its last map, in whatever form its library keeps it.

    Args:
        backbone: a ResNet, a vision transformer (whose class and register tokens are left out), ConvNeXt, Swin and the like.
        images: float (B, 3, H, W), normalised.
        name: of the backbone, for the message.

    Returns:
        float (B, h, w, D), row by row from the upper left.

    Raises:
        UsageError: the network has no such map, or takes no images of this size.

    """
    trunk: Any = backbone.trunk
    try:
        found = last_map(backbone, images)
    except (AttributeError, AssertionError, RuntimeError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{name} gives no dense features of {images.shape[-2]} x {images.shape[-1]} px ({said})") from error
    if found.ndim == 3:
        found = _of_tokens(trunk, found, images)
    elif found.ndim == 4 and getattr(trunk, "output_fmt", "NCHW") != "NHWC":
        found = found.permute(0, 2, 3, 1)
    if found.ndim != 4:
        raise UsageError(f"{name} has no map of features: its last layers give {tuple(found.shape)}")
    return found


def _of_tokens(trunk: Any, tokens: Tensor, images: Tensor) -> Tensor:
    """The patches of a vision transformer at their places."""
    patches = tokens[:, int(getattr(trunk, "num_prefix_tokens", 0)) :]
    size = tuple(images.shape[-2:])
    embed = trunk.patch_embed
    h, w = embed.dynamic_feat_size(size) if hasattr(embed, "dynamic_feat_size") else embed.grid_size
    return patches.reshape(len(patches), h, w, -1) if h * w == patches.shape[1] else tokens


def principal_colours(map_hwD: Tensor) -> tuple[Tensor, list[float]]:
    """Show a map by its three main directions as red, green and blue.

    Args:
        map_hwD: float (h, w, D), with h * w at least 4.

    Returns:
        float (h, w, 3), 0 to 1, the outermost fiftieths of each direction cut off; and the share of the variance of each.
        A direction's sign, which is arbitrary, is such that its largest component is positive.

    """
    h, w, _ = map_hwD.shape
    rows = map_hwD.flatten(0, 1).double()
    centred = rows - rows.mean(0)
    _, values, directions = torch.linalg.svd(centred, full_matrices=False)
    count = min(3, len(values))
    directions = directions[:count]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    along = centred @ (directions * largest.sign()).T
    low, high = (torch.quantile(along, at, dim=0) for at in (0.02, 0.98))
    shown = torch.zeros(h * w, 3, dtype=torch.double)
    shown[:, :count] = ((along - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    total = float(values.square().sum())
    shares = [float(value) ** 2 / total if total else 0.0 for value in values[:count]]
    return shown.float().reshape(h, w, 3), shares + [0.0] * (3 - count)
