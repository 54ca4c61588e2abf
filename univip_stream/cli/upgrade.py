"""`univip-stream upgrade`: parse, call, print."""

import json

import click

from univip_stream.api.progress import Progress
from univip_stream.cli.jobs import stop_on_sigterm
from univip_stream.errors import counted
from univip_stream.mining import upgrade as run_upgrade
from univip_stream.shards.manifest import Manifest


@click.command()
@click.argument("shards")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors and the result.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def upgrade(shards: str, quiet: bool, as_json: bool) -> None:
    """Turn SHARDS of format 1 into format 2, in their place: the candidates move out of the index, no tar is touched.

    SHARDS is a folder of finished shards. What trains from them then reads about 1 kB an image instead of 10. A run goes on with
    them as before. Stop it whenever you like: the same command goes on.

    \b
    univip-stream upgrade shards/
    """
    bar: list[Progress] = []
    done: list[int] = []

    def planned(manifest: Manifest, count: int) -> None:
        done.append(count)
        if count:
            bar.append(Progress(f"upgrading {shards}", manifest.totals["images"], unit="images", quiet=quiet or as_json))

    with stop_on_sigterm("upgrade"):
        try:
            manifest = run_upgrade(shards, planned=planned, progress=lambda images: bar[0].add(images))
        finally:
            for line in bar:
                line.__exit__(None, None, None)
    if as_json:
        click.echo(json.dumps({"shards": len(manifest.shards), "upgraded": sum(done), "format": manifest.format}))
    elif sum(done):
        click.echo(f"{shards}: {counted(sum(done), 'shard')} upgraded; {manifest.format}")
    else:
        click.echo(f"{shards}: nothing to do, its {counted(len(manifest.shards), 'shard')} are of format 2")
