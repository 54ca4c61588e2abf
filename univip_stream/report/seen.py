"""What the networks get to see of an image: views, instances and augmentations, drawn as the stream draws them.

Letters: K instances, A augmentations of each, T tries, S and I side of scene and instance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig, augment, draw
from univip_stream.boxes import inside
from univip_stream.shapes import Float, Float32, Int32, UInt8
from univip_stream.stream.cut import cut
from univip_stream.views import ViewConfig, Views, draw_views, overlaps_of, pairs_of_crops


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One image, one draw."""

    tries: Int32[np.ndarray, "T 2 4"]
    """The pairs of views of Algorithm 1 up to the one that was taken or the last."""
    held: list[int]
    """Boxes inside the overlap of each try."""
    views: Views
    scenes: UInt8[np.ndarray, "2 S S 3"]
    """Cut out and resized."""
    instances: UInt8[np.ndarray, "K I I 3"]
    seen_scenes: Float[Tensor, "2 3 S S"]
    """Augmented and normalised: what the networks see."""
    seen_instances: Float[Tensor, "A K 3 I I"]
    augment: AugmentConfig

    def shown(self, seen: Float[Tensor, "3 S S"]) -> UInt8[np.ndarray, "S S 3"]:
        """Pixels as people see them, of those that the networks see."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.augment.mean, self.augment.std))
        pixels: np.ndarray = ((seen * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return pixels


def see(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Int32[np.ndarray, "N 4"],
    seed: Sequence[int],
    views_config: ViewConfig,
    augment_config: AugmentConfig,
) -> Seen:
    """Draw views of an image, instances of its boxes, and augmentations. The same seed draws the same."""
    height, width = image.shape[:2]
    views = draw_views(boxes, width, height, np.random.default_rng(seed), views_config)
    count = views_config.tries if views_config.overlap else 1
    tries = pairs_of_crops(np.random.default_rng(seed), count, width, height, views_config)[: views.tries]
    scenes = _cut(image, views.scenes, views_config.scene_size, views_config)
    instances = _cut(image, views.instances, views_config.instance_size, views_config)
    rng = np.random.default_rng([*seed, 1])
    return Seen(
        tries=tries,
        held=[int(inside(boxes, overlap).sum()) if len(boxes) else 0 for overlap in overlaps_of(tries)],
        views=views,
        scenes=scenes,
        instances=instances,
        seen_scenes=_augmented(scenes, [draw(rng, augment_config, view) for view in (0, 1)], augment_config),
        seen_instances=torch.stack(
            [
                _augmented(instances, [draw(rng, augment_config, view) for _ in instances], augment_config)
                for view in range(views_config.instance_augmentations)
            ]
        ),
        augment=augment_config,
    )


def _cut(
    image: UInt8[np.ndarray, "H W 3"], windows: Int32[np.ndarray, "V 4"], side: int, config: ViewConfig
) -> UInt8[np.ndarray, "V S S 3"]:
    out = np.zeros((len(windows), side, side, 3), np.uint8)
    for window, place in zip(windows, out, strict=True):
        cut(image, window, place, config.interpolation, antialias=True)
    return out


def _augmented(
    images: UInt8[np.ndarray, "V S S 3"], draws: list[Float32[np.ndarray, "P"]], config: AugmentConfig
) -> Float[Tensor, "V 3 S S"]:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    seen: Tensor = augment(pixels, torch.from_numpy(np.stack(draws)), config) if draws else pixels.float()
    return seen
