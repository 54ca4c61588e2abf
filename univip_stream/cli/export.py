"""`univip-stream export`: what was learnt or mined, for other software."""

import click

from univip_stream.cli.lazy import Command, LazyGroup

KINDS = {
    "backbone": Command(
        "univip_stream.cli.export_backbone:backbone", "Weights for torchvision, timm, Detectron2, MMDetection."
    ),
    "boxes": Command("univip_stream.cli.export_boxes:boxes", "Boxes for ORL, SoCo, DETReg, Detectron2, COCO, ..."),
}


@click.group(cls=LazyGroup, table=KINDS)
def export() -> None:
    """Write what other software reads.

    \b
    univip-stream export backbone runs/coco --format detectron2 --out univip.pkl
    univip-stream export boxes shards/ --format coco --out boxes.json
    """
