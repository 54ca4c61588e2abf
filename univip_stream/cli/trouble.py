"""What every command does with an error: a sentence for the person, and an exit status. No traceback reaches anybody."""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import click

from univip_stream.errors import InputError, in_words
from univip_stream.extras import cure_for


@contextlib.contextmanager
def told(ctx: click.Context) -> Iterator[None]:
    """Within: an error is said on standard error, and ends the command with its status."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise  # click's own, which it says itself
    except InputError as error:
        _leave(ctx, str(error), error.exit_status)
    except BrokenPipeError:
        # The reader of our output left (`| head`). Nothing is wrong, and nothing more can be said.
        _pour_away()
        ctx.exit(1)
    except OSError as error:
        _leave(ctx, in_words(error))
    except UnicodeEncodeError as error:
        name = error.object if isinstance(error.object, str) else repr(error.object)
        _leave(ctx, f"{name} is no text (UTF-8), and a library here takes no other name; rename it")
    except MemoryError as error:
        _leave(ctx, f"out of memory{f' ({error})' if str(error) else ''}; fewer --workers or smaller batches need less")
    except RuntimeError as error:
        _leave(ctx, _worker_died(error) or _no_memory(error) or _fault_of_ours(error))
    except ImportError as error:
        _leave(ctx, _missing(error))
    except Exception as error:
        _leave(ctx, _fault_of_ours(error))


def _missing(error: ImportError) -> str:
    """Whether a part of the installation was left out on purpose, or something is broken."""
    if isinstance(error, ModuleNotFoundError) and (cure := cure_for(error.name or "")):
        return f"this needs {error.name}, which is not installed here: {cure}"
    return f"a library cannot be loaded: {error}; `univip-stream doctor` tells which are missing, and what gets them"


def _worker_died(error: RuntimeError) -> str | None:
    """torch tells of a loader worker's death in whatever call the process happens to be in; None if the error is another."""
    if "DataLoader worker" not in str(error):
        return None
    from univip_stream.workers import death

    return death(error)


def _no_memory(error: RuntimeError) -> str | None:
    """torch's allocators raise a plain RuntimeError; None if the error is another."""
    text = str(error)
    if not any(words in text for words in ("can't allocate memory", "not enough memory", "out of memory")):
        return None
    said = text.splitlines()[0][:200]
    if "CUDA" in text:
        return (
            f"out of GPU memory ({said}); a smaller --batch-size or --image-size needs less, and --device cpu none of it; "
            "`nvidia-smi` shows who else uses it"
        )
    return f"out of memory ({said}); fewer --workers, smaller batches or images need less"


def _leave(ctx: click.Context, message: str, status: int = 1) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(f"error: {readable(message)}", err=True)
    ctx.exit(status)


_LONGEST = 1000
"""Characters of a line of a message: a name out of a file that is no text can have thousands."""


def readable(message: str) -> str:
    """The message with control characters written out, which may be a terminal's orders, and the middle of long lines left out."""
    lines = []
    for line in message.split("\n"):
        plain = "".join(letter if letter.isprintable() or letter == "\t" else repr(letter)[1:-1] for letter in line[:100_000])
        half = _LONGEST // 2
        lines.append(plain if len(plain) <= _LONGEST else f"{plain[:half]} [...] {plain[-half:]}")
    return "\n".join(lines)


def _pour_away() -> None:
    """What is still to be written goes nowhere: at exit Python would complain of the closed pipe again."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or no real file
            descriptor = stream.fileno()
            try:
                stream.flush()
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def _fault_of_ours(error: Exception) -> str:
    """Words for what nobody foresaw: they say that it is a fault here, and where the whole of it lies for whoever mends it."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}".splitlines() or [type(error).__name__]
    where = ""
    with contextlib.suppress(OSError):
        descriptor, name = tempfile.mkstemp(prefix="univip-stream-", suffix=".txt")
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(f"{sys.argv}\n\n{''.join(traceback.format_exception(error))}")
        where = f", with {name}, which holds the whole of it"
    return (
        f"this should not have happened ({said[0]}; {Path(at.filename).name}, line {at.lineno}). It is a fault of "
        f"univip-stream, or of a library: please report the command{where}"
    )
