"""The run folder: made once, and opened again only for the run it belongs to."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from univip_stream import __version__
from univip_stream.distributed import Place
from univip_stream.errors import InputError, why
from univip_stream.files import written_atomically
from univip_stream.pretrain.config import HARMLESS, PretrainConfig
from univip_stream.pretrain.load import CONFIG
from univip_stream.pretrain.settings import flat, flat_dict, to_dict
from univip_stream.shards import ShardIndex

LOCK = ".lock"
"""In the run folder; held by the process that trains."""


def open_run(
    run: Path, config: PretrainConfig, index: ShardIndex, steps: int, place: Place, *, pairs: str | None = None
) -> None:
    """Write `config.json` into a new run folder, or check that the run there is this one.

    Args:
        run: the folder.
        config: of the run.
        index: of its shards.
        steps: updates of the whole run.
        place: this process; the first writes.
        pairs: SHA-256 of the file of pairs, where the method uses one.

    Raises:
        InputError: the folder holds a run of other settings or other shards, or things that are no run.

    """
    path = run / CONFIG
    if path.exists():
        _refuse_other_run(path, config, index, steps, pairs)
        return
    # What begins with a dot is ours or Ray's.
    if run.exists() and (not run.is_dir() or any(not entry.name.startswith(".") for entry in run.iterdir())):
        raise InputError(f"{run} is not empty and holds no {CONFIG}: it is no run folder; choose another --out")
    if not place.is_first:
        return
    run.mkdir(parents=True, exist_ok=True)
    facts = {
        "config": to_dict(config),
        "steps": steps,
        "shards": {"paths": index.shards, "images": len(index), "fingerprint": index.fingerprint},
        "pairs": pairs,
        "created_by": {"univip-stream": __version__},
    }
    with written_atomically(path) as file:
        file.write((json.dumps(facts, indent=1) + "\n").encode())


def hold(run: Path) -> int:
    """A descriptor that keeps other trainings out of the run folder until it is closed or this process ends.

    The lock is the process's: loader workers that it forked do not hold it on.

    Raises:
        InputError: another process trains here.

    """
    descriptor = os.open(run / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"{run}: another training writes here; wait for it, or choose another --out") from error
    return descriptor


def _refuse_other_run(path: Path, config: PretrainConfig, index: ShardIndex, steps: int, pairs: str | None) -> None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        there, shards, total = found["config"], found["shards"], found["steps"]
        theirs = flat_dict(there)
        their_images, their_fingerprint = shards["images"], shards["fingerprint"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({why(error)}); choose another --out") from error
    # A setting that came after that run was made stands there at its default.
    ours, theirs = flat(config), flat(PretrainConfig()) | theirs
    names = [name for name in ours if name not in HARMLESS and theirs[name] != ours[name]]
    differences = [f"{name} {theirs[name]!r} there, {ours[name]!r} here" for name in names]
    if their_fingerprint != index.fingerprint:
        differences.append(f"other shards ({their_images} images there, {len(index)} here)")
    if found.get("pairs") != pairs:
        differences.append(f"another file of pairs ({config.views.pairs} here)")
    if not differences and total != steps:
        differences.append(f"{total} steps there, {steps} here")
    if differences:
        raise InputError(
            f"{path.parent} holds a run of other settings: {'; '.join(differences)}. To continue it, use its settings; for a new "
            "run, choose another --out"
        )
