"""Shared by the commands that download images: options for requests to web servers."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from univip_stream.errors import UsageError
from univip_stream.storage import WebOptions
from univip_stream.storage.polite import USER_AGENT

_Command = TypeVar("_Command", bound=Callable[..., Any])
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2


def web_options(command: _Command) -> _Command:
    """Add the options for requests to web servers; `parse_web` takes their values."""
    for option in reversed(
        [
            click.option(
                "--http-header",
                "http_headers",
                multiple=True,
                metavar="'NAME: VALUE'|@FILE",
                help="Sent with every request to a web server, or a file with one a line; may be repeated. Written nowhere.",
            ),
            click.option(
                "--user-agent",
                default=USER_AGENT,
                show_default=True,
                metavar="TEXT",
                help="How requests identify this program; some servers want an address in it.",
            ),
            click.option(
                "--per-host",
                default=4,
                show_default=True,
                type=click.IntRange(min=1),
                help="Simultaneous requests to one web server, over all workers together; each worker makes at least one.",
            ),
            click.option(
                "--image-timeout",
                default=60.0,
                show_default=True,
                type=click.FloatRange(min=1),
                metavar="SECONDS",
                help="Time that an image from a server may take, all tries together, without waits that it asks for.",
            ),
            click.option(
                "--ignore-opt-out",
                is_flag=True,
                help="Also take images whose web server asks that they are not used (X-Robots-Tag: noai, noimageai, "
                "noindex, noimageindex).",
            ),
        ]
    ):
        command = option(command)
    return command


def parse_web(
    http_headers: tuple[str, ...], user_agent: str, per_host: int, image_timeout: float, ignore_opt_out: bool
) -> WebOptions:
    """Return the options' values as one object.

    Raises:
        UsageError: a malformed header. Its value is not repeated: it may be secret.

    """
    if not user_agent.isprintable() or not user_agent.strip():
        raise UsageError(f"--user-agent is {user_agent!r}; expected a line of text")
    return WebOptions(
        headers=tuple(header for text in http_headers for header in _headers(text)),
        user_agent=user_agent,
        per_host=per_host,
        seconds=image_timeout,
        ignore_opt_out=ignore_opt_out,
    )


def _headers(text: str) -> list[tuple[str, str]]:
    if not text.startswith("@"):
        return [_header(text, "--http-header")]
    try:
        lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--http-header {text}: that file cannot be read ({error})") from error
    return [_header(line, f"{text[1:]}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _header(text: str, where: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not _NAME.fullmatch(name.strip()) or not value.strip().isprintable():
        detail = f", found the name {name!r}" if colon else " with a colon"
        raise UsageError(f"{where}: expected a header such as 'Authorization: Bearer ...'{detail}")
    return name.strip(), value.strip()
