"""`univip-stream retrieve`: parse, call, print."""

from pathlib import Path

import click

from univip_stream.cli.judging import reading_workers, run_argument
from univip_stream.cli.progress import Progress
from univip_stream.distributed import ALONE, pick_device


@click.command()
@run_argument
@click.argument("shards")
@click.option(
    "--features", required=True, type=click.Path(path_type=Path), help="What `embed RUN SHARDS` wrote for the same shards."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The Parquet file of pairs.")
@click.option("--neighbours", default=10, show_default=True, type=click.IntRange(min=1), help="Nearest images of each.")
@click.option(
    "--share", default=0.1, show_default=True, type=click.FloatRange(0, 1), help="Pairs of two images, as a share of regions."
)
@click.option(
    "--max-boxes", default=100, show_default=True, type=click.IntRange(min=1), help="Regions of an image, the best."
)
@click.option("--batch-size", default=128, show_default=True, type=click.IntRange(min=1), help="Regions a forward pass.")
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read images.  [default: a CPU less than there are]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def retrieve(
    run: Path,
    shards: str,
    features: Path,
    out: Path,
    neighbours: int,
    share: float,
    max_boxes: int,
    batch_size: int,
    workers: int | None,
    device: str,
    quiet: bool,
) -> None:
    """Find regions of SHARDS that look alike in different images, by the backbone of RUN: what `train --method orl` needs.

    Stage 2 of ORL: RUN is of `train --method byol`. Killed, the same command goes on.

    \b
    univip-stream embed runs/byol shards/ --out features.parquet
    univip-stream retrieve runs/byol shards/ --features features.parquet --out pairs.parquet
    univip-stream train --shards shards/ --method orl --set views.pairs=pairs.parquet
    """
    from univip_stream.evaluation.retrieval import retrieve as find
    from univip_stream.evaluation.subject import open_subject
    from univip_stream.shards import expand_shards, open_index

    index = open_index(expand_shards(shards))
    with Progress(f"regions of {shards}", len(index), unit="images", quiet=quiet) as bar:
        pairs = find(
            open_subject(run), index, features, out, neighbours=neighbours, share=share, max_boxes=max_boxes,
            batch_size=batch_size, workers=reading_workers(workers), device=pick_device(device, ALONE), progress=bar.add,
        )  # fmt: skip
    if not quiet:
        click.echo(f"{out}: {pairs} pairs of regions, {neighbours} neighbours of each of {len(index)} images")
