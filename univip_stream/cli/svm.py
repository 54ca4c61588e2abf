"""`univip-stream eval svm`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.api.running import reading_workers, sole_writer, write_result
from univip_stream.cli.judging import out_option, subject_argument
from univip_stream.distributed import ALONE, pick_device
from univip_stream.errors import UsageError
from univip_stream.evaluation.subject import open_subject
from univip_stream.evaluation.svm import COSTS, voc_svm


@click.command()
@subject_argument
@click.option(
    "--voc", "devkit", required=True, type=click.Path(path_type=Path, file_okay=False), help="A VOCdevkit with VOC2007."
)
@click.option(
    "--cost", "costs", multiple=True, type=float, help="Cost that a class may choose; may be repeated.  [default: ORL's 19]"
)
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Images a forward pass.")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PIXELS",
              help="Side that images are squeezed to.  [default: the run's scene size]")  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read and train.  [default: a CPU less than there are]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@out_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def svm(
    run: str,
    devkit: Path,
    costs: tuple[float, ...],
    batch_size: int,
    image_size: int | None,
    workers: int | None,
    device: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train linear SVMs on VOC07's trainval, on frozen features of RUN, and judge them on its test: mean AP.

    ORL's protocol: res5 pooled to 2 x 2 (8,192 features of a ResNet-50), a classifier for each class, its cost chosen by three
    folds of the training images. It needs scikit-learn.

    \b
    univip-stream eval svm runs/coco --voc VOCdevkit --out runs/coco/eval/svm.json
    """
    for cost in costs:
        if not 0 < cost < float("inf"):
            raise UsageError(f"--cost is {cost}; expected a number above 0")
    with sole_writer(out, ALONE):
        result = voc_svm(
            open_subject(run, image_size=image_size), devkit, costs=costs or COSTS, batch_size=batch_size,
            workers=reading_workers(workers), device=pick_device(device, ALONE),
            say=lambda line: None if quiet else click.echo(line, err=True),
        )  # fmt: skip
        write_result(result, out)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"VOC07 mAP {result['mAP']:.3f}  ({len(result['classes'])} classes, {result['features']} features)")
    if result["left_out"]:
        click.echo(f"left out, with too few images: {', '.join(result['left_out'])}")
