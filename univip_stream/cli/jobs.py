"""Shared by the commands that run on Ray: options for where the work is done, and how it is stopped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from univip_stream.stopping import stoppable

_Command = TypeVar("_Command", bound=Callable[..., Any])


def where_options(command: _Command) -> _Command:
    """Add the options that say how the work is distributed."""
    for option in reversed(
        [
            click.option(
                "--workers", type=click.IntRange(min=1), metavar="N", help="Shards in work at a time.  [default: one a CPU]"
            ),
            click.option(
                "--address",
                metavar="ADDRESS",
                help="Address of a running Ray cluster, such as auto.  [default: a local one is started]",
            ),
            click.option("--inline", is_flag=True, help="Without Ray, one shard after the other, in this process."),
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result."),
        ]
    ):
        command = option(command)
    return command


@contextmanager
def stop_on_sigterm(what: str) -> Iterator[None]:
    """While inside: on Ctrl-C, and on SIGTERM from a scheduler, print what to do next and exit with status 1."""
    try:
        with stoppable():
            yield
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted: finished shards are kept; run the same command again to {what} the rest", err=True)
        raise SystemExit(1) from None
