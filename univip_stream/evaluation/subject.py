"""The network that is judged: its backbone, the origin of its weights, and everything needed to reproduce a result."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision

from univip_stream import __version__
from univip_stream.augment import AugmentConfig
from univip_stream.networks import Backbone
from univip_stream.pretrain import PretrainConfig
from univip_stream.pretrain.provenance import weights_sha256
from univip_stream.pretrain.reference import judged_backbone
from univip_stream.probe.labelled import ImageSource


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network that is judged."""

    run: str
    """Run folder, checkpoint, file or reference such as random:resnet50, as the user named it."""
    backbone: Backbone
    """B x 3 x S x S images, normalised as its training did (`config.augment`) -> B x D pooled features."""
    config: PretrainConfig
    """Settings of its pre-training, as far as known."""
    size: int
    """Side of the crops that it is judged on, pixels."""

    def with_own_statistics(self, augment: AugmentConfig) -> AugmentConfig:
        """Return a protocol's augmentation with the mean and standard deviation of this network's training."""
        return replace(augment, mean=self.config.augment.mean, std=self.config.augment.std)

    def weights_hash(self) -> str:
        """Return the SHA-256 over names and bytes of the weights."""
        return weights_sha256(self.backbone)

    def facts(self, **sources: ImageSource) -> dict[str, Any]:
        """Return what a result records about its subject and the images, so that it can be reproduced."""
        return {
            "run": self.run,
            "backbone": self.config.method.backbone,
            "small_stem": self.config.method.small_stem,
            "weights_sha256": self.weights_hash(),
            "image_size": self.size,
            "mean": list(self.config.augment.mean),
            "std": list(self.config.augment.std),
            **{
                name: {"source": source.name, "images": len(source), "fingerprint": source.fingerprint}
                for name, source in sources.items()
            },
            "made_by": {
                "univip-stream": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__,
            },
        }  # fmt: skip


def open_subject(run: str | Path, *, image_size: int | None = None, untrained: bool = False) -> Subject:
    """Load the network to judge.

    Args:
        run: run folder (its newest checkpoint), one checkpoint, a backbone.safetensors of ours; or a reference: torchvision:, timm:
            or random: with a network, or a file of a ResNet's weights (see `pretrain.reference`).
        image_size: side of the crops, pixels; None is the size of the scenes it was trained with.
        untrained: whether to use the weights that the run began with, as a baseline.

    Raises:
        UsageError: a reference names no network.
        InputError: there is no run, it has no checkpoint yet, or a damaged one; a library's weights are not at hand.

    """
    backbone, config = judged_backbone(run, untrained=untrained)
    return Subject(run=str(run), backbone=backbone, config=config, size=image_size or config.views.scene_size)
