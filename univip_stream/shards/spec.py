"""Expand what people write (`shards/<000..127>.tar`, globs, folders, manifests) into a list of shards."""

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError, why
from univip_stream.files import system_file
from univip_stream.shards.entry import tar_names
from univip_stream.shards.manifest import MANIFEST, Manifest, has_manifest, read_manifest

_RANGE = re.compile(r"<(\d+)\.\.(\d+)>|\{(\d+)\.\.(\d+)\}")
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")
_AT_ONCE = 16
"""Number of remote shards that are looked up at the same time."""
_MOST_LOCAL_LOOKUPS = 256
"""The most shards of a local folder that are looked up one by one; for more, the folder is listed."""
_MOST_REMOTE_LOOKUPS = 1024
"""The same for a remote folder."""
MOST_SHARDS = 1_000_000
"""A range with more names than this is taken for a typing error."""


def expand_shards(specs: str | Path | Sequence[str | Path]) -> list[str]:
    """Return the shards that one or several specs name, in the order written, each once.

    A spec is a tar, a range `<000..127>` or `{000..127}`, a choice `{train,val}`, a glob, a folder (the shards of its
    manifest, or all its `*.tar`) or a `manifest.json`; it is local or begins with `s3://`, `gs://`, `hdfs://` or
    `http(s)://`. Web servers do not list folders, so a web address must be a tar, a range, a manifest or a folder that has
    one. No command is ever run: `pipe:` and `::` have no meaning here.

    Raises:
        InputError: a spec matches nothing, or a shard is missing; the message names it.

    """
    listed = [specs] if isinstance(specs, str | Path) else list(specs)
    if not listed:
        raise InputError("no shards given; expected something like 'shards/<000..127>.tar'")
    shards = list(dict.fromkeys(shard for spec in listed for shard in _expand(str(spec))))
    missing = _missing(shards)
    if missing:
        if len(shards) == 1 and not missing[0].partition("?")[0].endswith(".tar"):
            raise InputError(f"{missing[0]}: no such folder of shards, shard or manifest")
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{', '.join(missing[:3])}{more}: no such shard (of {len(shards)} that {' '.join(map(str, listed))!r} names); "
            "check the range, or mine them"
        )
    return shards


def _missing(shards: list[str]) -> list[str]:
    """Return the shards that do not exist. Remote ones are looked up in parallel; for very many, their folder is listed."""

    def there(shard: str) -> bool:
        try:
            return storage.size_of(shard) is not None
        except OSError as error:
            raise InputError(f"{shard} cannot be reached: {why(error)}") from error

    folders: dict[str, list[str]] = {}
    for shard in shards:
        folders.setdefault(shard.rpartition("/")[0], []).append(shard)
    missing: set[str] = set()
    for folder, inside in folders.items():
        remote = storage.is_remote(inside[0])
        if len(inside) > (_MOST_REMOTE_LOOKUPS if remote else _MOST_LOCAL_LOOKUPS):
            wanted = {shard.rpartition("/")[2] for shard in inside}
            if _take_there(wanted, folder or ("/" if inside[0].startswith("/") else ".")):
                missing.update(shard for shard in inside if wanted and shard.rpartition("/")[2] in wanted)
        elif remote:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                missing.update(shard for shard, found in zip(inside, pool.map(there, inside), strict=True) if not found)
        else:
            missing.update(shard for shard in inside if not there(shard))
    return [shard for shard in shards if shard in missing] if missing else []


def _take_there(names: set[str], folder: str) -> bool:
    """Remove the names of files that are in a folder; False if it cannot be listed, so that missing ones are found on reading.

    The folder's names are never all in memory: a set of a hundred thousand shards has three times as many files.
    """
    try:
        if storage.is_remote(folder):
            if storage.scheme_of(folder) in storage.WEB:
                return False
            for name, _ in storage.files_below(folder):
                names.discard(name)
            return True
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name in names and not entry.is_dir(follow_symlinks=False):
                    names.discard(entry.name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {why(error)}") from error
    return True


def _expand(spec: str) -> Iterator[str]:
    if "::" in spec and not Path(spec).exists():
        raise InputError(f"{spec}: '::' has no meaning here; give several shards as several specs")
    if not storage.is_remote(spec):
        scheme = _SCHEME.match(spec)
        if scheme:
            raise InputError(
                f"{spec}: {scheme[1]}: is not supported; expected shards such as 'shards/<000..127>.tar' or "
                "'s3://bucket/shards/<000..127>.tar'"
            )
    for name in _expand_braces(spec):
        yield from _expand_remote(name, spec) if storage.is_remote(name) else _expand_local(name, spec)


def _expand_local(name: str, spec: str) -> Iterator[str]:
    path = Path(name)
    if path.is_dir():
        yield from _expand_folder(path)
    elif path.name == MANIFEST:
        yield from _shards_in(path.parent, read_manifest(path.parent))
    elif glob.has_magic(name) and not path.exists():
        found = sorted(glob.glob(name))
        if not found:
            raise InputError(f"{spec!r} matches nothing; expected shards such as 'shards/<000..127>.tar' or a folder of them")
        for match in found:
            yield from _expand_local(match, spec)
    else:
        yield name


def _expand_folder(folder: Path) -> Iterator[str]:
    if (folder / MANIFEST).exists():
        yield from _shards_in(folder, read_manifest(folder))
        return
    found = sorted(path for path in folder.glob("*.tar") if system_file(path.name) is None)
    if not found:
        raise InputError(f"{folder} holds no *.tar; expected a folder that `univip-stream mine --out` wrote")
    yield from map(str, found)


def _shards_in(folder: Path, manifest: Manifest) -> Iterator[str]:
    before = str(folder / "x")[:-1]  # empty for the folder `.`
    return (before + name for name in tar_names(manifest.shards))


def _expand_remote(name: str, spec: str) -> Iterator[str]:
    web = storage.scheme_of(name) in storage.WEB
    if storage.name_of(name) == MANIFEST or (not storage.name_of(name).endswith(".tar") and has_manifest(name)):
        folder = storage.parent(name) if storage.name_of(name) == MANIFEST else name
        yield from (storage.join(folder, name) for name in tar_names(read_manifest(folder).shards))
    elif web:
        # In a web address ? and = are ordinary characters; only * marks a glob.
        if "*" in name.partition("?")[0]:
            raise InputError(
                f"{spec!r}: a web server does not list folders; expected a range such as <000..127> or a manifest.json"
            )
        if not storage.name_of(name).endswith(".tar"):
            raise InputError(
                f"{spec!r} has no {MANIFEST}, and a web server does not list folders; expected shards such as "
                "'https://host/shards/<000..127>.tar' or a folder with a manifest"
            )
        yield name
    elif glob.has_magic(name):
        yield from _expand_remote_glob(name, spec)
    elif name.endswith(".tar"):
        yield name
    else:
        yield from _expand_remote_glob(f"{name.rstrip('/')}/*.tar", spec)


def _expand_remote_glob(pattern: str, spec: str) -> Iterator[str]:
    """Yield what a glob matches in an object store; as on a disk, `*` does not cross folders."""
    magic = re.search(r"[*?[]", pattern)
    folder = pattern[: magic.start() if magic else None].rpartition("/")[0]
    wanted = pattern[len(folder) + 1 :].split("/")
    try:
        names = [name for name, _ in storage.files_below(folder)]
    except OSError as error:
        raise InputError(f"{spec!r}: {folder} cannot be listed: {why(error)}") from error
    found = [
        f"{folder}/{name}"
        for name in names
        if system_file(name) is None
        and len(name.split("/")) == len(wanted)
        and all(map(fnmatch.fnmatchcase, name.split("/"), wanted))
    ]
    if not found:
        raise InputError(f"{spec!r} matches nothing; {folder} holds no such shard")
    yield from found


def _expand_braces(spec: str) -> Iterator[str]:
    """Yield every name that a spec with ranges and choices stands for; the leftmost range changes slowest."""
    parts: list[list[str]] = []
    rest, many = spec, 1
    while rest:
        found = min((m for m in (_RANGE.search(rest), _CHOICE.search(rest)) if m), key=lambda m: m.start(), default=None)
        if found is None:
            parts.append([rest])
            break
        parts.append([rest[: found.start()]])
        parts.append(_choices(found, spec))
        many *= len(parts[-1])
        if many > MOST_SHARDS:
            raise InputError(f"{spec!r} names more than {MOST_SHARDS} shards; check its ranges")
        rest = rest[found.end() :]
    yield from ("".join(choice) for choice in itertools.product(*parts))


def _choices(found: re.Match[str], spec: str) -> list[str]:
    if found.re is _CHOICE:
        return found[1].split(",")
    low, high = (found[1], found[2]) if found[1] is not None else (found[3], found[4])
    if int(low) > int(high):
        raise InputError(f"{spec!r}: the range {found[0]} runs backwards; expected the smaller number first")
    if int(high) - int(low) >= MOST_SHARDS:
        raise InputError(f"{spec!r}: the range {found[0]} names more than {MOST_SHARDS} shards")
    return [str(number).zfill(len(low)) for number in range(int(low), int(high) + 1)]
