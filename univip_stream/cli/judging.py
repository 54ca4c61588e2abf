"""What the commands that judge share: options, and where a result goes."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from univip_stream.distributed import place_from_environment

_Command = TypeVar("_Command", bound=Callable[..., Any])


def run_argument(command: _Command) -> _Command:
    """RUN: what is judged."""
    return click.argument("run", type=click.Path(path_type=Path))(command)


def source_options(command: _Command) -> _Command:
    """--train and --val: labelled images."""
    train = click.option(
        "--train",
        required=True,
        metavar="SOURCE",
        help="Labelled images to learn from: a folder of class folders, or shards.",
    )
    val = click.option("--val", required=True, metavar="SOURCE", help="Labelled images to judge by: the same classes.")
    return train(val(command))


def running_options(command: _Command) -> _Command:
    """Crop, processes, device, and where the result goes."""
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
            click.option(
                "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result here, as JSON."
            ),
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result."),
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        ]
    ):
        command = option(command)
    return command


def reading_workers(asked: int | None) -> int:
    """Processes that read images; one CPU is left to the network."""
    return len(os.sched_getaffinity(0)) - 1 if asked is None else asked


def tell(notes: Iterable[str], *, quiet: bool) -> None:
    """What a person should know of the shards; once, whatever the number of ranks."""
    if not quiet and place_from_environment().is_first:
        for note in dict.fromkeys(notes):
            click.echo(note, err=True)


def cache_folder(run: Path, asked: Path | None) -> Path:
    """Where features are kept: where the user says, in the run's folder, or for this command only."""
    if asked is not None:
        return asked
    return run / "features" if run.is_dir() else Path(tempfile.mkdtemp(prefix="univip-stream-features-"))


def write(result: dict[str, Any], out: Path | None) -> None:
    """The result as a file, whole or not at all."""
    from univip_stream.files import written_atomically

    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(out) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
