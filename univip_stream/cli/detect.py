"""`univip-stream eval detect`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.api.detecting import Detect
from univip_stream.api.judging import evaluate
from univip_stream.boxes import FRAMES, UPRIGHT
from univip_stream.cli.judging import (
    learning_rate_option,
    limit_option,
    max_failures_option,
    out_option,
    print_left_out,
    subject_argument,
)
from univip_stream.evaluation.detection.models import MODELS
from univip_stream.evaluation.detection.protocol import SCHEDULES

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@subject_argument
# What to judge on.
@click.option("--train-json", type=_FILE, help="COCO's annotations of the images to learn from.")
@click.option("--train-images", type=_FOLDER, help="Their folder.")
@click.option("--val-json", type=_FILE, help="COCO's annotations of the images to judge by.")
@click.option("--val-images", type=_FOLDER, help="Their folder.")
@click.option("--voc", type=_FOLDER, help="A VOCdevkit instead: trainval of 2007 and 2012, judged by test 2007.")
@click.option("--box-frame", type=click.Choice(FRAMES), default=UPRIGHT, show_default=True,
              help="For photographs that EXIF turns: whether boxes are in the upright picture, as the annotators saw it, or in "
              "the pixels as stored. The same as in `mine --proposals ground-truth`.")  # fmt: skip
# How.
@click.option("--model", type=click.Choice(MODELS), help="[default: mask-rcnn; faster-rcnn with --voc]")
@click.option("--schedule", type=click.Choice([*SCHEDULES]), help="90, 180 or 540 thousand iterations.  [default: 1x]")
@click.option(
    "--iterations", type=click.IntRange(min=1), help="Any other number; the steps of the learning rate move with it."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Images of an update, over all ranks.  [default: 16]")
@learning_rate_option(
    "rate",
    "Peak learning rate.  [default: 0.02 x batch / 16; retinanet half of it]",
    type=click.FloatRange(min=0, min_open=True),
)
@click.option("--short-side", "sides", multiple=True, type=click.IntRange(32, 8192), metavar="PIXELS",
              help="Sides that training draws from; testing uses the last; may be repeated.  [default: 640 to 800]")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31), help="Decides every random choice.")
@limit_option
# Where to run, where the result goes.
@click.option("--save-every", default=2500, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Iterations between two states beside --out that a killed job goes on from.")  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(min=0), help="Processes that read images.  [default: a CPU less than there are]"
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@max_failures_option(" to learn from, and to judge by,")
@out_option
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def detect(
    run: str,
    train_json: Path | None,
    train_images: Path | None,
    val_json: Path | None,
    val_images: Path | None,
    voc: Path | None,
    box_frame: str,
    model: str | None,
    schedule: str | None,
    iterations: int | None,
    batch_size: int | None,
    rate: float | None,
    sides: tuple[int, ...],
    seed: int,
    save_every: int,
    max_pixels: int,
    workers: int | None,
    device: str,
    max_failures: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fine-tune a detector around the backbone of RUN and score it with pycocotools.

    Mask R-CNN, Faster R-CNN or RetinaNet with a feature pyramid, or the first two without one (-c4), of torchvision's parts;
    nothing frozen, batch normalisation over all ranks. With --voc, VOC's own AP is computed too. Killed with --out, the same
    command goes on from its last state.

    \b
    univip-stream eval detect runs/coco --train-json instances_train2017.json --train-images train2017 \\
        --val-json instances_val2017.json --val-images val2017 --out runs/coco/eval/mask-rcnn.json
    torchrun --nproc-per-node 8 -m univip_stream eval detect runs/coco --voc VOCdevkit --model faster-rcnn-c4
    """
    result = evaluate(
        Detect(
            run=run, train_json=train_json, train_images=train_images, val_json=val_json, val_images=val_images, voc=voc,
            box_frame=box_frame, model=model, schedule=schedule, iterations=iterations, batch_size=batch_size, rate=rate,
            sides=sides, seed=seed, save_every=save_every, workers=workers, device=device, max_failures=max_failures,
            max_pixels=max_pixels, out=out,
        ),
        quiet=quiet,
    )  # fmt: skip
    if result is None:
        return
    if as_json:
        click.echo(json.dumps(result))
        return
    for kind in ("bbox", "segm", "voc"):
        if kind in result:
            click.echo(f"{kind}: " + "  ".join(f"{name} {value:.3f}" for name, value in result[kind].items()))
    print_left_out(result)
