"""Shared by the commands that judge: options, and writing a result."""

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from univip_stream.errors import InputError, UsageError
from univip_stream.failures import MAX_FAILURES, allowed_failures, listed
from univip_stream.images import MAX_PIXELS

MOST_LISTED = 10
"""Number of images that a printed result names; the JSON names all."""
_Command = TypeVar("_Command", bound=Callable[..., Any])


def run_argument(command: _Command) -> _Command:
    """Add the argument RUN, the network that is judged."""
    return click.argument("run", type=click.Path(path_type=Path))(command)


def subject_argument(command: _Command) -> _Command:
    """Add the argument RUN and --subject, of which one names the network that is judged; the command gets it as `run`."""

    @functools.wraps(command)
    def with_subject(*args: Any, run: str | None, subject: str | None, **options: Any) -> Any:
        if (run is None) == (subject is None):
            found = "neither is" if run is None else "both are"
            raise UsageError(f"RUN and --subject name the network to judge, and {found} given; expected one of them")
        return command(*args, run=subject if run is None else run, **options)

    option = click.option(
        "--subject",
        metavar="NETWORK",
        help="Judge another network than a run's, by the same code: random:resnet50 (@SEED for another than 0), "
        "torchvision:resnet50 (supervised; @WEIGHTS for others than its first), timm:NETWORK, or a file of a ResNet's weights "
        "(of others, say its network: timm:NETWORK=FILE). Its crops have 224 px, or what timm names.",
    )
    return click.argument("run", required=False)(option(with_subject))  # type: ignore[return-value]


def source_options(command: _Command) -> _Command:
    """Add --train and --val, the labelled images, and --max-pixels."""
    train = click.option(
        "--train",
        required=True,
        metavar="SOURCE",
        help="Labelled images to learn from: a folder of class folders, or shards.",
    )
    val = click.option("--val", required=True, metavar="SOURCE", help="Labelled images to judge by: the same classes.")
    return train(val(limit_option(command)))


def limit_option(command: _Command) -> _Command:
    """Add --max-pixels, as in `mine`."""
    return click.option(
        "--max-pixels",
        default=MAX_PIXELS,
        show_default=True,
        type=click.IntRange(min=1),
        help="Larger images are refused. Images in our own shards are read at any size.",
    )(command)


def _check_max_failures(ctx: click.Context, param: click.Parameter, value: str) -> str:
    allowed_failures(value, 1)  # checked before the work, not after it
    return value


def max_failures_option(of: str) -> Callable[[_Command], _Command]:
    """Add --max-failures; `of` says in its help which images are counted."""
    return click.option(
        "--max-failures",
        default=MAX_FAILURES,
        show_default=True,
        metavar="N|N%",
        callback=_check_max_failures,
        help=f"Images{of} that may be unreadable or too large before the job stops with a list.",
    )


def learning_rate_option(name: str, help: str, **more: Any) -> Callable[[_Command], _Command]:
    """Add --lr, which was --rate in some commands."""
    return click.option("--lr", "--rate", name, help=help, **more)


def out_option(command: _Command) -> _Command:
    """Add --out, a file for the result; whether it can be written is checked before the work."""

    def tried(ctx: click.Context, parameter: click.Parameter, out: Path | None) -> Path | None:
        if out is not None:
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=out.parent):
                    pass
            except OSError as error:
                raise InputError(f"--out {out} cannot be written: {error.strerror or error}; choose another") from error
        return out

    return click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        callback=tried,
        help="Also write the result here, as JSON.",
    )(command)


def running_options(command: _Command) -> _Command:
    """Add the options for crop size, processes, device and the result's file."""
    for option in reversed(
        [
            click.option(
                "--image-size",
                type=click.IntRange(8, 4096),
                metavar="PIXELS",
                help="Side of the crops.  [default: the run's scene size]",
            ),
            click.option(
                "--workers",
                type=click.IntRange(min=0),
                help="Processes that read images.  [default: a CPU less than there are]",
            ),
            click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
            max_failures_option(" of --train, and of --val,"),
            out_option,
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result."),
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        ]
    ):
        command = option(command)
    return command


def print_notes(notes: Iterable[str], *, quiet: bool) -> None:
    """Print notes about the shards, each once, on the first rank only."""
    from univip_stream.distributed import process_from_environment

    if not quiet and process_from_environment().is_first:
        for note in dict.fromkeys(notes):
            click.echo(note, err=True)


def print_left_out(result: dict[str, Any]) -> None:
    """Print the images that a result leaves out, and its notes."""
    for name, failed in result["failed"].items():
        if failed:
            count = result["used"][name] + len(failed)
            click.echo(f"left out, {len(failed)} of {count} images of --{name} that cannot be used:")
            for line in listed([(one["source"], one["status"], one["reason"]) for one in failed], MOST_LISTED):
                click.echo(line)
    for note in result["notes"]:
        click.echo(f"note: {note}")
