"""`univip-stream export card`: parse, call, print."""

import json
from pathlib import Path

import click

from univip_stream.export.card import MARK, export_card
from univip_stream.files import written_by_one


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The Markdown file.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def card(run: Path, out: Path, quiet: bool, as_json: bool) -> None:
    """Write a model card of the run folder RUN: images, training, results, use.

    Places for what only you know (licence, origin of the images, limits) are marked CHANGE:.

    \b
    univip-stream export card runs/coco --out MODEL_CARD.md
    """
    with written_by_one(out):
        places = export_card(run, out)
    if as_json:
        click.echo(json.dumps({"file": str(out), "to_fill": places}))
    elif not quiet:
        click.echo(f"{out}: {places} places marked {MARK} are for you to fill")
