"""Pixels of batches in memory that all processes of a loader share, used again and again."""

from dataclasses import replace

import torch
from torch import Tensor

from univip_stream.stream.batch import Batch


class Ring:
    """Places for the pixels of so many batches. Made before workers are forked, so that they write where the parent reads.

    Args:
        shapes: of a batch's scenes, instances, third views and patches, channels last.
        places: batch n uses place n % places.

    """

    def __init__(self, shapes: tuple[tuple[int, ...], ...], places: int):
        self._places = [tuple(map(_shared, shapes)) for _ in range(places)]

    def place(self, number: int) -> tuple[Tensor, ...]:
        """Where batch `number` is written: uint8, in the order and with the shapes given."""
        return self._places[number % len(self._places)]

    def with_pixels(self, batch: Batch, number: int) -> Batch:
        """Batch `number`, as a worker sent it without them."""
        scenes, instances, third, patches = self.place(number)
        return replace(
            batch,
            scenes=scenes.permute(0, 1, 4, 2, 3),
            instances=instances.permute(0, 1, 4, 2, 3),
            third=third.permute(0, 3, 1, 2),
            patches=patches.permute(0, 1, 4, 2, 3),
        )


def _shared(shape: tuple[int, ...]) -> Tensor:
    pixels = torch.empty(shape, dtype=torch.uint8)
    pixels.share_memory_()  # type: ignore[no-untyped-call]
    return pixels
