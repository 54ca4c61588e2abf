"""`univip-stream eval detect`: parse, call, print."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from univip_stream.api.judging import reading_workers, sole_writer, write_result
from univip_stream.api.progress import duration
from univip_stream.boxes import FRAMES, UPRIGHT
from univip_stream.cli.judging import (
    learning_rate_option,
    limit_option,
    max_failures_option,
    out_option,
    print_left_out,
    subject_argument,
)
from univip_stream.distributed import joined, pick_device, process_from_environment
from univip_stream.errors import UsageError, counted
from univip_stream.evaluation.detection.data import DetectionSet, read_coco, read_voc
from univip_stream.evaluation.detection.models import MODELS
from univip_stream.evaluation.detection.protocol import SCHEDULES, DetectionProtocol, rate_for, voc
from univip_stream.evaluation.detection.protocol import detect as detect_with
from univip_stream.evaluation.subject import open_subject

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_PROGRESS_EVERY = 5.0
"""Seconds between two progress lines."""


@click.command()
@subject_argument
# What to judge on.
@click.option("--train-json", type=_FILE, help="COCO's annotations of the images to learn from.")
@click.option("--train-images", type=_FOLDER, help="Their folder.")
@click.option("--val-json", type=_FILE, help="COCO's annotations of the images to judge by.")
@click.option("--val-images", type=_FOLDER, help="Their folder.")
@click.option("--voc", "devkit", type=_FOLDER, help="A VOCdevkit instead: trainval of 2007 and 2012, judged by test 2007.")
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
    "lr",
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
    devkit: Path | None,
    box_frame: str,
    model: str | None,
    schedule: str | None,
    iterations: int | None,
    batch_size: int | None,
    lr: float | None,
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
    if schedule is not None and iterations is not None:
        raise UsageError("--schedule and --iterations both say how long to train; expected one of them")
    train, val = _sets(devkit, train_json, train_images, val_json, val_images, box_frame)
    train.max_pixels = val.max_pixels = max_pixels
    given: dict[str, Any] = {
        "model": model, "iterations": iterations or (SCHEDULES[schedule] if schedule else None), "batch_size": batch_size,
        "sides": sides or None, "seed": seed,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    protocol = voc(**given) if devkit else DetectionProtocol(**given)
    protocol = replace(protocol, rate=lr or rate_for(protocol.model, protocol.batch_size))
    subject = open_subject(run)
    process = process_from_environment()
    where = pick_device(device, process)
    began, last_printed = time.monotonic(), 0.0
    first: int | None = None

    def say(line: str) -> None:
        if process.is_first and not quiet:
            click.echo(line, err=True)

    def progress(iteration: int, loss: float) -> None:
        nonlocal last_printed, first
        first = iteration - 1 if first is None else first
        now = time.monotonic()
        if now - last_printed >= _PROGRESS_EVERY or iteration == protocol.iterations:
            last_printed = now
            left = (protocol.iterations - iteration) * (now - began) / (iteration - first)
            say(f"iteration {iteration}/{protocol.iterations}  loss {loss:.3f}  {duration(left)} left")

    say(
        f"{protocol.model} from {run}: {len(train)} images, {len(train.categories)} categories; batch {protocol.batch_size}, "
        f"rate {protocol.rate:g}, {counted(protocol.iterations, 'iteration')}; judged by {counted(len(val), 'image')}"
    )
    for note in dict.fromkeys([*train.notes, *val.notes]):
        say(note)
    try:
        with sole_writer(out, process), joined(process, where):
            result = detect_with(
                subject, train, val, protocol, out=out, save_every=save_every, workers=reading_workers(workers), device=where,
                process=process, max_failures=max_failures, progress=progress, say=say,
            )  # fmt: skip
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UsageError(
            f"a batch of {protocol.batch_size} images with a short side of {min(protocol.sides)} px leaves batch normalisation a "
            "single value; expected a larger --batch-size or --short-side"
        ) from error
    if not process.is_first:
        return
    write_result(result, out)
    if as_json:
        click.echo(json.dumps(result))
        return
    for kind in ("bbox", "segm", "voc"):
        if kind in result:
            click.echo(f"{kind}: " + "  ".join(f"{name} {value:.3f}" for name, value in result[kind].items()))
    print_left_out(result)


def _sets(
    devkit: Path | None,
    train_json: Path | None,
    train_images: Path | None,
    val_json: Path | None,
    val_images: Path | None,
    box_frame: str,
) -> tuple[DetectionSet, DetectionSet]:
    named = (train_json, train_images, val_json, val_images)
    if devkit is not None:
        if any(named):
            raise UsageError("--voc and COCO's files are both given; expected one of them")
        train = read_voc(devkit, [("2007", "trainval"), ("2012", "trainval")], box_frame=box_frame)
        return train, read_voc(devkit, [("2007", "test")], box_frame=box_frame)
    if train_json is None or train_images is None or val_json is None or val_images is None:
        raise UsageError("expected --train-json, --train-images, --val-json and --val-images, or --voc")
    return read_coco(train_json, train_images, box_frame=box_frame), read_coco(val_json, val_images, box_frame=box_frame)
