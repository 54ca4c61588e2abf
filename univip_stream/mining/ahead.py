"""Fetch remote images ahead while earlier ones are processed."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from univip_stream import storage
from univip_stream.sources import SourceImage, read_bytes

_AHEAD = 16
"""Number of images that are fetched at the same time; `storage.WebOptions` limits how many of them from one web server."""
_AHEAD_BYTES = 256 << 20
"""The most bytes of fetched images that wait for their turn; above it, no further image is requested."""
_Item = TypeVar("_Item")


def read_ahead(
    items: Iterator[_Item], image_of: Callable[[_Item], SourceImage | None]
) -> Generator[tuple[_Item, Callable[[], bytes]]]:
    """Yield each item, in order, with a function that returns the bytes of its image, or raises as `read_bytes` does.

    Remote images are requested ahead, several at a time; local ones are read when their turn comes. Close the generator when
    done: that cancels the requests that are under way.

    Args:
        items: the items, which are taken a little ahead.
        image_of: function that returns the image of an item; None if it needs none.

    """
    pool: ThreadPoolExecutor | None = None
    waiting: deque[tuple[_Item, Callable[[], bytes], Future[bytes] | None]] = deque()
    try:
        for item in items:
            image = image_of(item)
            if image is None or not storage.is_remote(image.path):
                waiting.append((item, partial(_read, image), None))
            else:
                pool = pool or ThreadPoolExecutor(_AHEAD, thread_name_prefix="univip-stream ahead")
                future = pool.submit(read_bytes, image)
                waiting.append((item, future.result, future))
            while waiting and (waiting[0][2] is None or len(waiting) >= _AHEAD or _bytes_in(waiting) > _AHEAD_BYTES):
                yield waiting.popleft()[:2]
        while waiting:
            yield waiting.popleft()[:2]
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            storage.give_up()
            pool.shutdown()


def _read(image: SourceImage | None) -> bytes:
    assert image is not None, "an item without an image was asked for one"
    return read_bytes(image)


def _bytes_in(waiting: deque[tuple[_Item, Callable[[], bytes], Future[bytes] | None]]) -> int:
    done = (future for *_, future in waiting if future is not None and future.done())
    return sum(len(future.result()) for future in done if future.exception() is None)
