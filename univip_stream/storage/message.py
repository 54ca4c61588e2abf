"""One request to a web server, and what its answer means: headers, time limit, proxy, ranges, the body as it arrives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from univip_stream.storage import polite
from univip_stream.storage.explain import WebStatusError, explained
from univip_stream.storage.polite import WebOptions
from univip_stream.storage.retry import failure

SILENCE = 60.0
"""Seconds without a byte after which a web server's answer counts as an error."""
SLOWEST = 1024
"""Bytes per second, averaged over SILENCE, below which an answer counts as silent; otherwise it might never end."""


class Request:
    """A request, and the time that is left for it."""

    def __init__(
        self,
        method: str,
        location: str,
        options: WebOptions,
        headers: dict[str, str] | None = None,
        seconds: float | None = None,
    ):
        self.method, self.location, self.options, self.left = method, location, options, seconds
        self._own = headers or {}
        self._seconds = seconds

    def headers(self, named: bool) -> dict[str, str]:
        """Return the headers for the server in the location (`named`), or for one that it redirects to."""
        # Not compressed: images are compressed already, and a range of compressed bytes is not a range of the file.
        common = {"User-Agent": self.options.user_agent, "Accept": "*/*", "Accept-Encoding": "identity"}
        given = dict(self.options.headers) if named else {}
        return {**common, **given, **self._own}

    @asynccontextmanager
    async def in_time(self, location: str) -> AsyncIterator[None]:
        """While inside: enforce the remaining time limit, and deduct the time spent."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        limit = asyncio.timeout(self.left)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise explained(location, error, f"it takes longer than {self._seconds:g} s") from error
        finally:
            if self.left is not None:
                self.left = max(0.0, self.left - (loop.time() - start))


def proxy_for(location: str, url: URL) -> URL | None:
    """Return the proxy for a server. aiohttp's `trust_env` is not used, because it would also send passwords from ~/.netrc."""
    named = polite.proxy_of(url.scheme, url.host or "", url.explicit_port)
    if named is None:
        return None
    try:
        proxy = URL(named)
        known = proxy.scheme in ("http", "https") and bool(proxy.host)
    except ValueError:
        known = False
    if not known:
        kind = named.partition("://")[0]
        raise failure(
            OSError,
            location,
            f"the environment names a proxy of the kind {kind}://; expected http://host:port in {url.scheme}_proxy",
        )
    return proxy


def check_status(answer: aiohttp.ClientResponse, good: tuple[int, ...]) -> None:
    """Raise WebStatusError unless the answer has one of these statuses."""
    if answer.status not in good:
        raise WebStatusError(answer.status, answer.reason or "", answer.headers.get("Retry-After"), answer.url)


def full_length(answer: aiohttp.ClientResponse) -> int | None:
    """Return the size of the whole file if the answer tells it."""
    return None if "Content-Encoding" in answer.headers else answer.content_length


def byte_range(first: int, end: int | None) -> dict[str, str]:
    """Return the header that asks for the bytes from `first` up to, not with, `end`; None is the end of the file."""
    return {"Range": f"bytes={first}-{'' if end is None else end - 1}"}


def bytes_to_skip(location: str, answer: aiohttp.ClientResponse, offset: int) -> int:
    """Return how many bytes of an answer to skip: a server without support for ranges sends the whole file."""
    check_status(answer, (200, 206))
    if answer.status == 200:
        return offset
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0].strip()
    if first != str(offset) or "Content-Encoding" in answer.headers:
        reason = f"asked for bytes from {offset} on, the server sends {answer.headers.get('Content-Range')!r}"
        raise failure(OSError, location, f"{reason}, {answer.headers.get('Content-Encoding', 'not compressed')}")
    return 0


async def pieces(answer: aiohttp.ClientResponse, skip: int) -> AsyncIterator[bytes]:
    """Yield an answer's body without its first `skip` bytes; raise TimeoutError if the server nearly stops sending.

    Only waiting counts, not what is done with the pieces between.
    """
    loop = asyncio.get_running_loop()
    waited, came = 0.0, 0
    while True:
        began = loop.time()
        async with asyncio.timeout(SILENCE):  # a server can also send what is no body: chunks' extensions
            piece = await answer.content.readany()
        if not piece:
            return
        came += len(piece)
        waited += loop.time() - began
        if waited > SILENCE:
            if came < SLOWEST * SILENCE:
                raise TimeoutError(f"{came} bytes in {waited:.0f} s")
            waited, came = 0.0, 0
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))


async def read_body(answer: aiohttp.ClientResponse, skip: int, most: int | None) -> bytes:
    """Return at most `most` bytes of an answer's body, without waiting for the rest."""
    parts, have = [], 0
    async for piece in pieces(answer, skip):
        parts.append(piece)
        have += len(piece)
        if most is not None and have >= most:
            break
    return b"".join(parts)[:most]
