"""Features of all depths of a ResNet, as ORL's linear probe has them: its stem and four stages, each pooled to about 9,000 numbers.

Letters: B images, S side of an image, L layers, C channels, P places of a pooled map, D numbers of all pooled maps together.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from univip_stream.errors import UsageError
from univip_stream.networks import Backbone

LAYERS = ("conv1", "res2", "res3", "res4", "res5")
"""The depths: the stem before its pooling, and the four stages."""
SIDES = (12, 6, 4, 3, 2)
"""Side of each pooled map. A ResNet-50 has 9,216, 9,216, 8,192, 9,216 and 8,192 numbers in them."""
_KERNELS = ((10, 10, 4), (16, 8, 0), (13, 5, 0), (8, 3, 0), (6, 1, 0))
"""Kernel, stride and padding of each average pooling, for images of 224 px (ORL 2ad64f7, `multi_pooling.py`)."""
_STAGES = ("layer1", "layer2", "layer3", "layer4")


def has_stages(backbone: nn.Module) -> bool:
    """Whether a backbone is a ResNet, of torchvision's or timm's form, whose depths can be told apart."""
    trunk = getattr(backbone, "trunk", None)
    return all(hasattr(trunk, name) for name in ("conv1", "bn1", "maxpool", *_STAGES))


class LayerFeatures(nn.Module):
    """The pooled maps of all depths, flat and one after the other: B x 3 x S x S images to B x D.

    For images of 224 px they are pooled as ORL pools them, with overlapping windows; for others, where those windows do not
    fit, to the same sides by adaptive pooling, the other way that its code knows.

    Args:
        backbone: a ResNet.
        size: S.
        what: what the backbone is called, for messages.

    Raises:
        UsageError: it is no ResNet.

    """

    def __init__(self, backbone: Backbone, size: int, what: str) -> None:
        super().__init__()
        if not has_stages(backbone):
            raise UsageError(
                f"protocol orl has a classifier on each of a ResNet's {', '.join(LAYERS)}, and {what} has no such stages; expected "
                "a ResNet, or --protocol orl-last, byol or features, which need only its pooled output"
            )
        self.backbone, self.size = backbone, size
        with torch.no_grad():
            maps = self.maps(torch.zeros(1, 3, size, size, device=next(backbone.parameters()).device))
        self.shapes = [(found.shape[1], found.shape[2] * found.shape[3]) for found in maps]
        """Channels and places of each pooled map."""

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the pooled map of each depth, B x C x side x side."""
        trunk = cast(Any, self.backbone.trunk)
        x = trunk.bn1(trunk.conv1(images))
        x = (trunk.relu if hasattr(trunk, "relu") else trunk.act1)(x)
        found = [self._pooled(x, 0)]
        x = trunk.maxpool(x)
        for at, stage in enumerate(_STAGES, 1):
            x = getattr(trunk, stage)(x)
            found.append(self._pooled(x, at))
        return found

    def _pooled(self, x: Tensor, at: int) -> Tensor:
        usual = 224 >> (1 if at == 0 else at + 1)
        if self.size == 224 and x.shape[-1] == usual:
            return F.avg_pool2d(x, *_KERNELS[at])
        return F.adaptive_avg_pool2d(x, SIDES[at])

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([found.flatten(1) for found in self.maps(images)], dim=1)
