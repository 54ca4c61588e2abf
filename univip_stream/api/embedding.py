"""`univip_stream.embed`: features of any images, a vector or a map each."""

import json
from dataclasses import dataclass
from pathlib import Path

from univip_stream.api.progress import Progress
from univip_stream.api.running import print_source_notes, reading_workers, sole_writer
from univip_stream.distributed import joined, pick_device, process_from_environment
from univip_stream.errors import UsageError
from univip_stream.evaluation.dense import FACTS, embed_dense
from univip_stream.evaluation.embedding import embed as embed_source
from univip_stream.evaluation.subject import open_subject
from univip_stream.failures import MAX_FAILURES, Failure
from univip_stream.images import MAX_PIXELS
from univip_stream.probe.labelled import ImageSource
from univip_stream.typed import check_types, expect


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which network, which images, where to."""

    run: str | Path
    """A run folder, a checkpoint or a backbone.safetensors."""
    source: str | Path
    """A folder, a list, or shards; it needs no labels."""
    out: str | Path
    """The Parquet file; with `dense` a folder."""
    dense: bool = False
    """Whether to write a map of features for each image instead of one vector."""
    image_size: int | None = None
    """Side of the central crops, pixels; None is the run's scene size."""
    batch_size: int = 64
    """Images a forward pass."""
    workers: int | None = None
    """Processes that read images; None is a CPU less than there are."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_failures: str = MAX_FAILURES
    """Images that may be unreadable or too large, a share or a number."""
    max_pixels: int = MAX_PIXELS
    """Larger images are refused."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.dense and Path(self.out).is_dir():
            raise UsageError(f"--out {self.out} is a folder; expected a file, or --dense, which writes a folder of maps")
        if self.image_size is not None and not 8 <= self.image_size <= 4096:
            raise UsageError(f"image_size is {self.image_size}; expected 8 to 4096")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What was written."""

    images: int
    """Of the source."""
    width: int
    """Numbers of a feature."""
    map: tuple[int, int] | None
    """Height and width of each map, with `dense`."""
    failed: list[Failure]
    """Images that cannot be read; they have a reason instead."""


def embed(config: EmbedConfig, *, quiet: bool = False) -> Embedded:
    """Write features of images, as `univip-stream embed` does; after an interruption the same call does what is missing.

    Args:
        config: which network, which images, where to.
        quiet: whether to show nothing on standard error.

    Raises:
        InputError, UsageError: a run, images or a file that cannot be used; too many images that cannot be read.

    """
    expect(config, "embed", EmbedConfig)
    images, out = ImageSource(str(config.source), max_pixels=config.max_pixels), Path(config.out)
    print_source_notes(images, quiet=quiet)
    subject = open_subject(Path(config.run), image_size=config.image_size)
    process = process_from_environment()
    where = pick_device(config.device, process)
    total = len(images)
    silent = quiet or not process.is_first
    with (
        sole_writer(out, process),
        joined(process, where),
        Progress(f"features of {config.source}", total, unit="images", quiet=silent) as bar,
    ):
        failed = (embed_dense if config.dense else embed_source)(
            subject, images, out, batch_size=config.batch_size, workers=reading_workers(config.workers), device=where,
            process=process, max_failures=config.max_failures, progress=bar.add,
        )  # fmt: skip
    size = None
    width = subject.backbone.width
    if config.dense and process.is_first:
        facts = json.loads((out / FACTS).read_bytes())
        size, width = (facts["height"], facts["width"]), facts["channels"]
    return Embedded(images=total, width=width, map=size, failed=failed)
