"""`univip-stream export backbone`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.cli.judging import subject_argument
from univip_stream.cli.options import LocalPath
from univip_stream.errors import UsageError
from univip_stream.export.backbone import FORMATS, check_table, export_backbone
from univip_stream.export.huggingface import export_huggingface
from univip_stream.export.origin import carry_along
from univip_stream.files import written_by_one
from univip_stream.pretrain.reference import judged_backbone

HUB = "huggingface"


@click.command()
@subject_argument
@click.option("--format", "format", required=True, type=click.Choice([*FORMATS, HUB]), help="What is to read it.")
@click.option(
    "--out",
    required=True,
    type=LocalPath(click.Path(path_type=Path), may_be_folder=True),
    help="The file; for huggingface a new folder.",
)
@click.option("--table", type=click.IntRange(1, 13), metavar="N", help="Of detectron2: the table of the paper whose detector, "
              "schedule and data its configuration has: 2 to 5, 10 to 13.  [default: 2]")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def backbone(run: str, format: str, out: Path, table: int | None, quiet: bool, as_json: bool) -> None:
    """Write the backbone of RUN in the form that a library reads.

    For Detectron2 a YAML file and for MMDetection a Python configuration is written beside it: RGB statistics, stride in the
    3 x 3 convolution, SyncBN, nothing frozen, as the paper trains them. It names the weights by their absolute path, so it
    works from any folder. Detectron2 needs a name that ends in .pkl; with --table it gets the configuration of another table
    than 2 (of 5, three schedules), and for those without a pyramid (10 to 12) the program that knows MoCo's box head. Beside
    the weights a .provenance.json says where they come from, and `univip-stream verify` checks it.

    huggingface is a folder for the Hub, which timm and transformers load from there or from a disk, with the model card: places
    for what only you know are marked CHANGE: in it.

    \b
    univip-stream export backbone runs/coco --format timm --out univip-resnet50.pth
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    univip-stream export backbone runs/coco --format detectron2 --table 12 --out univip-voc.pkl
    univip-stream export backbone runs/coco --format huggingface --out univip-resnet50/
    """
    if format != HUB and out.is_dir():
        raise UsageError(f"--out {out} is a folder; expected a file, for --format {format}")
    check_table(format, table)  # before a library's weights are fetched
    network, config = judged_backbone(run)
    with written_by_one(out):
        if format == HUB:
            written = export_huggingface(network, config, Path(run), out)
        else:
            written = export_backbone(network, config, format, out, table=table)
        origin, why_not = carry_along(Path(run), network, written.files, format, out)
    if as_json:
        facts = {"files": list(map(str, written.files)), "tensors": written.tensors, "use": written.use}
        click.echo(json.dumps(facts | {"provenance": None if origin is None else str(origin)}))
    elif not quiet:
        click.echo(f"{written.tensors} tensors in {', '.join(map(str, written.files))}")
        click.echo(f"use: {written.use}")
        click.echo(f"no provenance beside it: {why_not}" if origin is None else f"where it comes from: {origin}")
