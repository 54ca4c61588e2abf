"""`univip-stream doctor`: parse, call, print."""

import json
import os
from pathlib import Path

import click

_MARKS = {"ok": "ok", "note": "note", "missing": "MISSING", "broken": "BROKEN"}
_COLOURS = {"note": "yellow", "missing": "red", "broken": "red"}


@click.command()
@click.option(
    "--path",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Folder that shards or runs will go to: its disk is tested.  [default: this folder]",
)
@click.option(
    "--for",
    "jobs",
    multiple=True,
    type=click.Choice(("mine", "train")),
    help="What the machine is for; requirements of the other job are not checked.  [default: both]",
)
@click.option("--ray/--no-ray", default=True, help="Start a local Ray and run a task on it, which takes seconds.")
@click.option("-q", "--quiet", is_flag=True, help="Say only what is missing or broken.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_context
def doctor(ctx: click.Context, folder: Path, jobs: tuple[str, ...], ray: bool, quiet: bool, as_json: bool) -> None:
    """Test what this machine has, and say what is missing and how to get it.

    It imports the libraries, times the decoders, writes and reads a file, and runs a task on Ray. Exit status 1 if something
    is missing or broken.

    \b
    univip-stream doctor --path /data/shards --for mine
    """
    from univip_stream.report.doctor import JOBS, examine

    colours = {} if os.environ.get("NO_COLOR") else _COLOURS

    findings = []
    job = None
    for finding in examine(folder, jobs=jobs or JOBS, ray=ray):
        findings.append(finding)
        if as_json or (quiet and finding.state not in ("missing", "broken")):
            continue
        if finding.job != job:
            click.echo(finding.job)
            job = finding.job
        mark = click.style(f"{_MARKS[finding.state]:8}", fg=colours.get(finding.state))
        cure = f"\n  {'':8}{'':32}-> {finding.cure}" if finding.cure else ""
        click.echo(f"  {mark}{finding.what:<32}{finding.found}{cure}")
    bad = [finding for finding in findings if finding.state in ("missing", "broken")]
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    elif bad or not quiet:
        click.echo(
            f"{len(bad)} of {len(findings)} are missing or broken" if bad else f"all {len(findings)} are there and work"
        )
    ctx.exit(1 if bad else 0)
