"""Fetch remote images ahead while earlier ones are processed."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from univip_stream import storage
from univip_stream.sources import SourceImage, read_bytes

_AT_ONCE = 128
"""Number of images that are fetched at the same time; `storage.WebOptions` limits how many of them from one web server. A core
that mines 92 images a second waits for none of them while an answer takes 1.4 s on average."""
_AHEAD = 512
"""Number of images that are requested before their turn: the next one may be slow without stopping those behind it."""
_AHEAD_BYTES = 256 << 20
"""The most bytes of fetched images that wait for their turn; above it, no further image is requested."""
_FIRST_GUESS = 256 << 10
"""Bytes that an image on its way is taken to have until one has come; afterwards, the mean of those that came."""
_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Waiting(Generic[_Item]):
    """An item that waits for its turn."""

    item: _Item
    read: Callable[[], bytes]
    """Returns the bytes of its image, or raises; waits for them if they are on their way."""
    fetched: bool
    """Whether its image is fetched ahead."""
    size: int | None
    """Number of bytes that are here for it; None while they are on their way."""


def read_ahead(
    items: Iterator[_Item], image_of: Callable[[_Item], SourceImage | None]
) -> Generator[tuple[_Item, Callable[[], bytes]]]:
    """Yield each item, in order, with a function that returns the bytes of its image, or raises as `read_bytes` does.

    Remote images are requested ahead, many at a time; local ones are read when their turn comes. Close the generator when
    done: that cancels the requests that are under way.

    Args:
        items: the items, which are taken ahead.
        image_of: function that returns the image of an item; None if it needs none.

    """
    pool: ThreadPoolExecutor | None = None
    waiting: deque[_Waiting[_Item]] = deque()
    came, bytes_came = 0, 0

    def fetch(place: _Waiting[_Item], image: SourceImage) -> bytes:
        nonlocal came, bytes_came
        try:
            data = read_bytes(image)
        except BaseException:
            place.size = 0
            raise
        came, bytes_came = came + 1, bytes_came + len(data)  # threads may lose each other's counts: it is an estimate
        place.size = len(data)
        return data

    def full() -> bool:
        if len(waiting) >= _AHEAD:
            return True
        mean = bytes_came / came if came else _FIRST_GUESS
        return sum(mean if place.size is None else place.size for place in waiting) > _AHEAD_BYTES

    def its_turn() -> bool:
        """Whether the first is taken now; otherwise more are requested behind it."""
        head = waiting[0]
        return not head.fetched or (head.size is not None and len(waiting) >= _AT_ONCE) or full()

    try:
        for item in items:
            image = image_of(item)
            place = _Waiting(item, partial(_read, image), fetched=False, size=0)
            waiting.append(place)
            if image is not None and storage.is_remote(image.path):
                pool = pool or ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="univip-stream ahead")
                place.fetched, place.size = True, None
                place.read = pool.submit(fetch, place, image).result
            while waiting and its_turn():
                place = waiting.popleft()
                yield place.item, place.read
        while waiting:
            place = waiting.popleft()
            yield place.item, place.read
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            storage.give_up()
            pool.shutdown()


def _read(image: SourceImage | None) -> bytes:
    assert image is not None, "an item without an image was asked for one"
    return read_bytes(image)
