"""`univip-stream verify`: parse, call, print."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from univip_stream.cli.progress import Progress
from univip_stream.errors import InputError
from univip_stream.shards.manifest import read_manifest
from univip_stream.shards.spec import expand_shards
from univip_stream.shards.verify import verify_folder
from univip_stream.storage import is_remote


@click.command()
@click.argument("shards", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(shards: tuple[str, ...], as_json: bool) -> None:
    """Read SHARDS back: sizes, hashes, counts, members, and boxes inside images. Exit status 1 if anything is wrong.

    SHARDS is a folder of shards, its manifest.json, or the shards in it; the whole folder is checked.

    \b
    univip-stream verify shards/
    """
    folders = list(dict.fromkeys(folder for spec in shards for folder in _folders(spec)))
    findings = []
    images = 0
    for folder in folders:
        total = read_manifest(folder)["totals"]["images"]
        with Progress(f"verifying {folder}", total, unit="images") as bar:
            findings += [{"folder": str(folder), **asdict(finding)} for finding in verify_folder(folder, bar.add)]
        images += total
    if as_json:
        click.echo(json.dumps({"images": images, "findings": findings}))
    else:
        for finding in findings:
            click.echo(f"{finding['folder']}/{finding['shard']}: {finding['problem']}")
        click.echo(f"{images} images in {len(folders)} folder{'s' * (len(folders) > 1)}: {len(findings)} findings")
    if findings:
        raise SystemExit(1)


def _folders(spec: str) -> list[Path]:
    if is_remote(spec):
        raise InputError(
            f"{spec}: only local folders are verified; a remote shard is checked when it is fetched, or copy it here"
        )
    path = Path(spec)
    if path.is_dir():
        return [path]
    if path.suffix == ".json":
        if not path.is_file():
            raise InputError(f"{spec}: no such file; expected a folder of shards")
        return [path.parent]
    return [Path(shard).parent for shard in expand_shards(spec)]
