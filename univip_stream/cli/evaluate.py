"""`univip-stream eval`: the protocols that judge a run."""

import click

from univip_stream.cli.lazy import Command, LazyGroup

PROTOCOLS = {
    "knn": Command("univip_stream.cli.protocols:knn", "The nearest labelled images vote: quick, nothing is trained."),
    "linear": Command("univip_stream.cli.protocols:linear", "A linear classifier on frozen features."),
    "finetune": Command("univip_stream.cli.protocols:finetune", "The whole network, on few labels."),
    "svm": Command("univip_stream.cli.svm:svm", "Linear SVMs on frozen features, on VOC07."),
    "detect": Command("univip_stream.cli.detect:detect", "A detector around it, on COCO or VOC."),
}


@click.group(cls=LazyGroup, table=PROTOCOLS)
def evaluate() -> None:
    """Judge the representation of a run, a checkpoint or a backbone.safetensors; or, by --subject, of another network.

    \b
    univip-stream eval knn runs/coco --train imagenet/train --val imagenet/val
    univip-stream eval linear runs/coco --train imagenet/train --val imagenet/val --out runs/coco/eval/linear.json
    univip-stream eval linear --subject random:resnet50 --train imagenet/train --val imagenet/val --out random.json
    """
