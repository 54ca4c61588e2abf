"""`univip-stream join`: parse, call, print."""

import json

import click

from univip_stream.api.mining import summary
from univip_stream.mining import join_parts


@click.command()
@click.argument("shards")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest's totals as JSON.")
def join(shards: str, as_json: bool) -> None:
    """Write the manifest of SHARDS that `mine --part` made in parts. The set is then as if one job had mined it.

    SHARDS is the folder that all parts wrote to. No image and no shard is read: a missing part, or one that was mined with
    other settings, is named, and nothing is written. Run again, it changes nothing.

    \b
    for part in 1 2 3; do univip-stream mine --part $part/3 --src photos/ --out shards/ & done; wait
    univip-stream join shards/
    """
    manifest, written, notes = join_parts(shards)
    if as_json:
        more = {"notes": notes} if notes else {}
        click.echo(
            json.dumps({"out": str(shards), "joined": written, "shards": len(manifest.shards), **manifest.totals, **more})
        )
        return
    click.echo(f"{shards}: {'' if written else 'complete already, nothing to do; '}{summary(manifest)}")
    for line in notes:
        click.echo(line)
