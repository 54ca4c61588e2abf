"""Read from `http(s)://`: one client per process, which follows the rules of `polite` and explains errors.

The client is asynchronous and lives in a thread of its own, so that any number of threads can wait for it and every request
has a time limit; the functions here are ordinary ones.
"""

import asyncio
import atexit
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from univip_stream.storage import message, polite, retry
from univip_stream.storage.explain import OptedOutError, TooLongError, WebStatusError, explained
from univip_stream.storage.message import (
    Request,
    byte_range,
    bytes_to_skip,
    check_status,
    full_length,
    pieces,
    proxy_for,
    read_body,
)
from univip_stream.storage.polite import MOST_WAIT, MOST_WAITED, Host, opted_out, seconds_asked
from univip_stream.storage.retry import failure, may_pass

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
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())

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
            check_status(answer, (200,))
            word = opted_out(answer.headers.getall("X-Robots-Tag", []), options.user_agent)
            if word and not options.ignore_opt_out:
                raise failure(OptedOutError, location, f"its server asks not to use it (X-Robots-Tag: {word})")
            if (answer.content_length or 0) > most:
                raise TooLongError(int(answer.content_length or 0))
            body = await read_body(answer, 0, most + 1)
            if len(body) > most:
                raise TooLongError(len(body))
            return body

        return self.run(self._with_retries(location, Request("GET", location, options, seconds=options.seconds), consume))

    def read(self, location: str, offset: int, size: int | None, *, seconds: float | None = None) -> bytes:
        """Read a file, or `size` bytes of it from `offset` on, in one request; only these bytes if the server supports ranges.

        With a limit of `seconds` it waits for its turn at its server, as images do.
        """
        ranged = offset > 0 or size is not None

        async def consume(answer: aiohttp.ClientResponse) -> bytes:
            if answer.status == 416:  # the file ends before the range begins
                return b""
            return await read_body(answer, bytes_to_skip(location, answer, offset), size)

        headers = byte_range(offset, None if size is None else offset + size) if ranged else {}
        return self.run(self._with_retries(location, Request("GET", location, polite.options(), headers, seconds), consume))

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
            check_status(answer, (200,))
            return full_length(answer) or None

        async def whole(answer: aiohttp.ClientResponse) -> int | None:
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 416 or answer.status == 206:
                return int(total) if total.isdigit() else None
            check_status(answer, (200,))
            return full_length(answer)

        size = self.run(self._with_retries(location, Request("HEAD", location, polite.options()), announced))
        if size is None:
            # Only the answer's headers are read; the whole file may follow them.
            size = self.run(self._with_retries(location, Request("GET", location, polite.options(), byte_range(0, 1)), whole))
        if size is None:
            raise failure(OSError, location, "the server does not say how large it is (no Content-Length)")
        return size

    def stream(self, location: str, offset: int) -> "BodyStream":
        """Open a file's bytes from an offset on, to be read as they arrive."""

        async def opened() -> BodyStream:
            request = Request("GET", location, polite.options(), byte_range(offset, None) if offset else {})
            stack = contextlib.AsyncExitStack()

            async def consume(answer: aiohttp.ClientResponse) -> tuple[aiohttp.ClientResponse, int]:
                return answer, bytes_to_skip(location, answer, offset)

            answer, skip = await self._with_retries(location, request, consume, stack)
            return BodyStream(self, location, answer, stack, skip)

        return self.run(opened())

    async def _with_retries(
        self, location: str, request: Request, consume: _Consume[_Result], keep: contextlib.AsyncExitStack | None = None
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
        self, location: str, request: Request, consume: _Consume[_Result], keep: contextlib.AsyncExitStack | None
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
                asked = self._session.request(
                    request.method,
                    url,
                    headers=request.headers(url.origin() == named),
                    allow_redirects=False,
                    proxy=proxy_for(location, url),
                    # With each request, so that none depends on what was set when the first one of the process was made.
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=message.SILENCE),
                )
                async with asyncio.timeout(CONNECT + message.SILENCE):  # headers that drip are no silence to the session
                    answer = await stack.enter_async_context(asked)
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


def _raise_unless_passing(location: str, error: Exception) -> None:
    """Raise the error at once if another try cannot help."""
    if isinstance(error, OptedOutError | TooLongError):
        raise error
    found = explained(location, error)
    if not may_pass(found):
        raise found from error


class BodyStream:
    """The body of one answer, read as it arrives."""

    def __init__(
        self, owner: Client, location: str, answer: aiohttp.ClientResponse, stack: contextlib.AsyncExitStack, skip: int
    ):
        self._owner, self._location, self._stack = owner, location, stack
        self._pieces = pieces(answer, skip)
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
