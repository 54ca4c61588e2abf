"""`univip-stream export backbone`: parse, call, print."""

from pathlib import Path

import click

from univip_stream.cli.judging import run_argument
from univip_stream.export.backbone import FORMATS, export_backbone
from univip_stream.pretrain import load_backbone


@click.command()
@run_argument
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS]), help="The library that is to read it.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The file.")
def backbone(run: Path, format: str, out: Path) -> None:
    """Write the backbone of RUN under the names of a library.

    For Detectron2 a YAML and for MMDetection a Python configuration is written beside it: RGB statistics, stride in the 3 x 3
    convolution, SyncBN, nothing frozen, as the paper trains them. It names the weights by their absolute path, so that it works
    from any folder. Detectron2 needs a name that ends in .pkl.

    \b
    univip-stream export backbone runs/coco --format timm --out univip-resnet50.pth
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    """
    network, config = load_backbone(run)
    written = export_backbone(network, config, format, out)
    click.echo(f"{written.tensors} tensors in {', '.join(map(str, written.files))}")
    click.echo(f"use: {written.use}")
