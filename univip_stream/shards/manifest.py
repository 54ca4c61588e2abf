"""The manifest: what the shards are, what made them, and the mark that they are complete."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from univip_stream.errors import InputError
from univip_stream.shards.format import FORMAT

MANIFEST = "manifest.json"


def make_manifest(entries: Iterable[dict[str, Any]], facts: dict[str, Any]) -> dict[str, Any]:
    """What `manifest.json` says; it is written last of all files.

    Args:
        entries: one a shard, as `write_shard` returns them, in order.
        facts: created_by, parameters, fingerprint, classes.

    """
    shards = list(entries)
    totals: Counter[str] = Counter()
    for entry in shards:
        totals.update(entry["totals"])
    return {
        "format": FORMAT,
        **facts,
        "shards": shards,
        "totals": {
            "images": sum(entry["images"] for entry in shards),
            "samples": sum(entry["samples"] for entry in shards),
            "bytes": sum(entry["bytes"] for entry in shards),
            **dict(sorted(totals.items())),
        },
    }


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """The file: JSON with a line a field, UTF-8."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of shards.

    Raises:
        InputError: there is none, or it is not one.

    """
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(
            f"{folder} has no {MANIFEST}, so its shards are not complete (it is written last); "
            "run the same `univip-stream mine` again, it continues where it stopped"
        )
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["format"]
        manifest["shards"], manifest["totals"], manifest["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no manifest of shards ({type(error).__name__}: {error}); mine again") from error
    if found != FORMAT:
        raise InputError(f"{path} has format {found!r}; this version reads {FORMAT!r}")
    return dict(manifest)
