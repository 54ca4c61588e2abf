"""`univip-stream export`: write weights, boxes and model cards for other software."""

import click

from univip_stream.cli.lazy import Command, LazyGroup

KINDS = {
    "backbone": Command(
        "univip_stream.cli.export_backbone:backbone", "Weights for torchvision, timm, Detectron2, MMDetection."
    ),
    "card": Command("univip_stream.cli.export_card:card", "A model card of a run, to be finished by you."),
    "boxes": Command("univip_stream.cli.export_boxes:boxes", "Boxes for ORL, SoCo, DETReg, Detectron2, COCO, ..."),
}


@click.group(cls=LazyGroup, table=KINDS)
def export() -> None:
    """Write files that other software reads.

    \b
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    univip-stream export card runs/coco --out MODEL_CARD.md
    univip-stream export boxes shards/ --format coco --out boxes.json
    """
