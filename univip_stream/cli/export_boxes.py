"""`univip-stream export boxes`: parse, call, print."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import click

from univip_stream.api.progress import Progress
from univip_stream.boxes import FRAMES
from univip_stream.errors import counted
from univip_stream.export.boxes import export_boxes
from univip_stream.files import written_by_one
from univip_stream.formats.registry import FORMATS
from univip_stream.storage import is_remote


@click.command()
@click.argument("shards")
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS]), help="The repository that is to read it.")
@click.option("--out", required=True, metavar="PATH", help="The file; a folder for soco, detreg, siamesedetr.")
@click.option(
    "--annotations",
    multiple=True,
    metavar="JSON",
    help="COCO's file: gives the order of ORL's boxes, and image ids where the shards have none. ORL's COCO+: repeat it.",
)
@click.option(
    "--box-frame",
    type=click.Choice(FRAMES),
    help="For photographs that EXIF turns, with coco: whether boxes, width and height are in the upright picture, or in the "
    "pixels as stored. The other formats follow their reader.  [default: upright]",
)
# Other boxes than the target's own choice.
@click.option("--min-scale", type=click.IntRange(min=1), help="Shortest side kept, pixels.  [default: the target's own, here "
              "and below]")  # fmt: skip
@click.option("--max-aspect", type=click.FloatRange(min=1), help="Longest side by shortest.")
@click.option("--min-size", type=click.FloatRange(0, 1), help="Least square root of a box's share of the image's area.")
@click.option("--max-size", type=click.FloatRange(0, 1), help="Greatest square root of it.")
@click.option("--max-iou", type=click.FloatRange(0, 1), help="Greatest overlap of two boxes; 1 keeps all.")
@click.option("--max-boxes", type=click.IntRange(min=1), metavar="N", help="Keep at most so many an image.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def boxes(
    shards: str,
    format: str,
    out: str,
    annotations: tuple[str, ...],
    box_frame: str | None,
    min_scale: int | None,
    max_aspect: float | None,
    min_size: float | None,
    max_size: float | None,
    max_iou: float | None,
    max_boxes: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write the boxes of SHARDS as other repositories read them.

    SHARDS is a folder of finished shards. Each format gets its own choice of the candidates that mining kept: ORL, DETReg,
    SiameseDETR and Detectron2 get all of them, SoCo and AlignDet those that pass their own filters, coco the filtered boxes of
    the shards. Nothing is mined again. SoCo reads images from train.zip, or from trainunlabeled2017.zip with its --dataset COCO,
    beside the files written here.

    Images are read from the indexes as they are written: memory is 8 bytes an image, with orl all names of the annotation file.

    \b
    univip-stream export boxes shards/ --format soco --out imagenet/
    univip-stream export boxes shards/ --format orl --annotations coco/annotations/instances_train2017.json --out orl.json
    """
    overrides = {
        "min_scale": min_scale, "max_aspect": max_aspect, "min_size": min_size, "max_size": max_size, "max_iou": max_iou,
        "max_boxes": max_boxes,
    }  # fmt: skip
    bar: list[Progress] = []
    try:
        with nullcontext() if is_remote(out) else written_by_one(Path(out)):
            written = export_boxes(
                shards,
                format,
                out,
                annotations=annotations,
                box_frame=box_frame,
                overrides=overrides,
                planned=lambda images: bar.append(Progress("exporting", images, unit="images", quiet=quiet)),
                progress=lambda images: bar[0].add(images),
            )
    finally:
        for line in bar:
            line.__exit__(None, None, None)
    if as_json:
        click.echo(json.dumps({"out": out, "format": format, **asdict(written)}))
        return
    empty = f", {written.without_boxes} of them without" if written.without_boxes else ""
    click.echo(f"boxes of {counted(written.images, 'image')}{empty}: {written.boxes} in {', '.join(written.files)}")
    print_some("had no box and got one, because ORL reads none without", written.filled)
    print_some("left out", [f"{source}: {reason}" for source, reason in written.left_out])


def print_some(what: str, names: list[str]) -> None:
    """Print how many names there are, and the first ten of them."""
    if names:
        click.echo(f"{len(names)} {what}:")
        for name in names[:10]:
            click.echo(f"  {name}")
        if len(names) > 10:
            click.echo(f"  and {len(names) - 10} more (--json lists them all)")
