"""`univip-stream import boxes`: parse, call, print."""

import json
import os

import click

from univip_stream.api.mining import summary
from univip_stream.api.progress import Progress
from univip_stream.boxes import FRAMES, BoxFilter
from univip_stream.cli.export_boxes import print_some
from univip_stream.cli.jobs import stop_on_sigterm, where_options
from univip_stream.cli.web import parse_web, web_options
from univip_stream.errors import counted
from univip_stream.formats.registry import FORMATS, read_published
from univip_stream.mining import MiningConfig
from univip_stream.mining import mine as run_mining
from univip_stream.mining.pipeline import MiningPlan
from univip_stream.sources.coco import find_annotations
from univip_stream.storage import is_remote


@click.command()
@click.argument("file")
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS]), help="The repository whose file it is.")
@click.option("--src", "sources", required=True, multiple=True, metavar="SOURCE", help="The images, as for `mine`.")
@click.option("--out", required=True, metavar="DIR", help="Where the shards go: a folder, or s3://bucket/folder.")
@click.option(
    "--annotations",
    multiple=True,
    metavar="JSON",
    help="COCO's file: the order of ORL's boxes, and the images' ids, by which a list of results names them.  [default: that in "
    "../annotations]",
)
@click.option(
    "--box-frame",
    type=click.Choice(FRAMES),
    help="For photographs that EXIF turns, with coco: whether boxes are in the upright picture, or in the pixels as stored.  "
    "[default: upright]",
)
@click.option("--num-shards", type=click.IntRange(min=1), metavar="N", help="How many shards.  [default: as for `mine`]")
# Which boxes are trained on; all are kept as candidates.
@click.option("--min-scale", default=64, show_default=True, type=click.IntRange(min=1), help="Shortest side kept, pixels.")
@click.option("--max-aspect", default=3.0, show_default=True, type=click.FloatRange(min=1), help="Longest side by shortest.")
@click.option("--max-iou", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Greatest overlap of two boxes.")
@click.option("--max-boxes", type=click.IntRange(min=1), metavar="N", help="Keep at most so many an image.  [default: all]")
@click.option("--max-failures", default="1%", show_default=True, metavar="N|N%", help="Unreadable images that are allowed.")
@where_options
@web_options
@click.option("--json", "as_json", is_flag=True, help="Print the manifest's totals, and what did not match, as JSON.")
def boxes(
    file: str,
    format: str,
    sources: tuple[str, ...],
    out: str,
    annotations: tuple[str, ...],
    box_frame: str | None,
    num_shards: int | None,
    min_scale: int,
    max_aspect: float,
    max_iou: float,
    max_boxes: int | None,
    max_failures: str,
    workers: int | None,
    address: str | None,
    inline: bool,
    quiet: bool,
    http_headers: tuple[str, ...],
    user_agent: str,
    per_host: int,
    image_timeout: float,
    ignore_opt_out: bool,
    as_json: bool,
) -> None:
    """Make shards from images and the published boxes in FILE, without mining.

    FILE is a file, or a folder of .npy for detreg and siamesedetr. For coco it is an instances file, or a list of results
    ([{image_id, category_id, bbox, score}, ...]), which is ranked by its scores. All its boxes become candidates, and the filter
    chooses among them, as after mining. An image without an entry becomes a sample without boxes and is listed; an entry
    without an image is listed too. You can interrupt it at any time: the same command continues.

    \b
    univip-stream import boxes train_ratio3size0308post.json --format soco --src imagenet/train --out shards/
    """
    order = annotations or tuple(found for source in sources if format == "orl" and (found := find_annotations(source)))
    published = read_published(file, format, order)
    # With a tar, annotations only give the order of ORL's boxes.
    of_folders = all(os.path.isdir(source) or is_remote(source) for source in sources)
    config = MiningConfig(
        sources=sources,
        annotations=annotations if of_folders or format != "orl" else (),
        out=out,
        num_shards=num_shards,
        published=published,
        box_frame=box_frame,
        filter=BoxFilter(min_scale=min_scale, max_aspect=max_aspect, max_iou=max_iou, max_boxes=max_boxes),
        max_failures=max_failures,
        workers=workers,
        address=address,
        inline=inline,
        web=parse_web(http_headers, user_agent, per_host, image_timeout, ignore_opt_out),
    )
    bar: list[Progress] = []

    def planned(plan: MiningPlan, finished: int) -> None:
        images, shards = counted(plan.job.images, "image"), counted(len(plan.job.names), "shard")
        if not quiet:
            click.echo(f"{images}, {len(published)} entries -> {shards} in {out}", err=True)
        bar.append(Progress("importing", plan.job.images, unit="images", done=finished, quiet=quiet))

    with stop_on_sigterm("import"):
        try:
            report = run_mining(config, planned=planned, progress=lambda images: bar[0].add(images))
        finally:
            for line in bar:
                line.__exit__(None, None, None)
    match = report.match
    assert match is not None
    if as_json:
        unmatched = {"images_without_entry": match.without_entry, "entries_without_image": match.without_image}
        notes = {"notes": report.notes} if report.notes else {}
        click.echo(json.dumps({"out": out, **report.manifest.totals, "entries": match.entries, **unmatched, **notes}))
        return
    click.echo(summary(report.manifest))
    for note in report.notes:
        click.echo(note)
    print_some("images without an entry, which have no boxes", match.without_entry)
    print_some("entries without an image, which are not used", match.without_image)
    print_some("images that are not samples", [f"{source}: {status}: {reason}" for source, status, reason in report.failures])
