"""What the stream gives: views as uint8, with the numbers their augmentation needs.

Shape letters: B images, K instances an image, S, I and T sides of scenes, instances and third views, A instance
augmentations, P numbers of a draw. Pixels lie in memory as S x S x 3, so that the C x S x S tensors are channels-last without
a copy.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """This rank's slice of one global batch."""

    scenes: Tensor
    """uint8 (2, B, 3, S, S): the two views."""
    instances: Tensor
    """uint8 (B, K, 3, I, I): the instances in the views' overlap; K is 0 here where only their boxes are wanted."""
    scene_draws: Tensor
    """float32 (2, B, P): see `augment.draw`."""
    instance_draws: Tensor
    """float32 (A, B, K, P)."""
    scene_boxes: Tensor
    """int32 (2, B, 4): xywh of the views in the image."""
    instance_boxes: Tensor
    """int32 (B, K, 4): xywh of the instances in the image."""
    view_boxes: Tensor
    """float32 (2, B, K, 4): the same as each scene view is to see them; the first view's are jittered if that is asked."""
    third: Tensor
    """uint8 (B, 3, T, T): the second view's window at another size; T is 0 where there is none."""
    third_draws: Tensor
    """float32 (B, P)."""
    patches: Tensor
    """uint8 (B, 4, 3, I, I): a region twice, then a region and its like in another image; or (B, 0, 3, I, I)."""
    patch_draws: Tensor
    """float32 (B, 4, P), or (B, 0, P)."""
    filled: Tensor
    """int32 (B): instances that are naive boxes, because the overlap held too few."""
    positions: Tensor
    """int64 (B): places in the endless sequence."""
    keys: list[str]
    """Of the samples."""
    sources: list[str]
    """Of the samples."""
    labels: list[str | None]
    """Of the samples."""
    skipped: list[str]
    """What was wrong with samples that others stand in for; empty unless `on_bad_sample` is skip."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch with its tensors on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory, which DataLoader asks for."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors: dict[str, Any] = {
            f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed)
