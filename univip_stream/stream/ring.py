"""Memory for the pixels of batches, shared by all processes of a loader and used again and again."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from univip_stream.stream.batch import Batch


class Ring:
    """Shared memory for the pixels of several batches, made before workers are forked, so that the parent sees their writes.

    Args:
        shapes: shapes of a batch's pixels by cut, channels last.
        places: number of batches that it holds; batch n uses place n % places.

    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], places: int):
        self._places = [{name: _shared(shape) for name, shape in shapes.items()} for _ in range(places)]

    def place(self, number: int) -> dict[str, Tensor]:
        """Return the tensors that batch `number` is written to: uint8, by cut, with the given shapes."""
        return self._places[number % len(self._places)]

    def with_pixels(self, batch: Batch, number: int) -> Batch:
        """Return batch `number`, which a worker sent without pixels, with its pixels."""
        return replace(batch, pixels=channels_first(self.place(number)))


def channels_first(pixels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return views of ... x S x S x 3 memory as ... x 3 x S x S."""
    return {name: tensor.movedim(-1, -3) for name, tensor in pixels.items()}


def _shared(shape: tuple[int, ...]) -> Tensor:
    pixels = torch.empty(shape, dtype=torch.uint8)
    pixels.share_memory_()  # type: ignore[no-untyped-call]
    return pixels
