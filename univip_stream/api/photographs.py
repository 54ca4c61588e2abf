"""What `train --src` does before it trains: mine the photographs, and choose settings for them."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from univip_stream.api.mining import mine as run_mining
from univip_stream.api.mining import summary
from univip_stream.api.progress import duration
from univip_stream.distributed import ALONE, Process, pick_device
from univip_stream.errors import InputError, UsageError, counted, why
from univip_stream.machine import available_memory, usable_cpus
from univip_stream.mining import MiningConfig
from univip_stream.pretrain import Interrupted, PretrainConfig
from univip_stream.pretrain.auto import Images, Machine, choose
from univip_stream.pretrain.load import CONFIG, told_now
from univip_stream.pretrain.pace import images_per_second
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.rundir import SHARDS
from univip_stream.pretrain.settings import from_dict, with_settings
from univip_stream.shards import expand_shards, open_shards
from univip_stream.shards.cache import Cache
from univip_stream.stopping import stoppable
from univip_stream.storage import is_remote

Say = Callable[[str], None]
_SHARDS_LOOKED_AT = 4
"""Spread over the set: their images' sizes stand for all."""


def shards_of(
    sources: tuple[str, ...],
    shards: tuple[str, ...],
    run: Path,
    process: Process,
    *,
    max_failures: str,
    say: Say,
    quiet: bool,
) -> str:
    """Mine photographs into a folder of shards, or find that it is done; the folder.

    A run that has begun keeps the shards that it began with: its sources are not read again.

    Raises:
        InputError: as mining; several ranks, of which each would mine.
        UsageError: more than one folder to mine into, or one that is no local folder.
        Interrupted: stopped; finished shards are kept.

    """
    if len(shards) > 1 or any(
        is_remote(spec) or set("<{*") & set(spec) or spec.endswith((".tar", ".json")) for spec in shards
    ):
        raise UsageError(f"--shards {' '.join(shards)} with --src; expected one local folder that the shards are mined into")
    folder = Path(shards[0]) if shards else run / SHARDS
    if (run / CONFIG).exists():
        say(f"the run has begun on {folder}: --src is not read again")
        return str(folder)
    if process.world_size > 1:
        raise UsageError(
            "--src with several ranks: each would mine; run `univip-stream mine` first, then train with --shards"
        )
    # Where Ray is not installed, and where there is one CPU to share, this process mines by itself.
    inline = importlib.util.find_spec("ray") is None or usable_cpus() == 1
    with _stopping("stopped while mining: finished shards are kept; run the same command to go on"):
        config = MiningConfig(sources=sources, out=str(folder), inline=inline, max_failures=max_failures)
        say("1 of 2: mining")
        report = run_mining(config, quiet=quiet)
    say(summary(report.manifest))
    for note in report.notes:
        say(note)
    for source, status, reason in report.failures[:10]:
        say(f"  {source}: {status}: {reason}")
    if len(report.failures) > 10:
        say(f"  and {len(report.failures) - 10} more; every one is a row of its shard's .parquet")
    say("2 of 2: training")
    return str(folder)


@contextmanager
def _stopping(words: str) -> Iterator[None]:
    """Within: Ctrl-C and SIGTERM are Interrupted, with these words; nothing is left that the same command does not go on from."""
    try:
        with stoppable():
            yield
    except KeyboardInterrupt:
        raise Interrupted(words) from None


def chosen(
    shards: list[str], run: Path, texts: list[str], *, device: str, process: Process, seconds: float | None, say: Say
) -> PretrainConfig:
    """The recipe `auto` for these shards and this machine, with explicit settings over it; of a run that has begun, its own.

    Args:
        shards: that are trained on.
        run: the run folder.
        texts: settings that were asked for; the choice is made with them in place.
        device: as `train --device`.
        process: this process; only one alone may choose.
        seconds: that the run may take.
        say: gets each choice with its reason.

    Raises:
        UsageError: several ranks, which would measure unlike rates.
        InputError: shards that cannot be read, a run that cannot be gone on with.
        Interrupted: stopped; what was mined is kept.

    """
    with _stopping("stopped while settings are chosen, before the first step; run the same command to begin"):
        return _chosen(shards, run, texts, device=device, process=process, seconds=seconds, say=say)


def _chosen(
    shards: list[str], run: Path, texts: list[str], *, device: str, process: Process, seconds: float | None, say: Say
) -> PretrainConfig:
    if (run / CONFIG).exists():
        if seconds is not None:
            say("--time was for the run's beginning; its length stands")
        return with_settings(_begun(run / CONFIG), texts)
    if process.world_size > 1:
        raise UsageError(
            "recipe auto measures what one process does, and several ranks would each choose; name a recipe, or begin with one "
            f"process and go on with its settings ({run / CONFIG})"
        )
    base = with_settings(recipe("coco"), ["recipe=auto", *texts])
    found = open_shards(expand_shards(shards), cache=Cache(base.stream.cache, base.stream.cache_bytes))
    some = [
        found.rows(int(shard)) for shard in np.unique(np.linspace(0, len(found.shards) - 1, _SHARDS_LOOKED_AT).astype(int))
    ]
    sides = np.concatenate([np.minimum(rows.width, rows.height) for rows in some])
    images = Images(count=len(found), short_side=int(np.median(sides)) if len(sides) else 0)
    where = pick_device(device, ALONE)
    memory = torch.cuda.mem_get_info(where)[0] if where.type == "cuda" else available_memory()
    machine = Machine(device="cuda" if where.type == "cuda" else "cpu", memory=memory, cpus=usable_cpus())
    measured: list[float] = []

    def rate(settings: list[str]) -> float:
        measured.append(images_per_second(with_settings(base, [*settings, *texts]), where))
        return measured[-1]

    choices = choose(images, machine, seconds=seconds, rate=rate)
    asked = {text.partition("=")[0].strip() for text in texts}
    if "steps" in asked:
        asked.add("epochs")
    config = with_settings(base, [*(choice.text for choice in choices if choice.key not in asked), *texts])
    say(f"recipe auto, for {counted(images.count, 'image')} with a short side of {images.short_side} px, on {where}:")
    for choice in choices:
        taken = " (yours)" if choice.key in asked else f": {choice.why}"
        say(f"  {choice.key} = {_value(config, choice.key)}{taken}")
    if measured:
        batch = config.stream.batch_size
        seconds = config.total_steps(images.count / batch) * batch / measured[0]
        say(f"about {duration(seconds)} at {measured[0]:.0f} images/s, reading not counted")
    return config


def _begun(path: Path) -> PretrainConfig:
    try:
        return from_dict(PretrainConfig, told_now(json.loads(path.read_bytes())["config"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({why(error)}); choose another --out") from error


def _value(config: PretrainConfig, key: str) -> object:
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
