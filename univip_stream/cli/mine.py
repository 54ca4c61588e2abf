"""`univip-stream mine`: parse, call, print."""

import json
from typing import Any

import click

from univip_stream.api.mining import addition_lines, print_plan, shard_run, summary, summary_of
from univip_stream.api.mining import mine as run_mining
from univip_stream.api.mining import mine_part as run_part
from univip_stream.boxes import FRAMES, BoxFilter
from univip_stream.cli.jobs import stop_on_sigterm, where_options
from univip_stream.cli.web import parse_web, web_options
from univip_stream.errors import UsageError, counted
from univip_stream.mining import MiningConfig, MiningReport, PartReport
from univip_stream.mining.part import parse_part
from univip_stream.mining.pipeline import plan_job
from univip_stream.proposals import ENGINES
from univip_stream.shards.manifest import totals_of

DEMO_BATCH = 32
"""Batch size of the recipe `cpu-demo`; repeated here because recipes load torch, and mining must not."""
FEW = 10_000
"""Images below which `coco`, made for 118,287, is not suggested: an epoch would have fewer than twenty of its batches."""


@click.command()
# What to read, where to write.
@click.option(
    "--src",
    "sources",
    required=True,
    multiple=True,
    metavar="SOURCE",
    help="Folder of images (flat, a folder a class, or of tars), a .tar, a range of tars, a list (.txt, .csv, .parquet); local or "
    "s3://, gs://, http(s)://; repeat it to mine several into one set (COCO+).",
)
@click.option(
    "--annotations",
    multiple=True,
    metavar="FILE",
    help="COCO's JSON for a folder that has none in ../annotations; may be repeated, a file a folder.",
)
@click.option(
    "--out",
    default="shards",
    show_default=True,
    metavar="DIR",
    help="Where 000.tar, 000.parquet, ... and manifest.json go: a folder, or s3://bucket/folder.",
)
@click.option(
    "--add",
    is_flag=True,
    help="Mine the images that are not yet in the finished set in --out (by name) into new shards after its last one.",
)
@click.option(
    "--part",
    metavar="K/N",
    help="Mine only the K-th of N parts of the shards, without a manifest: a task of a Slurm array, without Ray between machines. "
    "When all are mined, `univip-stream join DIR` writes the manifest; the bytes are those of one job.",
)
@click.option(
    "--num-shards",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many shards.  [default: 128, fewer where that leaves under 32 images a shard; with --add, of the set's size]",
)
# Which boxes.
@click.option(
    "--proposals",
    default="selective-search",
    show_default=True,
    metavar="NAME",
    help=f"Where boxes come from: {', '.join(ENGINES)}, ground-truth (COCO's), none, or your own function as module:function.",
)
@click.option(
    "--box-frame",
    type=click.Choice(FRAMES),
    help="For photographs that EXIF turns, with ground-truth: whether the JSON's boxes are in the upright picture, as the "
    "annotators saw it, or in the pixels as stored. The same as in `eval detect`.  [default: upright]",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the engine, such as fast=true, small=false or working_resolution=320 of the default; may be repeated.",
)
@click.option("--min-scale", default=64, show_default=True, type=click.IntRange(min=1), help="Shortest side kept, pixels.")
@click.option("--max-aspect", default=3.0, show_default=True, type=click.FloatRange(min=1), help="Longest side by shortest.")
@click.option("--max-iou", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Greatest overlap of two boxes.")
@click.option("--max-boxes", type=click.IntRange(min=1), metavar="N", help="Keep at most so many an image.  [default: all]")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Decides the random choices of engines that make some.",
)
@click.option(
    "--max-pixels",
    default=100_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images with more pixels are not decoded; they become rows with that reason.",
)
@where_options
@web_options
# What to do about trouble.
@click.option(
    "--max-failures",
    default="1%",
    show_default=True,
    metavar="N|N%",
    help="Images that may be unreadable or too large before the job stops with a list.",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Mine images of finished shards again that failed; with --add, of the new shards while they are not finished.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest's totals as JSON.")
def mine(
    sources: tuple[str, ...],
    annotations: tuple[str, ...],
    out: str,
    add: bool,
    part: str | None,
    num_shards: int | None,
    proposals: str,
    box_frame: str | None,
    options: tuple[str, ...],
    min_scale: int,
    max_aspect: float,
    max_iou: float,
    max_boxes: int | None,
    seed: int,
    max_pixels: int,
    workers: int | None,
    address: str | None,
    inline: bool,
    quiet: bool,
    http_headers: tuple[str, ...],
    user_agent: str,
    per_host: int,
    image_timeout: float,
    ignore_opt_out: bool,
    max_failures: str,
    retry_failed: bool,
    dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Find region proposals in every image and pack both into WebDataset shards.

    \b
    univip-stream mine --src coco/train2017 --out shards/
    univip-stream mine --src coco/train2017 --src coco/unlabeled2017 --out coco-plus/
    univip-stream mine --src ILSVRC2012_img_train.tar --out s3://bucket/imagenet

    You can interrupt it at any time: the same command mines what is missing, to the same bytes. An image that cannot be used
    becomes a row of the index with its reason; so does one whose web server asks that it is not used.

    To mine more images later, use the same command with --add, and the same or other --src. Old shards keep their bytes;
    until all new ones are finished the set stays as it was. A run that trains on the old shards continues with those:
    --shards 'shards/<000..127>.tar'.

    \b
    In parts, on machines that share --out and know nothing of each other:
    sbatch --array 1-64 --wrap \\
      'univip-stream mine --part $SLURM_ARRAY_TASK_ID/64 --src coco/train2017 --out shards/'
    univip-stream join shards/
    """
    config = MiningConfig(
        sources=sources,
        annotations=annotations,
        out=out,
        add=add,
        part=None if part is None else parse_part(part),
        num_shards=num_shards,
        proposals=proposals,
        box_frame=box_frame,
        options=parse_options(options),
        seed=seed,
        filter=BoxFilter(min_scale=min_scale, max_aspect=max_aspect, max_iou=max_iou, max_boxes=max_boxes),
        max_pixels=max_pixels,
        max_failures=max_failures,
        retry_failed=retry_failed,
        workers=workers,
        address=address,
        inline=inline,
        web=parse_web(http_headers, user_agent, per_host, image_timeout, ignore_opt_out),
    )
    if dry_run:
        print_plan(plan_job(config), 0, out)
        return
    if config.part is not None:
        with stop_on_sigterm("mine"):
            _print_part(run_part(config, quiet=quiet), out, as_json)
        return
    with stop_on_sigterm("mine"):
        report = run_mining(config, quiet=quiet)
    if as_json:
        notes = {"notes": report.notes} if report.notes else {}
        totals = report.manifest.totals
        click.echo(json.dumps({"out": str(out), "mined": report.mined, **_addition_facts(report), **totals, **notes}))
    else:
        _print_report(report, out)


def parse_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """Return `KEY=VALUE` texts as a dictionary; a value that is not JSON is taken as text."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--option {text!r}; expected KEY=VALUE")
        try:
            options[key.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[key.replace("-", "_")] = value
    return options


def _addition_facts(report: MiningReport) -> dict[str, Any]:
    if report.addition is None:
        return {}
    added = report.addition
    parts = len(report.manifest.all_parts)
    return {"known": added.known, "gone": len(added.gone), "parts": parts}


def _print_part(report: PartReport, out: str, as_json: bool) -> None:
    totals = totals_of(report.shards)
    if as_json:
        notes = {"notes": report.notes} if report.notes else {}
        part = {"part": report.part.number, "parts": report.part.of, "shards": [entry.name for entry in report.shards]}
        click.echo(json.dumps({"out": str(out), **part, "mined": report.mined, **totals, **notes}))
        return
    names = shard_run([entry.name for entry in report.shards])
    click.echo(f"part {report.part} ({names}): {summary_of(totals, report.shards)}")
    for line in report.notes:
        click.echo(line)
    _print_failures(report.failures)
    if report.joined:
        click.echo("the set is complete already; nothing was changed")
    else:
        click.echo(f"next, when all {report.part.of} parts are mined: univip-stream join {out}")


def _print_failures(failures: list[tuple[str, str, str]]) -> None:
    for source, status, reason in failures[:10]:
        click.echo(f"  {source}: {status}: {reason}")
    if len(failures) > 10:
        click.echo(f"  and {len(failures) - 10} more; every one is a row of its shard's .parquet")


def _print_report(report: MiningReport, out: str) -> None:
    shards = report.manifest.shards
    first, last = (shards[at].name.removesuffix(".tar") for at in (0, -1))
    added = report.addition
    if added is not None:
        old = added.manifest.shards
        if len(old) == len(shards):
            for line in addition_lines(added):
                click.echo(line)
            click.echo("nothing to add: the set stays as it is")
        else:
            new = shards[len(old) :]
            images = sum(entry.images for entry in new)
            click.echo(f"added {counted(images, 'image')} in {counted(len(new), 'shard')} ({new[0].name} to {new[-1].name})")
            if added.gone:
                click.echo([*addition_lines(added)][-1])
    click.echo(summary(report.manifest))
    for line in report.notes:
        click.echo(line)
    _print_failures(report.failures)
    if added is not None and len(old) < len(shards):
        until = old[-1].name.removesuffix(".tar")
        before = f"<{first}..{until}>" if len(old) > 1 else first
        click.echo(f"a run on the set as it was goes on with --shards '{out}/{before}.tar'")
    names = f"<{first}..{last}>" if len(shards) > 1 else first
    options, why = fitting_recipe(report.manifest.totals["samples"])
    if options:
        click.echo(f"next: univip-stream train --shards '{out}/{names}.tar' --out runs/first {options}")
    click.echo(f"  {why}; docs/how-to/own-photographs.md has the settings by number of images")


def fitting_recipe(images: int) -> tuple[str, str]:
    """Return (options of `train` that suit this number of images, the reason for them)."""
    if images < 2:
        return "", f"{counted(images, 'image')}: too few to train on"
    if images < DEMO_BATCH:
        batch = max(2, images - images % 2)
        return (
            f"--recipe cpu-demo --batch-size {batch}",
            f"{counted(images, 'image')}: enough to see that everything runs, no more",
        )
    if images < FEW:
        return (
            "--recipe cpu-demo",
            f"{counted(images, 'image')} are few for a large network; cpu-demo is a small one to try things out",
        )
    return (
        "--recipe coco",
        f"{counted(images, 'image')}: coco is the paper's recipe, ResNet-50 for 800 epochs, and wants GPUs",
    )
