"""`univip-stream inspect`: parse, call, print."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from univip_stream.api.progress import Progress
from univip_stream.cli.judging import limit_option
from univip_stream.errors import InputError, UsageError, counted

if TYPE_CHECKING:
    from univip_stream.report.build import Report


@click.command()
@click.argument("shards", nargs=-1, required=True)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write one self-contained page.")  # fmt: skip
@click.option("--png", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Write contact sheets.")
@click.option("--samples", default=48, show_default=True, type=click.IntRange(0, 2000),
              help="Images shown at random, beside those that stand out.")  # fmt: skip
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, (1 << 63) - 1),
              help="Decides the random choice, and the views: those of a training run with this seed.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), help="Folder where remote indexes are kept.")
@limit_option
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
def inspect(
    shards: tuple[str, ...],
    html: Path | None,
    png: Path | None,
    samples: int,
    seed: int,
    cache: Path | None,
    max_pixels: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Inspect SHARDS: statistics, and with --html or --png pictures of boxes, views and instances as training sees them.

    The statistics cover all indexes, with a few in memory at a time. Pixels are read for a few images only: those that
    stand out, and a random sample. SHARDS is anything that `train --shards` takes, local or remote, including shards of
    other programs.

    \b
    univip-stream inspect shards/ --html report.html
    univip-stream inspect 'shards/<000..127>.tar' --png sheets/ --samples 100 --seed 1
    """
    from univip_stream.files import written_atomically, written_by_one
    from univip_stream.report.build import build_report
    from univip_stream.report.charts import pretty
    from univip_stream.report.page import render
    from univip_stream.report.sheets import write_sheets
    from univip_stream.shards.cache import Cache

    if quiet and not (html or png or as_json):
        raise UsageError("--quiet without --html, --png or --json would do nothing; give one of them")
    # Checked before the work, not after it.
    for place in ((html.parent,) if html else ()) + ((png,) if png else ()):
        try:
            place.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{place} is, or lies in, a file; expected a folder to write to") from error
    with Progress("cutting", 0, unit="images", quiet=quiet or as_json) as bar:

        def show_progress(done: int, total: int) -> None:
            bar.total = total
            bar.add(done - bar.done)

        report = build_report(
            shards, samples=samples, seed=seed, pictures=bool(html or png), cache=Cache(cache), max_pixels=max_pixels,
            progress=show_progress,
        )  # fmt: skip
    if html:
        page = render(report)
        with written_by_one(html), written_atomically(html) as file:
            file.write(page)
    sheets = write_sheets(report, png) if png else []
    if as_json:
        click.echo(json.dumps(report.as_json()))
    elif not quiet:
        _print_numbers(report)
        if html:
            click.echo(
                f"{html}: {len(report.picked)} images, {pretty(html.stat().st_size / 1e6, 'MB')}; open it in a browser"
            )
        if sheets:
            click.echo(f"{png}: {len(sheets)} sheets, {sheets[0].name} to {sheets[-1].name}")


def _print_numbers(report: "Report") -> None:
    """Print the numbers as a short text."""
    from univip_stream.report.charts import pretty, share

    index, outcomes = report.index, report.outcomes
    became = ", ".join(f"{count:,} {status}" for status, count in outcomes.by_status.items())
    where = counted(len(index.shards), "shard")
    click.echo(f"{counted(outcomes.images, 'image')} in {where}: {became}; {counted(report.boxes, 'box', 'boxes')}")
    for found in report.distributions:
        low, high = pretty(found.low), pretty(found.high, found.unit)
        summary = f"{low} to {high}, median {pretty(found.median)}" if found.total else f"no {found.of}"
        click.echo(f"  {found.name}: {summary}")
    drawn = "" if report.drawn == len(index) else f" (of {report.drawn:,} images at random)"
    click.echo(f"  Filled at random: {share(report.filled, report.drawn * report.views.instances)} of the instances{drawn}")
    for note in index.notes:
        click.echo(f"  {note}")
    for failure in outcomes.failures[:5]:
        click.echo(f"  {failure.source}: {failure.status}: {failure.reason}")
    failed = outcomes.images - len(index)
    if failed > 5:
        click.echo(f"  and {failed - 5:,} more failures; --html lists them")
