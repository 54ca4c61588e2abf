"""Upgrade a finished set from version 1 to version 2 in place, without touching its tars."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.files import sha256_of_bytes
from univip_stream.mining.job import write_manifest
from univip_stream.mining.output import Output
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.format import STAGED, candidates_name, index_name
from univip_stream.shards.manifest import MadeBy, Manifest, make_manifest, read_manifest
from univip_stream.shards.upgrade import upgraded


def upgrade(
    shards: str | Path,
    *,
    planned: Callable[[Manifest, int], None] = lambda manifest, shards: None,
    progress: Callable[[int], None] = lambda images: None,
) -> Manifest:
    """Move the candidates of a set of version 1 out of its indexes, and return the new manifest. If run again, it continues.

    Until the new manifest is written, the set stays as it was: the new indexes wait beside the old ones, and replace them
    afterwards. While they are replaced, a reader gets the error that an index is not the expected one.

    Args:
        shards: folder of finished shards, local or in an object store.
        planned: called once with the present manifest and the number of its shards of version 1.
        progress: called after each shard with the number of its images.

    Raises:
        InputError: the set is not finished, an index is not as it was mined, or the folder cannot be written.

    """
    if storage.scheme_of(shards) in storage.WEB:
        raise InputError(f"{shards}: a web server cannot be written to; upgrade the folder that it serves")
    out = Output(shards)
    before = read_manifest(out.location)
    if all(entry.candidates is not None for entry in before.shards) and not any(map(_is_staged, out.names())):
        planned(before, 0)
        return before
    with out.held():
        before = read_manifest(out.location)
        old = [entry for entry in before.shards if entry.candidates is None]
        planned(before, len(old))
        entries: list[ShardEntry] = []
        for entry in before.shards:
            entries.append(entry if entry.candidates is not None else _stage(out, entry))
            if entry.candidates is None:
                progress(entry.images)
        if old:
            own = {member.name: getattr(before, member.name) for member in fields(MadeBy)}
            after = make_manifest(entries, MadeBy(**own), before.parts)
            write_manifest(out, after)
        else:
            after = before
        for name in out.names():
            if _is_staged(name):
                _put_in_place(out, name, {index_name(entry.name): entry for entry in after.shards})
        out.remove_leftovers()
    return after


def _is_staged(name: str) -> bool:
    return name.endswith(STAGED)


def _stage(out: Output, entry: ShardEntry) -> ShardEntry:
    """Write a shard's candidates, and its new index under a name that nothing reads."""
    index = out.read(index_name(entry.name))
    if index is None:
        raise InputError(f"{out.path_of(index_name(entry.name))} is missing; `univip-stream verify` lists what else is")
    candidates, new, made = upgraded(index, entry)
    out.write(candidates_name(entry.name), candidates)
    out.write(index_name(entry.name) + STAGED, new)
    return made


def _put_in_place(out: Output, staged: str, entries: dict[str, ShardEntry]) -> None:
    name = staged.removesuffix(STAGED)
    data = out.read(staged) or b""
    if name in entries and sha256_of_bytes(data) == entries[name].index.sha256:
        out.write(name, data)
    out.remove(staged)
