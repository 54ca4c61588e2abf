"""Error handling of every command: a sentence on standard error and an exit status, never a traceback."""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import click

from univip_stream.errors import InputError, causes, in_words
from univip_stream.extras import cure_for


@contextlib.contextmanager
def errors_reported(ctx: click.Context) -> Iterator[None]:
    """While inside: an error is printed as a sentence on standard error, and ends the command with its exit status."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise  # click prints its own errors
    except InputError as error:
        _exit_with(ctx, str(error), error.exit_status)
    except BrokenPipeError:
        # The reader of our output is gone (`| head`). Nothing is wrong, and nothing more can be printed.
        _discard_output()
        ctx.exit(1)
    except OSError as error:
        _discard_output()  # if it is standard output that cannot be written
        _exit_with(ctx, in_words(error))
    except UnicodeEncodeError as error:
        name = error.object if isinstance(error.object, str) else repr(error.object)
        _exit_with(ctx, f"{name} is not valid UTF-8, and a library used here accepts no other names; rename it")
    except MemoryError as error:
        _exit_with(ctx, f"out of memory{f' ({error})' if str(error) else ''}; fewer --workers or smaller batches need less")
    except RuntimeError as error:
        _exit_with(ctx, _worker_died(error) or _out_of_memory(error) or _unforeseen(error))
    except ImportError as error:
        _exit_with(ctx, _failed_import(error))
    except Exception as error:
        _exit_with(ctx, _unforeseen(error))


def _failed_import(error: ImportError) -> str:
    """Return the message for a failed import: an extra that is not installed, or something broken."""
    if isinstance(error, ModuleNotFoundError) and (cure := cure_for(error.name or "")):
        return f"this needs {error.name}, which is not installed here: {cure}"
    return f"a library cannot be loaded: {error}; `univip-stream doctor` tells which are missing, and what gets them"


def _worker_died(error: RuntimeError) -> str | None:
    """Return the message for a dead loader worker, which torch reports in any call; None for other errors."""
    if not any("DataLoader worker" in str(cause) for cause in causes(error)):
        return None  # without importing torch
    from univip_stream.workers import death

    return death(error)


def _out_of_memory(error: RuntimeError) -> str | None:
    """Return the message for a lack of memory, which torch reports as RuntimeError; None for other errors."""
    text = str(error)
    if not any(words in text for words in ("can't allocate memory", "not enough memory", "out of memory")):
        return None
    message = text.splitlines()[0][:200]
    if "CUDA" in text:
        return (
            f"out of GPU memory ({message}); a smaller --batch-size or --image-size needs less, and --device cpu none of it; "
            "`nvidia-smi` shows who else uses it"
        )
    return f"out of memory ({message}); fewer --workers, smaller batches or images need less"


def _exit_with(ctx: click.Context, message: str, status: int = 1) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"error: {readable(message)}", err=True)
    ctx.exit(status)


_MAX_LINE = 1000
"""Characters of a message's line: a name read from a binary file can have thousands."""


def readable(message: str) -> str:
    """Return the message with control characters escaped (terminals obey some) and the middle of long lines left out."""
    lines = []
    for line in message.split("\n"):
        plain = "".join(letter if letter.isprintable() or letter == "\t" else repr(letter)[1:-1] for letter in line[:100_000])
        half = _MAX_LINE // 2
        lines.append(plain if len(plain) <= _MAX_LINE else f"{plain[:half]} [...] {plain[-half:]}")
    return "\n".join(lines)


def _discard_output() -> None:
    """Discard output that cannot be written (a closed pipe, a full disk): at exit Python would try again, and end with 120."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no real file
            descriptor = stream.fileno()
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _unforeseen(error: Exception) -> str:
    """Return the message for an unforeseen error: it says that this is a bug, and which file holds the traceback."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    message = f"{type(error).__name__}: {error}".splitlines() or [type(error).__name__]
    where = ""
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="univip-stream-", suffix=".txt")
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(f"{sys.argv}\n\n{''.join(traceback.format_exception(error))}")
        where = f", with {name}, which holds the whole of it"
    return (
        f"this should not have happened ({message[0]}; {Path(at.filename).name}, line {at.lineno}). It is a fault of "
        f"univip-stream, or of a library: please report the command{where}"
    )
