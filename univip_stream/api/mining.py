"""`univip_stream.mine`: mine, and show how far it is."""

from collections.abc import Iterator, Mapping, Sequence

import click

from univip_stream.api.progress import Progress
from univip_stream.errors import counted
from univip_stream.mining import MiningConfig, MiningReport, PartReport
from univip_stream.mining import mine as run_mining
from univip_stream.mining import mine_part as run_part
from univip_stream.mining.adding import Addition
from univip_stream.mining.noticed import left_out
from univip_stream.mining.pipeline import MiningPlan
from univip_stream.shards.entry import ShardEntry, numbers
from univip_stream.shards.manifest import Manifest
from univip_stream.typed import expect


def mine(config: MiningConfig, *, quiet: bool = False) -> MiningReport:
    """Find boxes in images and pack both into shards, as `univip-stream mine` does; again, it does what is missing.

    Args:
        config: what to mine, how and where.
        quiet: whether to show nothing on standard error.

    Returns:
        The manifest, what was mined now, and the images that are no sample.

    Raises:
        InputError, UsageError: sources, options or a folder that cannot be used; too many images that cannot be read.

    """
    expect(config, "mine", MiningConfig)
    bar: list[Progress] = []

    def planned(plan: MiningPlan, finished: int) -> None:
        if not quiet:
            print_plan(plan, finished, str(config.out))
        bar.append(Progress("mining", plan.job.images, unit="images", done=finished, quiet=quiet))

    try:
        return run_mining(config, planned=planned, progress=lambda images: bar[0].add(images))
    finally:
        for line in bar:
            line.__exit__(None, None, None)


def mine_part(config: MiningConfig, *, quiet: bool = False) -> PartReport:
    """Mine one part of a job, as `univip-stream mine --part` does, and show how far it is; see `univip_stream.mining.mine_part`."""
    bar: list[Progress] = []
    assert config.part is not None
    name = f"mining part {config.part}"

    def planned(plan: MiningPlan, finished: int) -> None:
        if not quiet:
            print_plan(plan, finished, str(config.out))
        bar.append(Progress(name, images_of_part(plan), unit="images", done=finished, quiet=quiet))

    try:
        return run_part(config, planned=planned, progress=lambda images: bar[0].add(images))
    finally:
        for line in bar:
            line.__exit__(None, None, None)


def images_of_part(plan: MiningPlan) -> int:
    """Return the number of images of the part that a plan is for; of all if it is for the whole job."""
    return sum(plan.job.counts[number] for number in plan.numbers)


def print_plan(plan: MiningPlan, finished: int, out: str) -> None:
    """Print what is to be mined: images, shards, labels, and what the sources hold beside images."""
    kept = f", {finished} of {'them' if plan.part is None else 'its part'} mined before" if finished else ""
    new = "" if plan.addition is None else "new "
    click.echo(
        f"{counted(plan.job.images, f'{new}image')}{kept} -> {counted(len(plan.job.names), 'shard')} in {out}", err=True
    )
    if plan.part is not None:
        own = [plan.job.names[number] for number in plan.numbers]
        here = f"{counted(images_of_part(plan), 'image')} in {counted(len(own), 'shard')}"
        click.echo(f"part {plan.part}: {here} ({shard_run(own)})", err=True)
    if plan.addition is not None:
        for line in addition_lines(plan.addition):
            click.echo(line, err=True)
    if classes := plan.listing.classes:
        names = ", ".join(classes[:3]) + ", ..." * (len(classes) > 3)
        click.echo(f"labels: {len(classes)} ({names})", err=True)
    for line in plan.listing.remarks:
        click.echo(line, err=True)
    for line in left_out(plan.listing, None):
        click.echo(line, err=True)
    if plan.upright is False:
        click.echo(
            "boxes are those of the stored pixels, and turn with images that EXIF turns (--box-frame stored)", err=True
        )


def shard_run(names: Sequence[str]) -> str:
    """Return neighbouring shards as people read them: `004 to 009`."""
    first, last = (names[at].removesuffix(".tar") for at in (0, -1))
    return first if first == last else f"{first} to {last}"


def addition_lines(added: Addition) -> Iterator[str]:
    """Yield lines that say which of the sources' images the set already has."""
    yield f"{counted(added.known, 'image')} of the sources {'is' if added.known == 1 else 'are'} in the set already"
    if added.failed:
        yield f"{added.failed} of them could not be used when they were mined; they are not tried again under their name"
    if added.gone:
        examples = ", ".join(added.gone[:3]) + ", ..." * (len(added.gone) > 3)
        yield f"{counted(len(added.gone), 'image')} of the set not in the sources any more, kept: {examples}"


def summary(manifest: Manifest) -> str:
    """Return a manifest in one line: images by status, boxes, bytes."""
    return summary_of(manifest.totals, manifest.shards)


def summary_of(totals: Mapping[str, int], shards: Sequence[ShardEntry]) -> str:
    """Return some shards and the sums over them in one line."""
    reasons = ", ".join(f"{totals[name]} {name}" for name in totals if name not in ("images", "samples", "bytes"))
    boxes = int(numbers(shards, "boxes").clip(0).sum()) / max(totals["samples"], 1)
    return (
        f"{counted(totals['images'], 'image')}: {reasons}; {boxes:.1f} boxes each; {totals['bytes'] / 1e6:.1f} MB in "
        f"{counted(len(shards), 'shard')}"
    )
