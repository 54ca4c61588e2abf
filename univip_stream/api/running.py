"""What every function that judges or embeds does around its work: lines for a person, workers, caches, one writer, a result."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from univip_stream.distributed import Process, process_from_environment, said_by_the_first
from univip_stream.failures import MAX_FAILURES, allowed_failures
from univip_stream.files import written_atomically, written_by_one
from univip_stream.images import MAX_PIXELS
from univip_stream.machine import usable_cpus
from univip_stream.probe.labelled import ImageSource
from univip_stream.typed import check_types


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every way to judge needs to know: what is judged, and how images are read."""

    run: str | Path
    """A run folder, a checkpoint or a backbone.safetensors; or a reference such as random:resnet50 (see `pretrain.reference`)."""
    workers: int | None = None
    """Processes that read images; None is a CPU less than there are."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_failures: str = MAX_FAILURES
    """Images to learn from, and to judge by, that may be unreadable or too large, a share or a number."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused."""
    out: str | Path | None = None
    """Where the result is also written, as JSON; and what an interrupted protocol goes on from."""

    def __post_init__(self) -> None:
        check_types(self)
        allowed_failures(self.max_failures, 1)  # refused here, before the work


def line_printer(quiet: bool) -> Callable[[str], None]:
    """Return what prints a line on standard error: on the first rank only, and not at all if quiet."""

    def say(line: str) -> None:
        if not quiet and process_from_environment().is_first:
            click.echo(line, err=True)

    return say


def print_source_notes(*sources: ImageSource, quiet: bool) -> None:
    """Print what is left out of the sources, on the first rank only."""
    if quiet or not process_from_environment().is_first:
        return
    for source in sources:
        for note in source.notes:
            click.echo(f"{source.name}: {note}", err=True)


def reading_workers(asked: int | None) -> int:
    """Return the number of processes that read images: by default, one CPU is left to the network."""
    return usable_cpus() - 1 if asked is None else asked


@contextmanager
def cache_folder(run: str | Path, asked: str | Path | None, process: Process) -> Iterator[Path]:
    """Yield the folder that keeps features: the one asked for, one in the run's folder, or a temporary one for all ranks."""
    if asked is not None or Path(run).is_dir():
        yield Path(run) / "features" if asked is None else Path(asked)
        return
    made = tempfile.mkdtemp(prefix="univip-stream-features-") if process.is_first else ""
    try:
        yield Path(said_by_the_first(made, process))
    finally:
        if made:
            shutil.rmtree(made, ignore_errors=True)


def sole_writer(out: Path | None, process: Process) -> AbstractContextManager[None]:
    """While inside: only this job writes `out` and the state beside it; the first of its processes holds the lock."""
    return written_by_one(out) if out is not None and process.is_first else nullcontext()


def write_result(result: dict[str, Any], out: Path | None) -> None:
    """Write the result as a JSON file, whole or not at all."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(out) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
