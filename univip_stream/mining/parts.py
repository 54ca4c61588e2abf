"""Mine one part of a job; `join_parts` makes all of them one set."""

from collections.abc import Callable
from dataclasses import dataclass, field

from univip_stream.errors import UsageError
from univip_stream.extras import require
from univip_stream.mining.job import failures
from univip_stream.mining.noticed import notes
from univip_stream.mining.part import PartOf, carry_out_part
from univip_stream.mining.pipeline import MiningConfig, MiningPlan, plan_job
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.manifest import MANIFEST


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """The result of a part of a job."""

    part: PartOf
    """Which part it was."""
    shards: tuple[ShardEntry, ...]
    """Entries of its shards, in order."""
    mined: int
    """Number of images mined now; the others were mined before."""
    failures: list[tuple[str, str, str]]
    """(source, status, reason) of each image that is not a sample."""
    joined: bool
    """Whether the set has its manifest already."""
    notes: list[str] = field(default_factory=list)
    """As in `MiningReport`."""


def mine_part(
    config: MiningConfig,
    *,
    planned: Callable[[MiningPlan, int], None] = lambda plan, finished: None,
    progress: Callable[[int], None] = lambda images: None,
) -> PartReport:
    """Mine `config.part` of a job, with the bytes that the whole job would write. `join_parts` makes all parts one set.

    Parts may be mined at the same time and in any order, each again if it was interrupted. All have the same settings.

    Args:
        config: settings of the whole job.
        planned: called once with the plan of the whole job, and the number of images of this part that are finished already.
        progress: called with the number of images done since the last call.

    Raises:
        InputError: as `mine`; or the folder holds a part that was mined with other settings.
        ModuleNotFoundError: Ray is not installed, and `inline` is False.

    """
    if config.part is None:
        raise UsageError("`mine_part` was given no part; expected one such as PartOf(number=3, of=64)")
    if not config.inline:
        require("ray")
    plan = plan_job(config)
    job = plan.job
    with plan.listing:
        shards, mined = carry_out_part(job, config.part, planned=lambda finished: planned(plan, finished), progress=progress)
        first = sum(job.counts[: config.part.numbers(len(job.names)).start])
        names = [entry.name for entry in shards]
        sentences = notes(plan.listing, config.published, plan.upright, job.out, names, first=first)
    return PartReport(
        part=config.part,
        shards=shards,
        mined=mined,
        failures=failures(job.out, shards),
        joined=job.out.size(MANIFEST) is not None,
        notes=sentences,
    )
