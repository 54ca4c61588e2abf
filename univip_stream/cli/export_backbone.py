"""`univip-stream export backbone`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.cli.judging import run_argument
from univip_stream.cli.options import LocalPath
from univip_stream.export.backbone import FORMATS, export_backbone
from univip_stream.export.huggingface import export_huggingface
from univip_stream.export.origin import carry_along
from univip_stream.files import written_by_one
from univip_stream.pretrain import load_backbone

HUB = "huggingface"


@click.command()
@run_argument
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS, HUB]), help="What is to read it.")
@click.option(
    "--out",
    required=True,
    type=LocalPath(click.Path(path_type=Path), may_be_folder=True),
    help="The file; for huggingface a new folder.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backbone(run: Path, format: str, out: Path, quiet: bool, as_json: bool) -> None:
    """Write the backbone of RUN in the form that a library reads.

    For Detectron2 a YAML file and for MMDetection a Python configuration is written beside it: RGB statistics, stride in the
    3 x 3 convolution, SyncBN, nothing frozen, as the paper trains them. It names the weights by their absolute path, so it
    works from any folder. Detectron2 needs a name that ends in .pkl. Beside the weights a .provenance.json says where they come
    from, and `univip-stream verify` checks it.

    huggingface is a folder for the Hub, which timm and transformers load from there or from a disk, with the model card: places
    for what only you know are marked CHANGE: in it.

    \b
    univip-stream export backbone runs/coco --format timm --out univip-resnet50.pth
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    univip-stream export backbone runs/coco --format huggingface --out univip-resnet50/
    """
    network, config = load_backbone(run)
    with written_by_one(out):
        hub = format == HUB
        written = export_huggingface(network, config, run, out) if hub else export_backbone(network, config, format, out)
        origin, why_not = carry_along(run, network, written.files, format, out)
    if as_json:
        facts = {"files": list(map(str, written.files)), "tensors": written.tensors, "use": written.use}
        click.echo(json.dumps(facts | {"provenance": None if origin is None else str(origin)}))
    elif not quiet:
        click.echo(f"{written.tensors} tensors in {', '.join(map(str, written.files))}")
        click.echo(f"use: {written.use}")
        click.echo(f"no provenance beside it: {why_not}" if origin is None else f"where it comes from: {origin}")
