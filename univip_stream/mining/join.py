"""Join the parts of a mining job to one set: write its manifest from what the parts wrote beside their shards.

No source and no shard is read. The folder is then the same, byte by byte, as after one job.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError, as_setting, counted, why
from univip_stream.mining.job import PART, failed_of, remove_parts, too_many_failed, write_manifest
from univip_stream.mining.output import Output
from univip_stream.mining.part import Part, PartOf
from univip_stream.shards.entry import ShardEntry
from univip_stream.shards.format import candidates_name, index_name, shard_name
from univip_stream.shards.manifest import JOB, MANIFEST, Manifest, has_manifest, make_manifest, read_manifest

_NAMED = 10
"""Number of missing parts that an error names."""


def join_parts(shards: str | Path) -> tuple[Manifest, bool, list[str]]:
    """Write the manifest of a set whose parts are all mined, and remove what they left. If run again, nothing happens.

    Args:
        shards: folder of the shards, local or in an object store.

    Returns:
        (the manifest, whether it was written now, sentences about what people should know).

    Raises:
        InputError: a part is missing, is still being mined, was mined with other settings, or its shards are not what it wrote;
            or more images failed than allowed.

    """
    if storage.scheme_of(shards) in storage.WEB:
        raise InputError(f"{shards}: a web server cannot be written to; join the folder that it serves")
    out = Output(shards)
    names = out.names()
    if MANIFEST not in names and not any(PART.fullmatch(name) for name in names):
        begun = " (a part is finished when its command ends)" if JOB in names else ""
        raise InputError(
            f"{out.location} holds no finished part{begun}; expected the folder that all `univip-stream mine --part K/N` of a job "
            "wrote to"
        )
    with out.held():
        if has_manifest(out.location):
            remove_parts(out)  # of a join that was stopped at its end
            return read_manifest(out.location), False, []
        found = [_read(out, name) for name in out.names() if (match := PART.fullmatch(name)) and match[3] == "json"]
        if not found:
            raise InputError(
                f"{out.location} holds no finished part; a part is finished when its command ends without an error"
            )
        first = found[0]
        _refuse_differences(out, found)
        entries = _entries(out, found)
        _check_files(out, found, entries)
        most = max(found, key=lambda part: part.allowed)
        if sum(map(failed_of, entries)) > most.allowed:
            raise too_many_failed(out, entries, sum(entry.images for entry in entries), most.allowed_text)
        created_by, notes = _versions(found)
        manifest = make_manifest(entries, replace(first.made_by, created_by=created_by))
        out.remove_leftovers()
        write_manifest(out, manifest)
        remove_parts(out)
        out.remove(JOB)
    return manifest, True, notes


def _read(out: Output, name: str) -> Part:
    match = PART.fullmatch(name)
    assert match is not None
    try:
        return Part.of(out.read(name) or b"")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{out.path_of(name)} is not what a part wrote ({why(error)}); delete it and run part {int(match[1])}/{match[2]} again"
        ) from error


def _refuse_differences(out: Output, found: list[Part]) -> None:
    """Raise InputError unless all parts were mined with the settings of the most of them."""
    fingerprints = Counter(part.made_by.fingerprint for part in found)
    usual = fingerprints.most_common(1)[0][0]
    like = next(part for part in found if part.made_by.fingerprint == usual)
    for part in found:
        if part.made_by.fingerprint != usual:
            there, here = part.made_by.parameters, like.made_by.parameters
            names = [name for name in {**here, **there} if there.get(name) != here.get(name)]
            shown = [name for name in names if name != "listing"]
            differences = "; ".join(
                f"{name} {as_setting(there.get(name))} there, {as_setting(here.get(name))} here" for name in shown
            )
            raise InputError(
                f"{out.location}: part {part.part} was mined with other settings than part {like.part}: "
                f"{differences or 'the sources held other images'}. Mine it again with those of the others, after deleting "
                f"{part.part.file} and its shards"
            )


def _entries(out: Output, found: list[Part]) -> list[ShardEntry]:
    """Return the entries of all shards in order; raise InputError naming the parts that are missing."""
    by_name: dict[str, ShardEntry] = {}
    for part in found:
        for entry in part.shards:
            if by_name.setdefault(entry.name, entry) != entry:
                raise InputError(
                    f"{out.location}: two parts made the shard {entry.name}, not the same; run part {part.part} again"
                )
    count = found[0].count
    names = [shard_name(number, count) for number in range(count)]
    of = Counter(part.part.of for part in found).most_common(1)[0][0]
    missing = [
        (PartOf(number=number, of=of), lacking)
        for number in range(1, of + 1)
        if (lacking := [names[at] for at in PartOf(number=number, of=of).numbers(count) if names[at] not in by_name])
    ]
    if missing:
        shown = ", ".join(f"{part} ({_run(lacking)})" for part, lacking in missing[:_NAMED])
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        array = ",".join(str(part.number) for part, _ in missing)
        these = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{out.location}: {counted(len(missing), 'part')} of {of} {these} not mined: {shown}{more}. "
            f"Run these again as they were (Slurm: --array {array}), then join again"
        )
    return [by_name[name] for name in names]


def _run(names: list[str]) -> str:
    first, last = (names[at].removesuffix(".tar") for at in (0, -1))
    return f"shard {first}" if first == last else f"shards {first} to {last}"


def _check_files(out: Output, found: list[Part], entries: Iterable[ShardEntry]) -> None:
    """Raise InputError unless every shard's files have the sizes that its part wrote."""
    sizes = out.sizes()
    whose = {entry.name: part.part for part in found for entry in part.shards}
    for entry in entries:
        expected = {entry.name: entry.bytes, index_name(entry.name): entry.index.bytes}
        if entry.candidates is not None:
            expected[candidates_name(entry.name)] = entry.candidates.bytes
        for name, size in expected.items():
            if sizes.get(name) != size:
                there = f"has {sizes[name]} bytes, not the {size} that were written" if name in sizes else "is missing"
                raise InputError(f"{out.path_of(name)} {there}; run part {whose[entry.name]} again, then join again")


def _versions(found: list[Part]) -> tuple[dict[str, str], list[str]]:
    """Return (what made all parts, sentences about programs that they had in several versions)."""
    versions: dict[str, list[str]] = {}
    for part in found:
        for name, version in part.made_by.created_by.items():
            if version not in versions.setdefault(name, []):
                versions[name].append(version)
    notes = [
        f"parts were mined with {name} {' and '.join(several)}: with one version alone the bytes may be others"
        for name, several in versions.items()
        if len(several) > 1
    ]
    return {name: " and ".join(several) for name, several in versions.items()}, notes
