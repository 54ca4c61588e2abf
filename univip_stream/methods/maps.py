"""Feature maps of a backbone, and the features of boxes on them.

Letters: B images, K boxes an image, C channels, H and W sides of images, h and w sides of maps, P side of a pooled box, N boxes.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from univip_stream.errors import UsageError
from univip_stream.networks import Backbone
from univip_stream.shapes import Float

STAGES = ("layer1", "layer2", "layer3", "layer4")


def check_maps(backbone: Backbone, method: str, name: str) -> None:
    """Raise UsageError unless the backbone is convolutional and its last map has as many channels as its features.

    `method` and `name`, of the backbone, are for the message. It runs one small image, which changes no state.
    """
    training = backbone.training
    with torch.no_grad():
        try:
            found = tuple(last_map(backbone.eval(), torch.zeros(1, 3, 64, 64)).shape)
        except Exception as error:
            raise UsageError(
                f"{method} needs feature maps, and {name} gives none ({type(error).__name__}: {error})"
            ) from error
        finally:
            backbone.train(training)
    if len(found) != 4 or found[1] != backbone.width:
        raise UsageError(
            f"{method} needs the feature maps of a convolutional backbone, {backbone.width} channels first, such as resnet50's; "
            f"{name} gives {found} for an image of 64 px"
        )


def check_stages(backbone: Backbone, method: str, name: str) -> None:
    """Raise UsageError unless the backbone has a ResNet's four stages, `layer1` to `layer4`."""
    if not all(hasattr(backbone.trunk, stage) for stage in ("conv1", "bn1", "maxpool", *STAGES)):
        raise UsageError(f"{method} needs a ResNet, whose last stage it runs on each box; {name} is none: choose resnet50")


def last_map(backbone: Backbone, images: Float[Tensor, "B 3 H W"]) -> Tensor:
    """Return the map (B, C, h, w) whose mean is the backbone's feature, for ResNets of torchvision and convolutional ones of timm.

    Other networks return other shapes, which `check_maps` refuses when the method is built.
    """
    if hasattr(backbone.trunk, "forward_features"):
        return cast(Tensor, cast(Any, backbone.trunk).forward_features(images))
    return last_stage(backbone, early_map(backbone, images))


def early_map(backbone: Backbone, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
    """Return C4, the map of a ResNet's third stage, with a sixteenth of the image's side."""
    trunk = backbone.trunk
    x = images
    # The activation is called `relu` in torchvision, `act1` in timm.
    for layer in ("conv1", "bn1", "relu" if hasattr(trunk, "relu") else "act1", "maxpool"):
        x = getattr(trunk, layer)(x)
    for stage in STAGES[:3]:
        x = getattr(trunk, stage)(x)
    return x


def last_stage(backbone: Backbone, maps: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C2 h2 w2"]:
    """Run a ResNet's fourth stage, from C4 to C5."""
    return cast(Tensor, cast(Any, backbone.trunk).layer4(maps))


def pool_boxes(
    maps: Float[Tensor, "B C h w"], boxes: Float[Tensor, "B K 4"], side: int, size: int, *, aligned: bool
) -> Float[Tensor, "BK C P P"]:
    """Pool every box with RoIAlign (He et al. 2017), in float32 or better; box k of image b is row b K + k.

    Args:
        maps: maps of whole images.
        boxes: x1, y1, x2, y2 in pixels of the images.
        side: side of the images, pixels.
        size: P.
        aligned: whether to shift boxes by half a pixel of the map, so that they fit the centres of its pixels.

    """
    count, K = boxes.shape[:2]
    image_N1 = torch.arange(count, device=boxes.device).repeat_interleave(K).unsqueeze(1)
    # In float32, as torchvision's own kernels have no bf16 on CPUs.
    full = torch.promote_types(maps.dtype, torch.float32)
    rows_N5 = torch.cat([image_N1.to(full), boxes.reshape(-1, 4).to(full)], dim=1)
    scale = maps.shape[-1] / side
    with torch.autocast(maps.device.type, enabled=False):
        pooled = roi_align(maps.to(full), rows_N5, size, spatial_scale=scale, sampling_ratio=-1, aligned=aligned)
    if maps.device.type != "cpu" and maps.is_contiguous(memory_format=torch.channels_last):
        # RoIAlign's own result never is, and each convolution that gets it would copy it for itself.
        pooled = pooled.contiguous(memory_format=torch.channels_last)
    return cast(Tensor, pooled)


def mean_map(maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C"]:
    """Return the mean of each map over its places (global average pooling)."""
    return maps.mean((2, 3))


def map_head(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Build MoCo v2's head for every place of a map: two 1 x 1 convolutions with ReLU between them."""
    return nn.Sequential(nn.Conv2d(in_width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, out_width, 1))
