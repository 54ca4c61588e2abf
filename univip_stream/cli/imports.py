"""`univip-stream import`: make shards from boxes that others published."""

import click

from univip_stream.cli.lazy import Command, LazyGroup

KINDS = {
    "boxes": Command("univip_stream.cli.import_boxes:boxes", "Published files of boxes -> shards, without mining."),
}


@click.group("import", cls=LazyGroup, table=KINDS)
def imports() -> None:
    """Make shards from what others published.

    \b
    univip-stream import boxes boxes.json --format coco --src photos --out shards/
    """
