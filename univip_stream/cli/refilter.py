"""`univip-stream refilter`: parse, call, print."""

import json

import click

from univip_stream.api.mining import summary
from univip_stream.api.progress import Progress
from univip_stream.cli.jobs import stop_on_sigterm, where_options
from univip_stream.errors import counted
from univip_stream.mining import RefilterConfig
from univip_stream.mining import refilter as run_refilter
from univip_stream.mining.job import Job


@click.command()
@click.argument("shards")
@click.option("--out", required=True, metavar="DIR", help="Where the new shards go: a folder, or s3://bucket/folder.")
@click.option(
    "--min-scale", type=click.IntRange(min=1), help="Shortest side kept, pixels.  [default: as mined, here and below]"
)
@click.option("--max-aspect", type=click.FloatRange(min=1), help="Longest side by shortest.")
@click.option("--max-iou", type=click.FloatRange(0, 1), help="Greatest overlap of two boxes.")
@click.option("--max-boxes", type=click.IntRange(min=1), metavar="N", help="Keep at most so many an image.")
@click.option(
    "--rank-by",
    metavar="RUN",
    help="Rank the candidates again first, by the features of a run's backbone: their parts alike, their surroundings unlike.",
)
@where_options
@click.option("--json", "as_json", is_flag=True, help="Print the new manifest's totals as JSON.")
def refilter(
    shards: str,
    out: str,
    min_scale: int | None,
    max_aspect: float | None,
    max_iou: float | None,
    max_boxes: int | None,
    rank_by: str | None,
    workers: int | None,
    address: str | None,
    inline: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Filter the candidates that SHARDS kept again: other boxes, the same images, without mining again.

    SHARDS is a folder of finished shards. Images are copied as they are. You can interrupt it at any time: the same command
    continues.

    RUN of --rank-by is a run folder, a checkpoint, a backbone.safetensors or a reference such as random:resnet18. Its
    features, without labels, have a say in the order of the candidates, so that the next run trains on other boxes.

    \b
    univip-stream refilter shards/ --min-scale 96 --max-boxes 100 --out shards-96/
    univip-stream refilter shards/ --rank-by runs/first --out shards-ranked/
    """
    ranking = None
    if rank_by is not None:
        from univip_stream.api.ranking import rank_by as ranking_of  # loads torch

        ranking = ranking_of(rank_by)
    config = RefilterConfig(
        shards=shards,
        out=out,
        min_scale=min_scale,
        max_aspect=max_aspect,
        max_iou=max_iou,
        max_boxes=max_boxes,
        rank_by=ranking,
        workers=workers,
        address=address,
        inline=inline,
    )
    bar: list[Progress] = []

    def planned(job: Job, finished: int) -> None:
        if not quiet:
            click.echo(f"{counted(job.images, 'image')} in {counted(len(job.names), 'shard')} -> {out}", err=True)
        bar.append(Progress("refiltering", job.images, unit="images", done=finished, quiet=quiet))

    with stop_on_sigterm("refilter"):
        try:
            manifest = run_refilter(config, planned=planned, progress=lambda images: bar[0].add(images))
        finally:
            for line in bar:
                line.__exit__(None, None, None)
    if as_json:
        click.echo(json.dumps({"out": out, **manifest.totals}))
    else:
        click.echo(summary(manifest))
