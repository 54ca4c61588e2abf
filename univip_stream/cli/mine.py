"""`univip-stream mine`: parse, call, print."""

import json
from typing import Any

import click

from univip_stream.boxes import BoxFilter
from univip_stream.cli.jobs import counted, stop_on_sigterm, summary, where_options
from univip_stream.cli.progress import Progress
from univip_stream.errors import UsageError
from univip_stream.mining import MiningConfig, MiningReport
from univip_stream.mining import mine as run_mining
from univip_stream.mining.pipeline import Plan, plan_job
from univip_stream.proposals import ENGINES

DEMO_BATCH = 32
"""Images of a batch of the recipe `cpu-demo`; it is named here because mining loads no torch, and recipes do."""
FEW = 10_000
"""Images below which `coco`, made for 118,287, is not suggested: an epoch would be under twenty of its batches."""


@click.command()
# What to read, where to write.
@click.option(
    "--src",
    "sources",
    required=True,
    multiple=True,
    metavar="SOURCE",
    help="Folder of images (flat, a folder a class, or of tars), a .tar, a range of tars, a list (.txt, .parquet); local or "
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
    "--num-shards",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many shards.  [default: 128, fewer where that leaves under 32 images a shard]",
)
# Which boxes.
@click.option(
    "--proposals",
    default="selective-search",
    show_default=True,
    metavar="NAME",
    help=f"Where boxes come from: {', '.join(ENGINES)}, ground-truth (COCO's), none, or your own function as module:function.",
)
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="An option of the engine; may be repeated.")
@click.option("--min-scale", default=64, show_default=True, type=click.IntRange(min=1), help="Shortest side kept, pixels.")
@click.option("--max-aspect", default=3.0, show_default=True, type=click.FloatRange(min=1), help="Longest side by shortest.")
@click.option("--max-iou", default=0.5, show_default=True, type=click.FloatRange(0, 1), help="Greatest overlap of two boxes.")
@click.option("--max-boxes", type=click.IntRange(min=1), metavar="N", help="Keep at most so many an image.  [default: all]")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**63 - 1),
    help="Decides the random choices of engines that make any.",
)
@click.option(
    "--max-pixels",
    default=100_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images with more pixels are not decoded; they become rows with that reason.",
)
@where_options
# What to do about trouble.
@click.option(
    "--max-failures",
    default="1%",
    show_default=True,
    metavar="N|N%",
    help="Images that may be unreadable or too large before the job stops with a list.",
)
@click.option("--retry-failed", is_flag=True, help="Mine images of finished shards again that failed.")
@click.option("-n", "--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest's totals as JSON.")
def mine(
    sources: tuple[str, ...],
    annotations: tuple[str, ...],
    out: str,
    num_shards: int | None,
    proposals: str,
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

    Interrupt it whenever you like: run the same command again and it mines what is missing, to the same bytes. An image
    that cannot be used is a row of the index with its reason.
    """
    config = MiningConfig(
        sources=sources,
        annotations=annotations,
        out=out,
        num_shards=num_shards,
        proposals=proposals,
        options=parse_options(options),
        seed=seed,
        filter=BoxFilter(min_scale=min_scale, max_aspect=max_aspect, max_iou=max_iou, max_boxes=max_boxes),
        max_pixels=max_pixels,
        max_failures=max_failures,
        retry_failed=retry_failed,
        workers=workers,
        address=address,
        inline=inline,
    )
    if dry_run:
        _print_plan(plan_job(config), 0, out)
        return
    bar: list[Progress] = []

    def planned(plan: Plan, finished: int) -> None:
        if not quiet:
            _print_plan(plan, finished, out)
        bar.append(Progress("mining", plan.job.images, unit="images", done=finished, quiet=quiet))

    with stop_on_sigterm("mine"):
        try:
            report = run_mining(config, planned=planned, progress=lambda images: bar[0].add(images))
        finally:
            for line in bar:
                line.__exit__(None, None, None)
    if as_json:
        click.echo(json.dumps({"out": str(out), "mined": report.mined, **report.manifest["totals"]}))
    else:
        _print_report(report, out)


def parse_options(texts: tuple[str, ...]) -> dict[str, Any]:
    """`KEY=VALUE` texts as a dictionary; values are JSON where they are, words otherwise."""
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


def _print_plan(plan: Plan, finished: int, out: str) -> None:
    kept = f", {finished} of them mined before" if finished else ""
    click.echo(f"{counted(plan.job.images, 'image')}{kept} -> {counted(len(plan.job.names), 'shard')} in {out}", err=True)
    if classes := plan.listing.classes:
        names = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
        click.echo(f"labels: {len(classes)} ({names})", err=True)
    if plan.listing.ignored:
        others = ", ".join(f"{count} {suffix}" for suffix, count in plan.listing.ignored.items())
        click.echo(f"not images by their name, left out: {others}", err=True)


def _print_report(report: MiningReport, out: str) -> None:
    click.echo(summary(report.manifest))
    shards = report.manifest["shards"]
    for source, status, reason in report.failures[:10]:
        click.echo(f"  {source}: {status}: {reason}")
    if len(report.failures) > 10:
        click.echo(f"  and {len(report.failures) - 10} more; every one is a row of its shard's .parquet")
    first, last = (shards[at]["name"].removesuffix(".tar") for at in (0, -1))
    names = f"<{first}..{last}>" if len(shards) > 1 else first
    options, why = fitting_recipe(report.manifest["totals"]["samples"])
    if options:
        click.echo(f"next: univip-stream train --shards '{out}/{names}.tar' --out runs/first {options}")
    click.echo(f"  {why}; docs/how-to/own-photographs.md has the settings by number of images")


def fitting_recipe(images: int) -> tuple[str, str]:
    """(options of `train` for so many images, why those)."""
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
