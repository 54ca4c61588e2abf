"""`univip-stream explain`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.cli.judging import limit_option
from univip_stream.proposals import ENGINES


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The figure: .png, .svg, .pdf or .jpg."
)
@click.option(
    "--run", type=click.Path(path_type=Path), help="A run of UniVIP, or a checkpoint: its settings, and its transport plan."
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A run of any method, whose dense features are shown as colours.  [default: that of --run]",
)
@click.option(
    "--proposals",
    type=click.Choice(list(ENGINES)),
    default="selective-search",
    show_default=True,
    help="What proposes boxes.",
)
@click.option(
    "--min-scale", type=click.IntRange(min=1), default=64, show_default=True, help="Shortest side of a box, pixels."
)
@click.option("--max-aspect", type=click.FloatRange(min=1), default=3.0, show_default=True, help="Longest by shortest side.")
@click.option("--max-iou", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Overlap with a better box.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Decides views and augmentations.")
@limit_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the boxes, views and plan as JSON.")
def explain(
    image: Path,
    out: Path,
    run: Path | None,
    features: Path | None,
    proposals: str,
    min_scale: int,
    max_aspect: float,
    max_iou: float,
    seed: int,
    max_pixels: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Draw how the method processes IMAGE: Figures 1 (b) and 2 of the paper, for your own image.

    The figure shows proposals before and after the filter, the tries of Algorithm 1, the views and instances as the network
    sees them, and with --run the transport plan between online and target instances. With --run or --features, the last row
    shows the backbone's dense features of the whole image: their three main directions (PCA) as red, green and blue.

    \b
    univip-stream explain photos/beach.jpg --out beach.png
    univip-stream explain photos/beach.jpg --run runs/coco --out beach.png
    univip-stream explain photos/beach.jpg --features runs/byol --out beach.png
    """
    from univip_stream.boxes import BoxFilter
    from univip_stream.files import written_by_one
    from univip_stream.report import explain as explaining

    boxes = BoxFilter(min_scale=min_scale, max_aspect=max_aspect, max_iou=max_iou)
    found = explaining.explain(
        image, run=run, features=features, engine=proposals, boxes=boxes, seed=seed, max_pixels=max_pixels
    )
    with written_by_one(out):
        explaining.figure(found, out)
    if as_json:
        click.echo(json.dumps(found.facts()))
    elif not quiet:
        inputs, tries = found.inputs, len(found.inputs.tries)
        click.echo(
            f"{out}: {len(found.proposals)} proposals, {len(found.kept)} after the filter, {tries} "
            f"{'try' if tries == 1 else 'tries'}, {len(inputs.instances)} instances, {inputs.views.filled} of them random"
        )
