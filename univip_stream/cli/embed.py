"""`univip-stream embed`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.api.embedding import EmbedConfig
from univip_stream.api.embedding import embed as run_embedding
from univip_stream.cli.judging import MOST_LISTED, limit_option, max_failures_option, run_argument
from univip_stream.cli.options import LocalPath
from univip_stream.distributed import process_from_environment
from univip_stream.failures import as_json as failures_as_json
from univip_stream.failures import listed


@click.command()
@run_argument
@click.argument("source")
@click.option(
    "--out",
    required=True,
    type=LocalPath(click.Path(path_type=Path), may_be_folder=True),
    help="The Parquet file; with --dense a folder.",
)
@click.option("--dense", is_flag=True, help="A map of features, height x width x channels, instead of one vector an image.")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS",
              help="Side of the central crops.  [default: the run's scene size]")  # fmt: skip
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Images a forward pass.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read images.  [default: a CPU less than there are]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@max_failures_option("")
@limit_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written, and what was left out, as JSON.")
def embed(
    run: Path,
    source: str,
    out: Path,
    dense: bool,
    image_size: int | None,
    batch_size: int,
    workers: int | None,
    device: str,
    max_failures: str,
    quiet: bool,
    as_json: bool,
    max_pixels: int,
) -> None:
    """Write the features that the backbone of RUN computes for the images of SOURCE, one row per image.

    Columns: key, label, vector, status and reason. SOURCE is a folder, a list, or shards; it needs no labels. An image that
    cannot be read gets a row with its reason and no vector (null). After an interruption, the same command does what is
    missing; under torchrun the ranks share the work.

    With --dense, OUT is a folder: arrays 000000.npy of images x height x width x channels in float32, 256 images each, beside
    each a 000000.parquet (key, label, row of the array, the part of the image: x, y, width, height, status, reason), and
    maps.json when all is there.

    \b
    univip-stream embed runs/coco photos/ --out features.parquet
    univip-stream embed runs/coco photos/ --dense --out maps/
    torchrun --nproc-per-node 8 -m univip_stream embed runs/coco 'shards/<000..127>.tar' --out features.parquet
    """
    config = EmbedConfig(
        run=run, source=source, out=out, dense=dense, image_size=image_size, batch_size=batch_size, workers=workers, device=device,
        max_failures=max_failures, max_pixels=max_pixels,
    )  # fmt: skip
    written = run_embedding(config, quiet=quiet)
    if not process_from_environment().is_first:
        return
    failed, total, width = written.failed, written.images, written.width
    if as_json:
        facts = {"out": str(out), "images": total, "features": total - len(failed), "width": width}
        facts |= {"map": [*written.map, width]} if written.map else {}
        click.echo(json.dumps(facts | {"failed": failures_as_json(failed)}))
    elif not quiet:
        each = f"maps of {written.map[0]} x {written.map[1]} x {width}" if written.map else f"{width} numbers"
        click.echo(f"{out}: {total} images, {each} each")
        if failed:
            click.echo(f"{len(failed)} of them cannot be used and have a reason instead:")
            for line in listed(failed, MOST_LISTED):
                click.echo(line)
