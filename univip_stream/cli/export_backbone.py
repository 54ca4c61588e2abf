"""`univip-stream export backbone`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.cli.judging import run_argument
from univip_stream.export.backbone import FORMATS, export_backbone
from univip_stream.files import written_by_one
from univip_stream.pretrain import load_backbone


@click.command()
@run_argument
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS]), help="The library that is to read it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backbone(run: Path, format: str, out: Path, quiet: bool, as_json: bool) -> None:
    """Write the backbone of RUN in the form that a library reads.

    For Detectron2 a YAML file and for MMDetection a Python configuration is written beside it: RGB statistics, stride in the
    3 x 3 convolution, SyncBN, nothing frozen, as the paper trains them. It names the weights by their absolute path, so it
    works from any folder. Detectron2 needs a name that ends in .pkl.

    \b
    univip-stream export backbone runs/coco --format timm --out univip-resnet50.pth
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    """
    network, config = load_backbone(run)
    with written_by_one(out):
        written = export_backbone(network, config, format, out)
    if as_json:
        click.echo(json.dumps({"files": list(map(str, written.files)), "tensors": written.tensors, "use": written.use}))
    elif not quiet:
        click.echo(f"{written.tensors} tensors in {', '.join(map(str, written.files))}")
        click.echo(f"use: {written.use}")
