"""Read from `http(s)://`: one client per process, which follows the rules of `polite` and explains errors.

The client is asynchronous and lives in a thread of its own, so that any number of threads can wait for it and every request
has a time limit; the functions here are ordinary ones.
"""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from univip_stream.storage import polite, retry
from univip_stream.storage.explain import OptedOutError, TooLongError, WebStatusError, explained
from univip_stream.storage.polite import MOST_WAIT, MOST_WAITED, Host, WebOptions, opted_out, seconds_asked
from univip_stream.storage.retry import failure, may_pass

SILENCE = 60.0
"""Seconds without a byte after which a web server's answer counts as an error."""
SLOWEST = 1024
"""Bytes per second, averaged over SILENCE, below which an answer counts as silent; otherwise it might never end."""
CONNECT = 15.0
"""Seconds that a server has to accept a connection."""
MOST_REDIRECTS = 10
"""Maximal number of redirects, within a factor of two of browsers and curl: longer chains are loops."""
_MOST_HOSTS = 10_000
"""Maximal number of servers whose state is kept; lists may name millions."""
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 503)
"""Statuses whose Retry-After is obeyed (RFC 9110 and 6585)."""
_Result = TypeVar("_Result")
_Consume = Callable[[aiohttp.ClientResponse], Awaitable[_Result]]

_clients: dict[int, "Client"] = {}
"""Clients by process id. A forked child also has its parent's, whose thread does not run there; it is never used."""
_starting = threading.Lock()


def client() -> "Client":
    """Return this process's client."""
    found = _clients.get(os.getpid())
    if found is None:
        with _starting:
            found = _clients.get(os.getpid()) or Client()
            _clients[os.getpid()] = found
    return found


def _reset_after_fork() -> None:
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_reset_after_fork)


def give_up() -> None:
    """Cancel every request that this process waits for; the waiting calls fail."""
    if found := _clients.get(os.getpid()):
        found.cancel()


@atexit.register
def _close() -> None:
    if found := _clients.pop(os.getpid(), None):
        found.close()


class Client:
    """Requests to web servers. Errors are `OSError`s with location and reason: FileNotFoundError, PermissionError, ..."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="univip-stream web").start()
        self._hosts: dict[URL, Host] = {}
        self._waiting: set[Future[Any]] = set()
        self._session = self.run(self._started())

    @staticmethod
    async def _started() -> aiohttp.ClientSession:
        # `Host` limits simultaneous requests. Cookies would make the result of a request depend on earlier ones.
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), timeout=patience
        )

    def run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run a coroutine in the client's thread, and return its result."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._waiting.add(future)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            self._waiting.discard(future)

    def cancel(self) -> None:
        """Cancel all requests that are waited for."""
        for future in list(self._waiting):
            future.cancel()

    def close(self) -> None:
        """Close all connections; no requests are possible afterwards."""
        self.cancel()
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._session.close(), self._loop).result(timeout=1)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def image(self, location: str, most: int) -> bytes:
        """Read a whole image in one request, within the options' limits.

        Raises:
            TooLongError: it has more than `most` bytes.
            OptedOutError: its server asks that it is not used.
            OSError: it cannot be read, after retries.

        """
        options = polite.options()

        async def consume(answer: aiohttp.ClientResponse) -> bytes:
            _check_status(answer, (200,))
            word = opted_out(answer.headers.getall("X-Robots-Tag", []), options.user_agent)
            if word and not options.ignore_opt_out:
                raise failure(OptedOutError, location, f"its server asks not to use it (X-Robots-Tag: {word})")
            if (answer.content_length or 0) > most:
                raise TooLongError(int(answer.content_length or 0))
            body = await _body(answer, 0, most + 1)
            if len(body) > most:
                raise TooLongError(len(body))
            return body

        return self.run(self._with_retries(location, _Request("GET", location, options, seconds=options.seconds), consume))

    def read(self, location: str, offset: int, size: int | None) -> bytes:
        """Read a file, or `size` bytes of it from `offset` on, in one request; only these bytes if the server supports ranges."""
        ranged = offset > 0 or size is not None

        async def consume(answer: aiohttp.ClientResponse) -> bytes:
            if answer.status == 416:  # the file ends before the range begins
                return b""
            return await _body(answer, _skipped(location, answer, offset), size)

        headers = _range(offset, None if size is None else offset + size) if ranged else {}
        return self.run(self._with_retries(location, _Request("GET", location, polite.options(), headers), consume))

    def size(self, location: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            FileNotFoundError: the server says that it does not exist.
            OSError: it cannot be determined, after retries.

        """

        async def announced(answer: aiohttp.ClientResponse) -> int | None:
            # Signed URLs allow GET only, and some servers reject HEAD: these statuses prove nothing yet.
            if answer.status in (400, 403, 405, 501):
                return None
            _check_status(answer, (200,))
            return _length(answer) or None

        async def whole(answer: aiohttp.ClientResponse) -> int | None:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 416 or answer.status == 206:
                return int(total) if total.isdigit() else None
            _check_status(answer, (200,))
            return _length(answer)

        size = self.run(self._with_retries(location, _Request("HEAD", location, polite.options()), announced))
        if size is None:
            # Only the answer's headers are read; the whole file may follow them.
            size = self.run(self._with_retries(location, _Request("GET", location, polite.options(), _range(0, 1)), whole))
        if size is None:
            raise failure(OSError, location, "the server does not say how large it is (no Content-Length)")
        return size

    def stream(self, location: str, offset: int) -> "BodyStream":
        """Open a file's bytes from an offset on, to be read as they arrive."""

        async def opened() -> BodyStream:
            request = _Request("GET", location, polite.options(), _range(offset, None) if offset else {})
            stack = contextlib.AsyncExitStack()

            async def consume(answer: aiohttp.ClientResponse) -> tuple[aiohttp.ClientResponse, int]:
                return answer, _skipped(location, answer, offset)

            answer, skip = await self._with_retries(location, request, consume, stack)
            return BodyStream(self, location, answer, stack, skip)

        return self.run(opened())

    async def _with_retries(
        self, location: str, request: "_Request", consume: _Consume[_Result], keep: contextlib.AsyncExitStack | None = None
    ) -> _Result:
        """Return the result of `consume` for the answer; repeat the request if that can help, when the server allows it."""
        wait, left, waited = retry.FIRST_WAIT, retry.TRIES, 0.0
        while True:
            try:
                return await self._request_once(location, request, consume, keep)
            except WebStatusError as error:
                asked = seconds_asked(error.retry_after) if error.status in _BUSY else None
                if asked is not None:
                    if asked > MOST_WAIT or waited + asked > MOST_WAITED:
                        reason = (
                            f"HTTP {error.status}: the server asks to wait {waited + asked:.0f} s, longer than is waited for"
                        )
                        raise failure(OSError, location, reason) from error
                    # A server that always says 0 is asked less and less often.
                    waited, pause = waited + max(asked, wait), max(asked, wait)
                    wait *= 2
                    self._host(error.url).busy(pause)
                    continue
                _raise_unless_passing(location, error)
                left -= 1
                if not left:
                    raise explained(location, error) from error
                if error.status in _BUSY:
                    self._host(error.url).busy(wait)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                _raise_unless_passing(location, error)
                left -= 1
                if not left:
                    raise explained(location, error) from error
            await asyncio.sleep(wait)
            wait *= 2

    async def _request_once(
        self, location: str, request: "_Request", consume: _Consume[_Result], keep: contextlib.AsyncExitStack | None
    ) -> _Result:
        """Make one request, and follow its redirects."""
        url = URL(location)
        named = url.origin()
        for _ in range(MOST_REDIRECTS + 1):
            async with contextlib.AsyncExitStack() as stack:
                if request.left is None:
                    await self._host(url).rested()
                else:
                    await stack.enter_async_context(self._host(url).turn(request.options.per_host))
                    await stack.enter_async_context(request.in_time(location))
                answer = await stack.enter_async_context(
                    self._session.request(
                        request.method,
                        url,
                        headers=request.headers(url.origin() == named),
                        allow_redirects=False,
                        proxy=_proxy(location, url),
                    )
                )
                target = answer.headers.get("Location") if answer.status in _REDIRECTS else None
                if target is None:
                    result = await consume(answer)
                    self._host(url).answered()
                    if keep is not None:
                        await keep.enter_async_context(stack.pop_all())
                    return result
            url = url.join(URL(target))
            if url.scheme not in ("http", "https") or not url.host:
                raise failure(OSError, location, f"the server redirects to {url}, which is not read")
        raise failure(OSError, location, f"the server redirects more than {MOST_REDIRECTS} times, at last to {url}")

    def _host(self, url: URL) -> Host:
        if len(self._hosts) > _MOST_HOSTS:
            self._hosts = {name: host for name, host in self._hosts.items() if host.matters}
        return self._hosts.setdefault(url.origin(), Host())


class _Request:
    """A request, with the time that is left for it."""

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


class BodyStream:
    """The body of one answer, read as it arrives."""

    def __init__(
        self, owner: Client, location: str, answer: aiohttp.ClientResponse, stack: contextlib.AsyncExitStack, skip: int
    ):
        self._owner, self._location, self._stack = owner, location, stack
        self._pieces = _pieces(answer, skip)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes that have arrived, up to `size`; none at the end."""
        if not self._rest:
            try:
                self._rest = self._owner.run(self._next())
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                raise explained(self._location, error) from error
        piece, self._rest = self._rest[:size], self._rest[size:]
        return piece

    async def _next(self) -> bytes:
        return await anext(self._pieces, b"")

    def close(self) -> None:
        """End the request."""
        self._owner.run(self._stack.aclose())


def _proxy(location: str, url: URL) -> URL | None:
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


def _raise_unless_passing(location: str, error: Exception) -> None:
    """Raise the error at once if another try cannot help."""
    if isinstance(error, OptedOutError | TooLongError):
        raise error
    found = explained(location, error)
    if not may_pass(found):
        raise found from error


def _check_status(answer: aiohttp.ClientResponse, good: tuple[int, ...]) -> None:
    if answer.status not in good:
        raise WebStatusError(answer.status, answer.reason or "", answer.headers.get("Retry-After"), answer.url)


def _length(answer: aiohttp.ClientResponse) -> int | None:
    """Return the size of the whole file if the answer tells it."""
    return None if "Content-Encoding" in answer.headers else answer.content_length


def _range(first: int, end: int | None) -> dict[str, str]:
    return {"Range": f"bytes={first}-{'' if end is None else end - 1}"}


def _skipped(location: str, answer: aiohttp.ClientResponse, offset: int) -> int:
    """Return how many bytes of an answer to skip: a server without support for ranges sends the whole file."""
    _check_status(answer, (200, 206))
    if answer.status == 200:
        return offset
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0].strip()
    if first != str(offset) or "Content-Encoding" in answer.headers:
        reason = f"asked for bytes from {offset} on, the server sends {answer.headers.get('Content-Range')!r}"
        raise failure(OSError, location, f"{reason}, {answer.headers.get('Content-Encoding', 'not compressed')}")
    return 0


async def _pieces(answer: aiohttp.ClientResponse, skip: int) -> AsyncIterator[bytes]:
    """Yield an answer's body without its first `skip` bytes; raise TimeoutError if the server nearly stops sending."""
    loop = asyncio.get_running_loop()
    since, came = loop.time(), 0
    while piece := await answer.content.readany():
        came += len(piece)
        if (now := loop.time()) - since > SILENCE:
            if came < SLOWEST * SILENCE:
                raise TimeoutError(f"{came} bytes in {now - since:.0f} s")
            since, came = now, 0
        if skip < len(piece):
            yield piece[skip:]
        skip = max(0, skip - len(piece))


async def _body(answer: aiohttp.ClientResponse, skip: int, most: int | None) -> bytes:
    """Return at most `most` bytes of an answer's body, without waiting for the rest."""
    parts, have = [], 0
    async for piece in _pieces(answer, skip):
        parts.append(piece)
        have += len(piece)
        if most is not None and have >= most:
            break
    return b"".join(parts)[:most]
