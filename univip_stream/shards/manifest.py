"""The manifest: what the shards are, what made them, and the mark that they are complete."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.images import MAX_PIXELS, MAX_SIDE
from univip_stream.shards.format import FORMAT

MANIFEST = "manifest.json"
JOB = ".mining.json"
"""The parameters of a job that is not finished yet, in its output folder; gone when the manifest is there, or is the new one."""
_MOST_SHARDS = 1_000_000
MOST_BYTES = 1 << 28
"""A manifest has about 400 bytes a shard; a larger file than this is none."""
_FIELDS: Mapping[str, Any] = {
    "shards": list,
    "totals": {"images": int, "samples": int, "bytes": int},
    "parameters": dict,
    "fingerprint": str,
}
_ENTRY: Mapping[str, Any] = {
    "name": str,
    "images": int,
    "samples": int,
    "bytes": int,
    "sha256": str,
    "index": {"bytes": int, "sha256": str},
    "totals": dict,
}
_PART: Mapping[str, Any] = {"parameters": dict, "fingerprint": str, "shards": list}
_WORDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}
_NAME = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]*\.tar")


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


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of a folder of shards, local or remote.

    Raises:
        InputError: there is none, or it is not one.

    """
    path = storage.join(folder, MANIFEST)
    size = _size_of(path)
    if size is None:
        raise InputError(
            f"{folder} has no {MANIFEST}, so its shards are not complete (it is written last); "
            "run the same `univip-stream mine` again, it continues where it stopped"
        )
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size} bytes; a manifest of {MOST_BYTES} is the largest that is read")
    try:
        manifest = json.loads(storage.read(path))
        found = manifest["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no manifest of shards ({why(error)}); mine again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from error
    if found != FORMAT:
        raise InputError(
            f"{path} has format {found!r}; this version reads {FORMAT!r}: use the one that made it, or mine again"
        )
    wrong = _wrong(manifest, _FIELDS) or next(
        (f"shard {at}: {found}" for at, entry in enumerate(manifest["shards"]) if (found := _wrong(entry, _ENTRY))), None
    )
    if wrong:
        raise InputError(f"{path} is no manifest of shards: {wrong}; it was changed or damaged: delete it and mine again")
    if "parts" in manifest and (wrong := _wrong_parts(manifest)):
        raise InputError(f"{path} is no manifest of shards: {wrong}; it was changed or damaged")
    for entry in manifest["shards"]:
        if not _NAME.fullmatch(entry["name"]):
            raise InputError(
                f"{path} names the shard {entry['name']!r}; expected a file of its own folder, such as '000.tar'"
            )
    return dict(manifest)


def parts_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a set, in the order they were mined, each with `parameters`, `fingerprint` and the names of its `shards`.

    A set that was never added to is one part.
    """
    if "parts" in manifest:
        return list(manifest["parts"])
    names = ("created_by", "parameters", "fingerprint", "classes", "ignored")
    own: dict[str, Any] = {name: manifest[name] for name in names if name in manifest}
    return [{**own, "shards": [entry["name"] for entry in manifest["shards"]]}]


def fingerprints(manifest: dict[str, Any]) -> dict[str, str]:
    """The fingerprint that the index of each shard carries, by the shard's name: that of its part."""
    return {name: part["fingerprint"] for part in parts_of(manifest) for name in part["shards"]}


def being_added(folder: str | Path) -> list[str]:
    """Names of the shards that a `mine --add` which has not finished is to write into a folder; [] where there is none."""
    try:
        found = json.loads(storage.read(storage.join(folder, JOB)))
        digits, count = found["first_shard"].removesuffix(".tar"), int(found["num_shards"])
        return [f"{number:0{len(digits)}d}.tar" for number in range(int(digits), int(digits) + min(count, _MOST_SHARDS))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _wrong_parts(manifest: dict[str, Any]) -> str | None:
    parts = manifest["parts"]
    if not isinstance(parts, list):
        return f"parts is {str(parts)[:40]!r}, expected a list"
    for at, part in enumerate(parts):
        if found := _wrong(part, _PART):
            return f"part {at}: {found}"
    if [name for part in parts for name in part["shards"]] != [entry["name"] for entry in manifest["shards"]]:
        return "its parts do not name its shards, each once and in their order"
    return None


def _wrong(fields: Any, expected: Mapping[str, Any]) -> str | None:
    """What is not as `expected` says: a type, or for an object its fields' types; None if all is."""
    if not isinstance(fields, dict):
        return f"found {type(fields).__name__}, expected an object"
    for name, kind in expected.items():
        if name not in fields:
            return f"{name} is missing"
        value: Any = fields[name]
        if isinstance(kind, dict):
            if problem := _wrong(value, kind):
                return f"{name}: {problem}"
        elif not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            return f"{name} is {str(value)[:40]!r}, expected {_WORDS[kind]}"
        if name == "totals" and not all(isinstance(count, int) for count in dict(value).values()):
            return "totals holds something that is no number"
    return None


def mined_limit(manifest: Mapping[str, Any]) -> int:
    """Width times height up to which mining took images into these shards, so that whoever reads them has to take them too."""
    limit = manifest["parameters"].get("max_pixels")
    whole = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
    return min(limit, MAX_SIDE**2) if whole else MAX_PIXELS


def has_manifest(folder: str | Path) -> bool:
    """Whether a folder, local or remote, is a finished folder of ours."""
    return is_there(storage.join(folder, MANIFEST))


def is_there(location: str) -> bool:
    """Whether there is a file, local or remote.

    Raises:
        InputError: that cannot be found out.

    """
    try:
        return _size_of(location) is not None
    except InputError as error:
        if isinstance(error.__cause__, PermissionError):  # what object stores say over HTTP of a file that they do not have
            return False
        raise


def _size_of(path: str) -> int | None:
    try:
        return storage.size_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be reached: {why(error)}") from error
