"""`univip-stream eval knn|linear|finetune`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.api.judging import Finetune, Knn, Linear
from univip_stream.api.judging import evaluate as judge
from univip_stream.cli.judging import (
    learning_rate_option,
    print_left_out,
    running_options,
    source_options,
    subject_argument,
)
from univip_stream.evaluation.linear import PROTOCOLS

_CACHE = click.option(
    "--cache",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder that keeps features computed once.  [default: the run's folder]",
)


@click.command()
@subject_argument
@source_options
@click.option("--k", default=20, show_default=True, type=click.IntRange(min=1), help="Neighbours that vote.")
@click.option("--temperature", default=0.07, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="A vote has the weight exp(cosine / temperature).")  # fmt: skip
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Images a forward pass.")
@click.option("--untrained", is_flag=True, help="Also score the same network untrained: the floor to compare with.")
@_CACHE
@running_options
def knn(
    run: str,
    train: str,
    val: str,
    max_pixels: int,
    k: int,
    temperature: float,
    batch_size: int,
    untrained: bool,
    cache: Path | None,
    image_size: int | None,
    workers: int | None,
    device: str,
    max_failures: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Classify --val images by their nearest --train images in the features of RUN.

    RUN is a run folder, a checkpoint or a backbone.safetensors. The backbone is frozen, in evaluation mode; images are resized
    so that the short side is 256/224 of --image-size, and the centre is cropped.

    \b
    univip-stream eval knn runs/coco --train imagenet/train --val imagenet/val
    """
    config = Knn(
        run=run, train=train, val=val, max_pixels=max_pixels, image_size=image_size, workers=workers, device=device,
        max_failures=max_failures, out=out, k=k, temperature=temperature, batch_size=batch_size, untrained=untrained, cache=cache,
    )  # fmt: skip
    result = judge(config, quiet=quiet)
    if result is None:
        return
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"kNN top-1 {result['top1']:.3f}  (chance {result['chance']:.3f}, {result['classes']} classes, "
               f"{result['val_images']} images judged by {result['train_images']}, k {result['k']})")  # fmt: skip
    if untrained:
        click.echo(f"the same network untrained: {result['untrained']['top1']:.3f}")
    print_left_out(result)


@click.command()
@subject_argument
@source_options
@click.option("--protocol", type=click.Choice([*PROTOCOLS]), help="[default: the paper's for RUN's recipe, else features]")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the training images.  [default: the protocol's]")
@learning_rate_option(
    "rates", "Learning rate to try, at a batch of 256; may be repeated.  [default: the protocol's]", multiple=True, type=float
)
@click.option("--batch-size", type=click.IntRange(min=2), help="Images of an update.  [default: the protocol's]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Decides every random choice.")
@_CACHE
@running_options
def linear(
    run: str,
    train: str,
    val: str,
    max_pixels: int,
    protocol: str | None,
    epochs: int | None,
    rates: tuple[float, ...],
    batch_size: int | None,
    seed: int,
    cache: Path | None,
    image_size: int | None,
    workers: int | None,
    device: str,
    max_failures: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Train a linear classifier on the frozen features of RUN.

    All learning rates are tried at once, each with its own classifier. The best is chosen on held-out training images, and
    only then judged by --val; with one rate nothing is held out. Protocols: byol (the paper's for ImageNet), orl (for COCO: a
    classifier on each depth of a ResNet, the result is the last's), orl-last, features (central crops, computed once: minutes
    instead of hours). With --out, an interrupted command continues from the last epoch when it is run again.

    \b
    univip-stream eval linear runs/coco --train imagenet/train --val imagenet/val
    univip-stream eval linear runs/mine --train labelled/train --val labelled/val --protocol features
    """
    config = Linear(
        run=run, train=train, val=val, max_pixels=max_pixels, image_size=image_size, workers=workers, device=device,
        max_failures=max_failures, out=out, protocol=protocol, epochs=epochs, rates=rates, batch_size=batch_size, seed=seed,
        cache=cache,
    )  # fmt: skip
    result = judge(config, quiet=quiet)
    if result is None:
        return
    if as_json:
        click.echo(json.dumps(result))
        return
    how = f", chosen on {result['held_out']} held-out training images" if result["held_out"] else ""
    click.echo(f"linear top-1 {result['top1']:.3f}, top-5 {result['top5']:.3f}  "
               f"(rate {result['rate']:g}{how}; chance {result['chance']:.3f})")  # fmt: skip
    for row in result["rates"] if result["held_out"] else []:
        click.echo(f"  rate {row['rate']:<8g} held out {row['held_out_top1']:.3f}  top-1 {row['top1']:.3f}")
    for name, row in result.get("layers", {}).items():
        click.echo(f"  {name:8} top-1 {row['top1']:.3f}, top-5 {row['top5']:.3f}")
    print_left_out(result)


@click.command()
@subject_argument
@source_options
@click.option(
    "--fraction",
    metavar="SHARE",
    help="Share of the labels of each class that is used: 1%, 10%, 0.2.  [default: 1%; with --subset the share that it has]",
)
@click.option("--subset", type=click.Path(path_type=Path, dir_okay=False), help="List of labelled images, SimCLR's, instead.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the labelled images.  [default: 20]")
@learning_rate_option(
    "rates",
    "Learning rate of the backbone to try; may be repeated.  [default: 0.1 0.01 0.001]",
    multiple=True,
    type=float,
)
@click.option("--multiplier", "multipliers", multiple=True, type=float,
              help="The head's learning rate as a multiple of the backbone's; may be repeated.  [default: 1 10 100]")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=2), help="Images of an update.  [default: 256]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1), help="Decides every random choice.")
@running_options
def finetune(
    run: str,
    train: str,
    val: str,
    max_pixels: int,
    fraction: str | None,
    subset: Path | None,
    epochs: int | None,
    rates: tuple[float, ...],
    multipliers: tuple[float, ...],
    batch_size: int | None,
    seed: int,
    image_size: int | None,
    workers: int | None,
    device: str,
    max_failures: str,
    out: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Fine-tune all of RUN's backbone on a share of the labels.

    Every pair of rates is tried with some labelled images held out; the pair that is best on those trains once more, on all
    labelled images, and is judged by --val. With one pair nothing is held out. With --out, an interrupted command continues
    with the next pair when it is run again.

    \b
    univip-stream eval finetune runs/in1k --fraction 1% --train imagenet/train --val imagenet/val
    univip-stream eval finetune runs/in1k --fraction 10% --subset 10percent.txt --train imagenet/train --val imagenet/val
    """
    config = Finetune(
        run=run, train=train, val=val, max_pixels=max_pixels, image_size=image_size, workers=workers, device=device,
        max_failures=max_failures, out=out, fraction=fraction, subset=subset, epochs=epochs, rates=rates, multipliers=multipliers,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    result = judge(config, quiet=quiet)
    if result is None:
        return
    if as_json:
        click.echo(json.dumps(result))
        return
    how = f", chosen by {result['chosen_by']}" if result["pairs"] else ""
    click.echo(
        f"fine-tuned top-1 {result['top1']:.3f}, top-5 {result['top5']:.3f}, trained on {result['labelled']} labelled images  "
        f"(rate {result['rate']:g} x {result['multiplier']:g}{how}; chance {result['chance']:.3f})"
    )
    print_left_out(result)
