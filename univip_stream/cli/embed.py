"""`univip-stream embed`: parse, call, print."""

from pathlib import Path

import click

from univip_stream.cli.judging import reading_workers, run_argument, tell
from univip_stream.cli.progress import Progress
from univip_stream.distributed import joined, pick_device, place_from_environment
from univip_stream.evaluation.embedding import embed as embed_source
from univip_stream.evaluation.subject import open_subject
from univip_stream.probe.labelled import ImageSource


@click.command()
@run_argument
@click.argument("source")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file.")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS",
              help="Side of the central crops.  [default: the run's scene size]")  # fmt: skip
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Images a forward pass.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read images.  [default: a CPU less than there are]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def embed(
    run: Path,
    source: str,
    out: Path,
    image_size: int | None,
    batch_size: int,
    workers: int | None,
    device: str,
    quiet: bool,
) -> None:
    """Features of the images of SOURCE by the backbone of RUN: a row an image, with key, label and vector.

    SOURCE is a folder, a list, or shards; it needs no labels. Killed, the same command does what is missing; under torchrun
    the ranks share the work.

    \b
    univip-stream embed runs/coco photos/ --out features.parquet
    torchrun --nproc-per-node 8 -m univip_stream embed runs/coco 'shards/<000..127>.tar' --out features.parquet
    """
    images = ImageSource(source)
    tell(images.notes, quiet=quiet)
    subject = open_subject(run, image_size=image_size)
    place = place_from_environment()
    where = pick_device(device, place)
    total = len(images)
    with (
        joined(place, where),
        Progress(f"features of {source}", total, unit="images", quiet=quiet or not place.is_first) as bar,
    ):
        embed_source(
            subject, images, out, batch_size=batch_size, workers=reading_workers(workers), device=where, place=place,
            progress=bar.add,
        )  # fmt: skip
    if place.is_first and not quiet:
        click.echo(f"{out}: {total} images, {subject.backbone.width} numbers each")
