"""What the stream gives: the pictures of a plan's cuts as uint8, with the numbers their augmentation needs.

Shape letters: B images, N pictures of a cut, S their side, P numbers of a draw. A cut lies as (N, B, ...) or, where its pictures
belong together, as (B, N, ...). Pixels lie in memory as S x S x 3, so that the 3 x S x S tensors are channels-last without a copy.
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
    """uint8 (N, B, 3, S, S) or (B, N, 3, S, S) of each cut; not of those that are another's `again`."""
    cuts: Mapping[str, Cut]
    """The plan's."""
    draws: dict[str, Tensor]
    """float32 (N, B, P) or (B, N, P) of every cut: see `augment.draw`."""
    windows: dict[str, Tensor]
    """int32 (N, B, 4) or (B, N, 4): xywh of each picture in the image it was cut from."""
    facts: dict[str, Tensor]
    """float32 (B, ...): the plan's numbers."""
    filled: Tensor
    """int32 (B): regions that are random boxes, because there were too few."""
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
        changed: dict[str, Any] = {}
        for member in fields(self):
            value = getattr(self, member.name)
            if isinstance(value, Tensor):
                changed[member.name] = change(value)
            elif isinstance(value, dict) and member.name != "cuts":
                changed[member.name] = {name: change(tensor) for name, tensor in value.items()}
        return replace(self, **changed)
