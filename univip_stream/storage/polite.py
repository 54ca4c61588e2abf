"""Politeness towards web servers: waiting times, simultaneous requests and opt-outs; without network access."""

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.request import getproxies_environment
from urllib.request import proxy_bypass_environment as bypassed  # type: ignore[attr-defined] # public; typeshed lacks it

from univip_stream import __version__

PRODUCT = "univip-stream"
"""Our name in the user agent, and in opt-outs that are addressed to us alone."""
USER_AGENT = f"{PRODUCT}/{__version__} (image sets for self-supervised training)"
MOST_WAIT = 300.0
"""Longest single Retry-After, in seconds, that is obeyed; beyond it the request fails."""
MOST_WAITED = 900.0
"""Total seconds that one request may wait because its server asks for it."""
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Words of X-Robots-Tag that exclude an image; img2dataset's default (its `disallowed_header_directives`)."""
_AGENT = re.compile(r"[a-z*][a-z0-9_.*-]*")
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Words of X-Robots-Tag that are followed by a colon and a value, and are not the name of an agent."""


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """Options of requests to web servers. Only `ignore_opt_out` is part of a set's parameters."""

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(name, value) of headers sent to every server in a location, but not to those it redirects to. Often secret: never shown."""
    user_agent: str = USER_AGENT
    """Value of the User-Agent header."""
    per_host: int = 4
    """Simultaneous requests for images to one server, for each process."""
    seconds: float = 60.0
    """Time limit for an image, all tries together, without the waits that its server asks for; from an object store, without a
    second for every 4 KiB."""
    ignore_opt_out: bool = False
    """Whether to use images whose server asks that they are not used (X-Robots-Tag)."""


_options = WebOptions()


def use(options: WebOptions) -> None:
    """Set the options of all requests to web servers, in this process and those forked from it."""
    global _options
    _options = options


def options() -> WebOptions:
    """Return the current options."""
    return _options


def proxy_of(scheme: str, host: str, port: int | None) -> str | None:
    """Return the proxy that the environment names for a server, by the same rules as curl; None for a direct connection.

    `http_proxy`, `https_proxy`, `all_proxy` and their capital forms name it; `no_proxy` lists servers without a proxy.
    """
    proxies = getproxies_environment()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or bypassed(host if port is None else f"{host}:{port}", proxies):
        return None
    return found if "://" in found else f"http://{found}"


def seconds_asked(retry_after: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number or a date); None if it has neither."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except (ValueError, OverflowError):
        return None


def opted_out(tags: Iterable[str], user_agent: str) -> str | None:
    """Return the word of X-Robots-Tag headers that asks us not to use an image; None if there is none.

    `noai, noindex` is addressed to all, `somebot: noai` to that agent only; a name is valid until the next name, as search
    engines read it. Our names are `univip-stream` and the user agent up to its slash.

    Args:
        tags: values of the headers.
        user_agent: user agent that is sent.

    """
    ours = {"*", PRODUCT, user_agent.partition("/")[0].strip().lower()}
    for tag in tags:
        agent = "*"
        for part in tag.lower().split(","):
            name, colon, rest = (text.strip() for text in part.partition(":"))
            if colon and name not in _WITH_VALUE and _AGENT.fullmatch(name):
                agent, word = name, rest
            else:
                word = name
            if agent in ours and word in OPT_OUT:
                return word
    return None


class Host:
    """One server: the number of simultaneous requests to it, and the pause that it has asked for.

    After it has reported that it is busy, one request is made alone, and each success allows one more at the same time.
    """

    def __init__(self) -> None:
        self._allowed = 0
        self._active = 0
        self._resume_at = 0.0
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def matters(self) -> bool:
        """Whether there is state that must be kept."""
        return self._active > 0 or self._resume_at > time.monotonic() - MOST_WAIT

    @asynccontextmanager
    async def turn(self, limit: int) -> AsyncIterator[None]:
        """Wait until a request is allowed, in the order of asking, and hold one of `limit` slots while inside."""
        self._allowed = self._allowed or limit
        woken = False
        try:
            while True:
                if woken or not self._queue:
                    await self.rested()
                    if self._active < min(limit, self._allowed):
                        break
                place = asyncio.get_running_loop().create_future()
                self._queue.appendleft(place) if woken else self._queue.append(place)
                await place
                woken = True
        except BaseException:
            self._wake()  # this one was perhaps woken, and leaves
            raise
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._wake()

    def _wake(self) -> None:
        """Let the first who waits look again whether a request is allowed. Waking all would cost each request all of them."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return

    async def rested(self) -> None:
        """Wait until the server's pause is over."""
        while (left := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def busy(self, seconds: float) -> None:
        """Record that the server asked for a pause."""
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)
        self._allowed = 1

    def answered(self) -> None:
        """Record that a request succeeded."""
        if self._allowed:
            self._allowed += 1
            self._wake()
