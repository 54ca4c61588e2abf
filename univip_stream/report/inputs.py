"""Network inputs from one image: views, instances and augmentations, drawn as the stream draws them.

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
class NetworkInputs:
    """Views and instances of one image, before and after one draw of the augmentations."""

    tries: Int32[np.ndarray, "T 2 4"]
    """Pairs of views that Algorithm 1 tried, up to the one that was taken or the last."""
    held: list[int]
    """Number of boxes inside the overlap of each try."""
    views: Views
    scenes: UInt8[np.ndarray, "2 S S 3"]
    """Views, cropped and resized."""
    instances: UInt8[np.ndarray, "K I I 3"]
    scene_inputs: Float[Tensor, "2 3 S S"]
    """Views as the networks get them: augmented and normalised."""
    instance_inputs: Float[Tensor, "A K 3 I I"]
    augment: AugmentConfig

    def to_pixels(self, normalised: Float[Tensor, "3 S S"]) -> UInt8[np.ndarray, "S S 3"]:
        """Return a network input as RGB pixels, without its normalisation."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.augment.mean, self.augment.std))
        pixels: np.ndarray = ((normalised * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return pixels


def draw_inputs(
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Int32[np.ndarray, "N 4"],
    seed: Sequence[int],
    views_config: ViewConfig,
    augment_config: AugmentConfig,
) -> NetworkInputs:
    """Draw views of an image, instances of its boxes, and augmentations. The same seed draws the same."""
    height, width = image.shape[:2]
    views = draw_views(boxes, width, height, np.random.default_rng(seed), views_config)
    count = views_config.tries if views_config.overlap else 1
    tries = pairs_of_crops(np.random.default_rng(seed), count, width, height, views_config)[: views.tries]
    scenes = _crops(image, views.scenes, views_config.scene_size, views_config)
    instances = _crops(image, views.instances, views_config.instance_size, views_config)
    rng = np.random.default_rng([*seed, 1])
    return NetworkInputs(
        tries=tries,
        held=[int(inside(boxes, overlap).sum()) if len(boxes) else 0 for overlap in overlaps_of(tries)],
        views=views,
        scenes=scenes,
        instances=instances,
        scene_inputs=_augmented(scenes, [draw(rng, augment_config, view) for view in (0, 1)], augment_config),
        instance_inputs=torch.stack(
            [
                _augmented(instances, [draw(rng, augment_config, view) for _ in instances], augment_config)
                for view in range(views_config.instance_augmentations)
            ]
        ),
        augment=augment_config,
    )


def _crops(
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
    augmented: Tensor = augment(pixels, torch.from_numpy(np.stack(draws)), config) if draws else pixels.float()
    return augmented
