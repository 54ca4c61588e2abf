"""What a web server asks of its clients: how long to wait, how many at once, what not to use; no network here."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.request import getproxies_environment
from urllib.request import proxy_bypass_environment as bypassed  # type: ignore[attr-defined] # public; typeshed lacks it

from univip_stream import __version__

PRODUCT = "univip-stream"
"""What we are called in a user agent, and in an opt-out that is meant for us alone."""
USER_AGENT = f"{PRODUCT}/{__version__} (image sets for self-supervised training)"
MOST_WAIT = 300.0
"""Seconds of a single Retry-After beyond which a server is not waited for."""
MOST_WAITED = 900.0
"""Seconds that one request may wait in all because its server asks for it."""
OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex"})
"""Words of X-Robots-Tag that img2dataset leaves an image out for by default (its `disallowed_header_directives`)."""
_AGENT = re.compile(r"[a-z*][a-z0-9_.*-]*")
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""Words of X-Robots-Tag that a colon and a value follow, and no agent's name."""


@dataclass(frozen=True, kw_only=True)
class WebOptions:
    """How web servers are asked. Nothing of it is part of what a set is made of, except `ignore_opt_out`."""

    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Name and value each, sent to every server that is named, and to none that it redirects to. Often secret: never shown."""
    user_agent: str = USER_AGENT
    """Who asks."""
    per_host: int = 4
    """Images that one server is asked for at a time, by each process."""
    seconds: float = 60.0
    """That an image may take, all tries together, without the waits that its server asks for."""
    ignore_opt_out: bool = False
    """Whether images are taken whose server asks that they are not (X-Robots-Tag)."""


_options = WebOptions()


def use(options: WebOptions) -> None:
    """Ask web servers in this way from now on, in this process and those forked from it."""
    global _options
    _options = options


def options() -> WebOptions:
    """How web servers are asked now."""
    return _options


def proxy_of(scheme: str, host: str, port: int | None) -> str | None:
    """The proxy that the environment names for a server, as curl and others have it; None to ask the server itself.

    `http_proxy`, `https_proxy`, `all_proxy` and their capital forms say which, `no_proxy` for which servers none.
    """
    proxies = getproxies_environment()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or bypassed(host if port is None else f"{host}:{port}", proxies):
        return None
    return found if "://" in found else f"http://{found}"


def seconds_asked(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks for (RFC 9110, 10.2.3: a number, or a date); None where it says nothing."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time()) if text else None
    except (ValueError, OverflowError):
        return None


def opted_out(tags: Iterable[str], user_agent: str) -> str | None:
    """The word of X-Robots-Tag headers that asks us to leave an image alone; None if there is none.

    `noai, noindex` is meant for all, `somebot: noai` for that agent alone; a name holds until the next, as search engines
    read it. We are `univip-stream`, and what stands before the slash of the user agent.

    Args:
        tags: the headers' values.
        user_agent: which is sent.

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
    """One server: how many images it is asked for at a time, and until when it wants to be left alone.

    After it says that it is busy, one request goes first, and each that succeeds lets one more stand beside it.
    """

    def __init__(self) -> None:
        self._allowed = 0
        self._active = 0
        self._resume_at = 0.0
        self._freed = asyncio.Event()

    @property
    def matters(self) -> bool:
        """Whether there is something to remember."""
        return self._active > 0 or self._resume_at > time.monotonic() - MOST_WAIT

    @asynccontextmanager
    async def turn(self, limit: int) -> AsyncIterator[None]:
        """Hold one of `limit` places, once the server may be asked."""
        self._allowed = self._allowed or limit
        while True:
            await self.rested()
            if self._active < min(limit, self._allowed):
                break
            self._freed.clear()
            await self._freed.wait()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            self._freed.set()

    async def rested(self) -> None:
        """Wait until it may be asked again."""
        while (left := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left)

    def busy(self, seconds: float) -> None:
        """It asked for a pause."""
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)
        self._allowed = 1

    def answered(self) -> None:
        """It gave what was asked for."""
        if self._allowed:
            self._allowed += 1
            self._freed.set()
