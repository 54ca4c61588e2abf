"""`univip-stream export backbone`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.cli.judging import subject_argument
from univip_stream.export.backbone import FORMATS, export_backbone
from univip_stream.files import written_by_one
from univip_stream.pretrain.reference import judged_backbone


@click.command()
@subject_argument
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS]), help="The library that is to read it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file.")
@click.option("--table", type=click.IntRange(1, 13), metavar="N", help="Of detectron2: the table of the paper whose detector, "
              "schedule and data its configuration has: 2 to 5, 10 to 13.  [default: 2]")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backbone(run: str, format: str, out: Path, table: int | None, quiet: bool, as_json: bool) -> None:
    """Write the backbone of RUN in the form that a library reads.

    For Detectron2 a YAML file and for MMDetection a Python configuration is written beside it: RGB statistics, stride in the
    3 x 3 convolution, SyncBN, nothing frozen, as the paper trains them. It names the weights by their absolute path, so it
    works from any folder. Detectron2 needs a name that ends in .pkl; with --table it gets the configuration of another table than
    2 (of 5, three schedules), and for those without a pyramid (10 to 12) the program that knows MoCo's box head.

    \b
    univip-stream export backbone runs/coco --format timm --out univip-resnet50.pth
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    univip-stream export backbone runs/coco --format detectron2 --table 12 --out univip-voc.pkl
    """
    network, config = judged_backbone(run)
    with written_by_one(out):
        written = export_backbone(network, config, format, out, table=table)
    if as_json:
        click.echo(json.dumps({"files": list(map(str, written.files)), "tensors": written.tensors, "use": written.use}))
    elif not quiet:
        click.echo(f"{written.tensors} tensors in {', '.join(map(str, written.files))}")
        click.echo(f"use: {written.use}")
