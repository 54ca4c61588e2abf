"""`univip-stream inspect`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.cli.progress import Progress


@click.command()
@click.argument("shards", nargs=-1, required=True)
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The page that is written."
)
@click.option(
    "--png", "sheets", type=click.Path(path_type=Path, file_okay=False), help="Also contact sheets, into this folder."
)
@click.option(
    "--samples", type=click.IntRange(min=0), default=48, show_default=True, help="Images that chance chooses, beside the odd."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of that choice, of views and augmentations."
)
@click.option("--cache", type=click.Path(path_type=Path), help="Where remote shards come to.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def inspect(
    shards: tuple[str, ...],
    page: Path,
    sheets: Path | None,
    samples: int,
    seed: int,
    cache: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Look at SHARDS: one page with images, boxes, views and instances, distributions, and what is odd.

    The numbers are of all images, the pictures of a sample and of the odd ones. The page needs nothing but itself. SHARDS are
    as for `train`, also remote, also of other programs.

    \b
    univip-stream inspect shards/ --html report.html
    univip-stream inspect 'shards/<000..127>.tar' --html report.html --png sheets/ --samples 100
    """
    from univip_stream.report import inspect as looking
    from univip_stream.report.survey import survey
    from univip_stream.shards import expand_shards, open_index
    from univip_stream.shards.cache import Cache

    index = open_index(expand_shards(list(shards)), Cache(cache))
    found = survey(index, seed=seed)
    title = shards[0] if len(shards) == 1 else f"{shards[0]} and {len(shards) - 1} more"
    with Progress("looking", len(looking.chosen(found, samples, seed)), unit="images", quiet=quiet) as bar:
        facts = looking.write_page(found, page, title=title, samples=samples, seed=seed, sheets=sheets, progress=bar.add)
    if as_json:
        click.echo(json.dumps(facts | {"page": str(page)}))
        return
    failed = sum(facts["failed"].values())
    click.echo(
        f"{page}: {facts['images']} images in {facts['shards']} shards, {facts['boxes_per_image']} boxes an image, "
        f"{facts['without_boxes']} without, {failed} could not be used; {facts['shown']} images shown"
    )
    for sheet in facts["sheets"]:
        click.echo(sheet)
