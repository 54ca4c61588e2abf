"""`univip-stream eval`: the protocols that judge a run."""

import json
import math
from pathlib import Path

import click

from univip_stream.errors import UsageError


@click.group()
def evaluate() -> None:
    """Judge the representation of a run or checkpoint.

    \b
    univip-stream eval knn runs/coco --train imagenet/train --val imagenet/val
    """


@evaluate.command()
@click.argument("run", type=click.Path(path_type=Path))
# What to judge on.
@click.option(
    "--train", required=True, metavar="SOURCE", help="Labelled reference images: a folder of class folders, or shards."
)
@click.option("--val", required=True, metavar="SOURCE", help="Labelled images to classify: the same classes.")
# How.
@click.option("--k", default=20, show_default=True, type=click.IntRange(min=1), help="Neighbours that vote.")
@click.option("--temperature", default=0.07, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="Votes weigh exp(cosine / temperature).")  # fmt: skip
@click.option(
    "--image-size",
    type=click.IntRange(8, 4096),
    help="Pixels of the square centre crop.  [default: the run's scene size]",
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Images a forward pass.")
@click.option("--untrained", is_flag=True, help="Also score the same network untrained: the floor to compare with.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
# Where the result goes.
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the result here as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def knn(
    run: Path,
    train: str,
    val: str,
    k: int,
    temperature: float,
    image_size: int | None,
    batch_size: int,
    untrained: bool,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Classify --val images by their nearest --train images in the features of RUN.

    RUN is a run folder or a checkpoint. The backbone is frozen, in evaluation mode; images are resized so that the short
    side is 256/224 of --image-size and cut to the centre.

    \b
    univip-stream eval knn runs/coco --train imagenet/train --val imagenet/val
    """
    from univip_stream.evaluation.protocols import knn_protocol
    from univip_stream.files import written_atomically
    from univip_stream.probe.knn import KnnConfig

    if not math.isfinite(temperature):
        raise UsageError(f"--temperature is {temperature}; expected a number above 0")
    result = knn_protocol(
        run,
        train,
        val,
        KnnConfig(k=k, temperature=temperature),
        image_size=image_size,
        batch_size=batch_size,
        device=device,
        untrained=untrained,
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with written_atomically(out) as file:
            file.write((json.dumps(result, indent=2) + "\n").encode())
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"kNN top-1 {result['top1']:.3f}  (chance {result['chance']:.3f}, {result['classes']} classes, "
               f"{result['val_images']} images judged by {result['train_images']}, k {result['k']})")  # fmt: skip
    if untrained:
        click.echo(f"the same network untrained: {result['untrained']['top1']:.3f}")
