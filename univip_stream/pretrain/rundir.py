"""The run folder, which is made once and opened again only for the run that it belongs to."""

import contextlib
import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

from univip_stream import __version__
from univip_stream.checkpoint import Checkpoints
from univip_stream.distributed import Process
from univip_stream.errors import InputError, as_setting, why
from univip_stream.files import locked, remove_leftovers, written_atomically
from univip_stream.pretrain.config import HARMLESS, PretrainConfig
from univip_stream.pretrain.load import CHECKPOINTS, CONFIG
from univip_stream.pretrain.recipes import RECIPES
from univip_stream.pretrain.settings import flat, flat_dict, to_dict
from univip_stream.record import METRICS
from univip_stream.shards import ShardSet
from univip_stream.storage import name_of
from univip_stream.stream.order import order_version

SHARDS = "shards"
"""Name of the folder, in the run folder, of the shards that `train --src` mined."""
LOCK = ".lock"
"""Name of the lock file in the run folder, which the training process holds."""
_TRIES = 100
"""Number of attempts to make a folder that other processes make and remove at the same time."""
_SHOWN = 6
"""Number of differences that a message names; the command below them has all."""


def check_run(run: Path, config: PretrainConfig, shards: str | list[str]) -> None:
    """Check, before anything is read or built, that a run folder is free or belongs to a run with these settings.

    Args:
        run: the folder.
        config: settings of the run that is to be made.
        shards: the shards as the user named them, for the command that continues an existing run.

    Raises:
        InputError: the folder holds a run with other settings, or files that are not a run.

    """
    path = run / CONFIG
    if path.exists():
        facts = _facts(path)
        if differences := _differences(facts, config):
            _refuse(path, facts, differences, shards)
    # Names that begin with a dot are ours or Ray's; `train --src` mines into the folder SHARDS.
    elif run.exists() and (
        not run.is_dir() or any(entry.name[:1] != "." and entry.name != SHARDS for entry in run.iterdir())
    ):
        raise InputError(f"{run} is not empty and holds no {CONFIG}: it is no run folder; choose another --out")


def open_run(
    run: Path,
    config: PretrainConfig,
    index: ShardSet,
    steps: int,
    process: Process,
    *,
    shards: str | list[str],
    fingerprint: str | None = None,
    first_weights: str | None = None,
) -> int | None:
    """Write `config.json` into a new run folder, or check that the existing run is this one, and lock the folder.

    A run with other settings that was never trained (no checkpoint, no recorded step) is replaced.

    Args:
        run: the folder.
        config: settings of the run.
        index: its shards.
        steps: number of updates of the whole run.
        process: this process; only the first writes.
        shards: as in `check_run`.
        fingerprint: `Plan.fingerprint`, of a file that the plan draws from besides the shards.
        first_weights: hash of the file of weights that the run begins with; None for random weights, and for a run that
            continues from its checkpoint.

    Returns:
        The descriptor that `hold` returns; None for a process that is not the first.

    Raises:
        InputError: as in `check_run`; or the shards are others, another process trains here, or the disk is full.

    """
    path = run / CONFIG
    check_run(run, config, shards)
    made = [folder for folder in (run, *run.parents) if not folder.exists()] if process.is_first else []
    lock = None
    try:
        if process.is_first:
            lock = hold(run)
            remove_leftovers(run)
            remove_leftovers(run / CHECKPOINTS)
        if path.exists():
            facts = _facts(path)
            differences = _differences(facts, config)
            if facts["shards"]["fingerprint"] != index.fingerprint:
                old = _among_ours(facts["shards"], index)
                more = f"; its own are the first of these: --shards with {old[0]} to {old[-1]} continues it" if old else ""
                differences.append(f"other shards ({facts['shards']['images']} images there, {len(index)} here{more})")
            elif facts["shards"].get("order", 1) != (here := order_version(len(index))):
                differences.append(f"images in the order of version {facts['shards'].get('order', 1)} there, {here} here")
            if facts.get("pairs") != fingerprint:
                differences.append(f"another file of pairs ({config.views.pairs} here)")
            if first_weights is not None and facts.get("first_weights") != first_weights:
                differences.append(f"other first weights in {config.init_from}")
            if not differences and facts["steps"] != steps:
                differences.append(f"{facts['steps']} steps there, {steps} here")
            if not differences:
                return lock
            _refuse(path, facts, differences, shards)  # unless nothing was trained
        if process.is_first:
            order = order_version(len(index))
            written = {
                "config": to_dict(config),
                "steps": steps,
                "shards": {"paths": index.shards, "images": len(index), "fingerprint": index.fingerprint, "order": order},
                "pairs": fingerprint,
                "first_weights": first_weights,
                "created_by": {"univip-stream": __version__},
            }
            data = (json.dumps(written, indent=1) + "\n").encode()
            with written_atomically(path, wanted=len(data)) as file:
                file.write(data)
    except BaseException:
        if lock is not None:  # otherwise the folder belongs to another process by now
            if made:
                (run / LOCK).unlink(missing_ok=True)
            os.close(lock)
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()
        raise
    return lock


def settings_of(run: Path) -> dict[str, Any]:
    """Return the settings that a run was begun with, by their whole names.

    Raises:
        InputError: its `config.json` cannot be read.

    """
    return flat_dict(_facts(run / CONFIG)["config"])


def hold(run: Path) -> int:
    """Return a descriptor that locks the run folder until it is closed or this process ends.

    The folder is made, and made again if a failed start of another process removes it at this moment. The lock belongs to
    this
    process: loader workers that it forks do not keep it.

    Raises:
        InputError: another process trains here.

    """
    for _ in range(_TRIES):
        run.mkdir(parents=True, exist_ok=True)
        try:
            return locked(run / LOCK, of_process=True)
        except FileNotFoundError:
            continue
        except BlockingIOError as error:
            raise InputError(f"{run}: another training writes here; wait for it, or choose another --out") from error
    raise InputError(f"{run} cannot be made; choose another --out")


def _facts(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        flat_dict(found["config"]), found["steps"], found["shards"]["images"], found["shards"]["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({why(error)}); choose another --out") from error
    return found


def _differences(facts: dict[str, Any], config: PretrainConfig) -> list[str]:
    """Return the differences between a run's settings and these, in words."""
    # A setting that is newer than that run has its default there.
    ours = flat(config)
    defaults = flat(PretrainConfig(method=type(config.method)(name=config.method.name)))
    theirs = defaults | flat_dict(facts["config"])
    names = [name for name in ours if name not in HARMLESS and theirs[name] != ours[name]]
    return [f"{name} {as_setting(theirs[name])} there, {as_setting(ours[name])} here" for name in names]


def _refuse(path: Path, facts: dict[str, Any], differences: list[str], shards: str | list[str]) -> None:
    """Raise InputError with the command that continues the existing run, unless that run was never trained."""
    run = path.parent
    metrics = run / METRICS
    if not Checkpoints(run / CHECKPOINTS).steps() and not (metrics.exists() and metrics.stat().st_size):
        return
    more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    raise InputError(
        f"{run} holds a run of other settings: {'; '.join(differences[:_SHOWN])}{more}. For a new run, choose another --out; to "
        f"continue that one, use its settings:\n  {_command(run, facts, shards)}"
    )


def _command(run: Path, facts: dict[str, Any], shards: str | list[str]) -> str:
    """Return the command that continues a run: its recipe, and every setting that differs from the recipe."""
    theirs = flat_dict(facts["config"])
    name = theirs.get("recipe") if theirs.get("recipe") in RECIPES else "coco"
    known = flat(RECIPES[str(name)]())
    # The stream's seed follows the run's, and the recipe is named. Settings of the run's method alone may be in no recipe.
    changed = [key for key in theirs if key not in ("recipe", "stream.seed") and theirs[key] != known.get(key, ...)]
    specs = [shards] if isinstance(shards, str) else shards
    words = ["univip-stream", "train", *(word for spec in specs for word in ("--shards", spec)), "--out", str(run)]
    words += ["--recipe", str(name)]
    for key in changed:
        value = theirs[key]
        words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return shlex.join(words)


def _among_ours(shards: dict[str, Any], index: ShardSet) -> list[str]:
    """Return the names of the run's shards if these begin with them, as in a set that was added to since; otherwise []."""
    count = len(shards["paths"]) if isinstance(shards.get("paths"), list) else 0
    first = hashlib.sha256("\n".join(index.tar_sha256[:count]).encode()).hexdigest()
    return [name_of(path) for path in index.shards[:count]] if count and first == shards["fingerprint"] else []
