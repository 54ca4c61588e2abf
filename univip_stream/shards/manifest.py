"""The manifest, which says what the shards are and what made them, and marks them as complete."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.images import MAX_PIXELS, MAX_SIDE
from univip_stream.shards.entry import MOST_IN_JSON, EntryTable, ShardEntry, first_bad_name, numbers, problem_in, tar_names
from univip_stream.shards.format import FORMAT_1, FORMAT_2, FORMATS

MANIFEST = "manifest.json"
JOB = ".mining.json"
"""File with the parameters of an unfinished job, in its output folder. It is gone once the manifest is written."""
LISTED = re.compile(r"manifest-[0-9a-f]{16}\.parquet")
"""Names of files that list very many shards. The digits are from the hash, so a new list never overwrites an old one."""
_MOST_SHARDS = 1_000_000
MOST_BYTES = 1 << 28
"""The most bytes of a manifest. It has about 500 bytes for each shard, so a larger file is not one."""
_FIELDS: Mapping[str, Any] = {
    "totals": {"images": int, "samples": int, "bytes": int},
    "parameters": dict,
    "fingerprint": str,
}
_PART: Mapping[str, Any] = {"parameters": dict, "fingerprint": str, "shards": list}
_LIST: Mapping[str, Any] = {"file": str, "count": int, "bytes": int, "sha256": str}


@dataclass(frozen=True, kw_only=True)
class MadeBy:
    """What made some shards, and what people should know about them."""

    parameters: Mapping[str, Any]
    """Options of the job as JSON: everything that the shards' contents depend on besides the bytes of the images."""
    fingerprint: str
    """Fingerprint of the parameters, which every index carries."""
    created_by: Mapping[str, str] = field(default_factory=dict)
    """Versions of the programs that the bytes may depend on."""
    classes: Sequence[str] | None = None
    """Sorted names of the classes; None if the source has none."""
    ignored: Mapping[str, int] = field(default_factory=dict)
    """Number of things in the sources that were left out, by kind."""
    absent: Mapping[str, Any] | None = None
    """Missing images that an annotation file names: `images` of them are missing out of `of`, for example `such_as`."""
    boxes_left_out: Mapping[str, int] | None = None
    """Number of objects of an annotation file that were not taken, by reason."""
    imported: Mapping[str, Any] | None = None
    """Counts of how imported boxes and images matched."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the manifest's JSON."""
        needed = ("parameters", "fingerprint", "classes", "ignored")
        found = {name: getattr(self, name) for name in _IN_ORDER}
        return {name: value for name, value in found.items() if name in needed or value}


_IN_ORDER = ("created_by", "parameters", "fingerprint", "classes", "ignored", "absent", "boxes_left_out", "imported")


@dataclass(frozen=True, kw_only=True)
class Part(MadeBy):
    """The part of a set that one mining made: all of it, or what was added."""

    shards: Sequence[str]
    """File names of its tars, in order."""

    def as_json(self) -> dict[str, Any]:
        """Return the object of the manifest's JSON."""
        return {**super().as_json(), "shards": list(self.shards)}


@dataclass(frozen=True, kw_only=True)
class Manifest(MadeBy):
    """The contents of the `manifest.json` of a folder of shards."""

    format: str
    """Version of the layout: 1 if all its shards have version 1, otherwise 2."""
    shards: Sequence[ShardEntry]
    """Entries of its shards, in order."""
    totals: Mapping[str, int]
    """Sums over the shards: `images`, `samples`, `bytes`, and the number of images by status."""
    parts: tuple[Part, ...] = ()
    """Parts of a set that was added to, in the order they were mined. Together they name all `shards`, in order."""

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the file, without the list of shards if that is long."""
        return {
            "format": self.format,
            **super().as_json(),
            **({"parts": [part.as_json() for part in self.parts]} if self.parts else {}),
            "shards": [entry.as_json() for entry in self.shards] if len(self.shards) <= MOST_IN_JSON else [],
            "totals": dict(self.totals),
        }

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts of the set, in the order they were mined; a set that was never added to has one."""
        if self.parts:
            return self.parts
        own = {name: getattr(self, name) for name in ("created_by", "parameters", "fingerprint", "classes", "ignored")}
        return (Part(**own, shards=tar_names(self.shards)),)

    @property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprint in the index of each shard, which is that of its part, by the name of the shard."""
        return {name: part.fingerprint for part in self.all_parts for name in part.shards}

    @property
    def mined_limit(self) -> int:
        """Largest width times height that mining took into these shards, and that their readers must therefore take too."""
        limit: Any = self.parameters.get("max_pixels")
        whole = isinstance(limit, int) and not isinstance(limit, bool) and limit > 0
        return min(limit, MAX_SIDE**2) if whole else MAX_PIXELS


def make_manifest(entries: Sequence[ShardEntry], made_by: MadeBy, parts: Sequence[Part] = ()) -> Manifest:
    """Return the manifest of some shards. It is the last file that is written.

    Args:
        entries: entries of the shards in order, as `write_shard` returns them.
        made_by: what made the shards.
        parts: the parts of the set, if it was mined in several runs.

    """
    own = {member.name: getattr(made_by, member.name) for member in fields(MadeBy)}
    return Manifest(
        **own,
        format=FORMAT_1 if entries and all(entry.candidates is None for entry in entries) else FORMAT_2,
        shards=tuple(entries) if len(entries) <= MOST_IN_JSON else EntryTable.from_entries(entries),
        totals=totals_of(entries),
        parts=tuple(parts),
    )


def totals_of(entries: Sequence[ShardEntry]) -> dict[str, int]:
    """Return the sums over some shards: `images`, `samples`, `bytes`, and the number of images by status."""
    totals: Counter[str] = Counter()
    for entry in entries:
        totals.update(entry.totals)
    return {
        **{name: int(numbers(entries, name).sum()) for name in ("images", "samples", "bytes")},
        **dict(sorted(totals.items())),
    }


def manifest_files(manifest: Manifest) -> dict[str, bytes]:
    """Return the bytes of the manifest's files by name, in the order they are written.

    The last is JSON in UTF-8, with a line for each field. Before it comes the Parquet file that lists very many shards.
    """
    content = manifest.as_json()
    listed: dict[str, bytes] = {}
    if len(manifest.shards) > MOST_IN_JSON:
        data = EntryTable.from_entries(manifest.shards).as_bytes()
        digest = hashlib.sha256(data).hexdigest()
        name = f"manifest-{digest[:16]}.parquet"
        listed[name] = data
        content["shards"] = {"file": name, "count": len(manifest.shards), "bytes": len(data), "sha256": digest}
    return listed | {MANIFEST: (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()}


def read_manifest(folder: str | Path) -> Manifest:
    """Return the manifest of a folder of shards, local or remote.

    Raises:
        InputError: the manifest is missing, damaged, or of another version.

    """
    path = storage.join(folder, MANIFEST)
    size = _size_of(path)
    if size is None:
        raise InputError(
            f"{folder} has no {MANIFEST}, so its shards are not complete (it is written last); "
            "run the same `univip-stream mine` again, it continues where it stopped; parts that are all mined are joined by "
            "`univip-stream join`"
        )
    if size > MOST_BYTES:
        raise InputError(f"{path} has {size} bytes; a manifest of {MOST_BYTES} is the largest that is read")
    try:
        content = json.loads(storage.read(path))
        found = content["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not a manifest of shards ({why(error)}); mine again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {why(error)}") from error
    if found not in FORMATS:
        raise InputError(
            f"{path} has format {found!r}; this version reads {' and '.join(map(repr, FORMATS))}: use the one that made it, or "
            "mine again"
        )
    try:
        if problem := problem_in(content, _FIELDS):
            raise ValueError(problem)
        if "shards" not in content:
            raise ValueError("shards is missing")
        listed = isinstance(content["shards"], dict)
        entries = _listed(folder, path, content["shards"]) if listed else _entries(content["shards"])
        _check_names(path, entries)
        parts = tuple(_parts(content["parts"], tar_names(entries))) if "parts" in content else ()
        return Manifest(**made_by_of(content), format=found, shards=entries, totals=dict(content["totals"]), parts=parts)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"{path} is not a manifest of shards: {error}; it was changed or damaged: delete it and mine again"
        ) from error


def being_added(folder: str | Path) -> list[str]:
    """Return the names of the shards that an unfinished `mine --add` will write into a folder; [] if there is none."""
    try:
        found = json.loads(storage.read(storage.join(folder, JOB)))
        digits, count = found["first_shard"].removesuffix(".tar"), int(found["num_shards"])
        return [f"{number:0{len(digits)}d}.tar" for number in range(int(digits), int(digits) + min(count, _MOST_SHARDS))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def made_by_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `MadeBy` from JSON. A field that only people read is left out if it has another type."""
    found: dict[str, Any] = {"parameters": content["parameters"], "fingerprint": content["fingerprint"]}
    classes = content.get("classes")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ValueError(f"classes is {str(classes)[:40]!r}, expected a list of names")
    found["classes"] = classes
    for name in ("created_by", "ignored", "absent", "boxes_left_out", "imported"):
        if isinstance(content.get(name), dict):
            found[name] = content[name]
    return found


def _entries(content: Any) -> tuple[ShardEntry, ...]:
    if not isinstance(content, list):
        raise ValueError(f"shards is {str(content)[:40]!r}, expected a list")
    entries = []
    for at, fields_ in enumerate(content):
        try:
            entries.append(ShardEntry.of(fields_))
        except ValueError as error:
            raise ValueError(f"shard {at}: {error}") from error
    return tuple(entries)


def _listed(folder: str | Path, path: str, content: dict[str, Any]) -> EntryTable:
    """Return the entries that are listed in a separate file."""
    if problem := problem_in(content, _LIST):
        raise ValueError(f"shards: {problem}")
    if not LISTED.fullmatch(content["file"]):
        raise InputError(f"{path} names {content['file']!r} as the list of its shards; expected a name that `mine` gives")
    place = storage.join(folder, content["file"])
    try:
        size = _size_of(place)
        data = storage.read(place) if size == content["bytes"] else b""
    except OSError as error:
        raise InputError(f"{place} cannot be read: {why(error)}") from error
    if size is None:
        raise InputError(f"{place}, which lists the shards of {path}, is missing; copy it, or mine again")
    if size != content["bytes"] or hashlib.sha256(data).hexdigest() != content["sha256"]:
        raise InputError(f"{place} is not the list that {path} names (its bytes differ): copy it again, or mine again")
    entries = EntryTable.of(data)
    if len(entries) != content["count"]:
        raise ValueError(f"{content['file']} lists {len(entries)} shards, expected {content['count']}")
    return entries


def _check_names(path: str, entries: Sequence[ShardEntry]) -> None:
    if (name := first_bad_name(entries)) is not None:
        raise InputError(f"{path} names the shard {name!r}; expected a file of its own folder, such as '000.tar'")


def _parts(content: Any, shards: list[str]) -> list[Part]:
    if not isinstance(content, list):
        raise ValueError(f"parts is {str(content)[:40]!r}, expected a list")
    for at, part in enumerate(content):
        if problem := problem_in(part, _PART):
            raise ValueError(f"part {at}: {problem}")
    if [name for part in content for name in part["shards"]] != shards:
        raise ValueError("its parts do not name its shards, each once and in their order")
    return [Part(**made_by_of(part), shards=list(part["shards"])) for part in content]


def has_manifest(folder: str | Path) -> bool:
    """Return whether a folder, local or remote, is a finished folder of ours."""
    return is_there(storage.join(folder, MANIFEST))


def is_there(location: str) -> bool:
    """Return whether a file exists, local or remote.

    Raises:
        InputError: the location cannot be reached.

    """
    try:
        return _size_of(location) is not None
    except InputError as error:
        if isinstance(error.__cause__, PermissionError):  # object stores answer this over HTTP for a file that does not exist
            return False
        raise


def _size_of(path: str) -> int | None:
    try:
        return storage.size_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be reached: {why(error)}") from error
