"""A batch of the stream: the pictures of a plan's cuts as uint8, and the numbers that their augmentation needs.

Shape letters: B images, N pictures of a cut, S their side, P numbers of a draw. A cut has the layout (N, B, ...) or, if its
pictures belong together, (B, N, ...). Pixels are S x S x 3 in memory, so that the 3 x S x S tensors are channels-last without
a copy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from univip_stream.plan import Cut


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """This rank's slice of one global batch."""

    pixels: dict[str, Tensor]
    """Pixels of each cut: uint8 (N, B, 3, S, S) or (B, N, 3, S, S). A cut that uses another's pixels `again` has none
    here."""
    cuts: Mapping[str, Cut]
    """The cuts of the plan, by name."""
    draws: dict[str, Tensor]
    """Random numbers for the augmentation of every cut: float32 (N, B, P) or (B, N, P); see `augment.draw`."""
    windows: dict[str, Tensor]
    """Window of each picture in the image it was cut from: int32 (N, B, 4) or (B, N, 4), xywh in pixels."""
    facts: dict[str, Tensor]
    """Numbers that the plan gives besides its cuts, by name: float32 (B, ...)."""
    filled: Tensor
    """int32 (B): number of regions of each image that are random boxes, because it had too few boxes."""
    positions: Tensor
    """int64 (B): positions of the images in the endless sequence."""
    keys: list[str]
    """Keys of the samples, B of them."""
    sources: list[str]
    """Names of the images in their source, B of them."""
    labels: list[str | None]
    """Classes of the images, B of them; None where the source gives none."""
    skipped: list[str]
    """Messages about bad samples that were replaced by others; empty unless `on_bad_sample` is skip."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Return the same batch with its tensors on a device."""
        return self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the same batch in page-locked memory. DataLoader calls this."""
        return self._map_tensors(Tensor.pin_memory)

    def _map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if isinstance(value, Tensor):
                changed[member.name] = change(value)
            elif isinstance(value, dict) and member.name != "cuts":
                changed[member.name] = {name: change(tensor) for name, tensor in value.items()}
        return replace(self, **changed)
