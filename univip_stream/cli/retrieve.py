"""`univip-stream retrieve`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.api.progress import Progress
from univip_stream.api.running import reading_workers, sole_writer
from univip_stream.cli.judging import (
    MOST_LISTED,
    limit_option,
    max_failures_option,
    print_notes,
    run_argument,
)
from univip_stream.distributed import joined, pick_device, process_from_environment
from univip_stream.evaluation.retrieval import Retrieval
from univip_stream.evaluation.subject import open_subject
from univip_stream.failures import as_json as failures_as_json
from univip_stream.failures import listed
from univip_stream.shards import expand_shards, open_index


@click.command()
@run_argument
@click.argument("shards")
@click.option("--features", required=True, type=click.Path(path_type=Path),
              help="Features of the same shards, as `univip-stream embed` wrote them.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Parquet file.")
@click.option(
    "--neighbours", default=10, show_default=True, type=click.IntRange(min=1), help="Images that each is paired with."
)
@click.option("--share", default=0.1, show_default=True, type=click.FloatRange(0, 1, min_open=True),
              help="Pairs kept with each neighbour, by the image's number of boxes; at least one.")  # fmt: skip
@click.option("--max-boxes", default=100, show_default=True, type=click.IntRange(min=1), help="Boxes of an image, the best.")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS",
              help="Side that regions are resized to.  [default: the run's scene size]")  # fmt: skip
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Regions a forward pass.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read images.  [default: a CPU less than there are]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@max_failures_option("")
@limit_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written, and what was left out, as JSON.")
def retrieve(
    run: Path,
    shards: str,
    features: Path,
    out: Path,
    neighbours: int,
    share: float,
    max_boxes: int,
    image_size: int | None,
    batch_size: int,
    workers: int | None,
    device: str,
    max_failures: str,
    max_pixels: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Pair boxes that the backbone of RUN finds similar, in similar images of SHARDS: `--method orl` trains on them.

    Images are compared by FEATURES, boxes by features computed here. After an interruption, the same command does what is
    missing; under torchrun the ranks share the work. An image that cannot be read is not paired with others. OUT names images
    and boxes of exactly these SHARDS, so choose their boxes (`refilter`) before `embed`, and give `embed`, `retrieve` and
    `train` the same SHARDS.

    \b
    univip-stream refilter shards/ --min-scale 96 --max-boxes 100 --out shards-96/
    univip-stream train --method byol --shards shards-96/ --out runs/byol
    univip-stream embed runs/byol shards-96/ --out features.parquet
    univip-stream retrieve runs/byol shards-96/ --features features.parquet --out pairs.parquet
    univip-stream train --method orl --shards shards-96/ --set views.pairs=pairs.parquet --out runs/orl
    """
    index = open_index(expand_shards(shards), max_pixels=max_pixels)
    print_notes(index.notes, quiet=quiet)
    subject = open_subject(run, image_size=image_size)
    process = process_from_environment()
    where = pick_device(device, process)
    silent = quiet or not process.is_first
    with sole_writer(out, process), joined(process, where):
        found = Retrieval(
            subject, index, features, out, neighbours=neighbours, share=share, max_boxes=max_boxes, process=process,
            max_failures=max_failures,
        )  # fmt: skip
        with Progress(f"regions of {shards}", len(index), unit="images", quiet=silent) as bar:
            found.embed_regions(batch_size=batch_size, workers=reading_workers(workers), device=where, progress=bar.add)
        with Progress("pairs", len(index), unit="images", quiet=silent) as bar:
            found.match(device=where, progress=bar.add)
        found.write()
    failed = list(found.failed.values())
    if as_json and process.is_first:
        facts = {"out": str(out), "images": len(index), "neighbours": found.neighbours}
        click.echo(json.dumps(facts | {"failed": failures_as_json(failed)}))
    elif not silent:
        click.echo(f"{out}: {len(index)} images, {found.neighbours} neighbours each")
        if failed:
            click.echo(f"{len(failed)} of them cannot be read; each is paired with itself, and nobody's neighbour:")
            for line in listed(failed, MOST_LISTED):
                click.echo(line)
