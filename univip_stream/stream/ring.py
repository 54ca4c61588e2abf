"""Pixels of batches in memory that all processes of a loader share, used again and again."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from univip_stream.stream.batch import Batch


class Ring:
    """Places for the pixels of so many batches. Made before workers are forked, so that they write where the parent reads.

    Args:
        shapes: of a batch's pixels by cut, channels last.
        places: batch n uses place n % places.

    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], places: int):
        self._places = [{name: _shared(shape) for name, shape in shapes.items()} for _ in range(places)]

    def place(self, number: int) -> dict[str, Tensor]:
        """Where batch `number` is written: uint8, with the shapes given."""
        return self._places[number % len(self._places)]

    def with_pixels(self, batch: Batch, number: int) -> Batch:
        """Batch `number`, as a worker sent it without them."""
        return replace(batch, pixels=channels_first(self.place(number)))


def channels_first(pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of ... x S x S x 3 memory as ... x 3 x S x S."""
    return {name: tensor.movedim(-1, -3) for name, tensor in pixels.items()}


def _shared(shape: tuple[int, ...]) -> Tensor:
    pixels = torch.empty(shape, dtype=torch.uint8)
    pixels.share_memory_()  # type: ignore[no-untyped-call]
    return pixels
