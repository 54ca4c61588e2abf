"""Adding to a finished set: images that it has not yet become shards after its last, and the others stay as they are.

The set that results is a function of the set that was there and of what the sources hold now: its parts, in their order, with the
images that were new to each. See docs/decisions/071-adding-is-a-part.md.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.mining.job import digest
from univip_stream.mining.output import Output
from univip_stream.parquet import batches_of
from univip_stream.shards.format import CONTENT, FAILED, index_name
from univip_stream.shards.manifest import JOB, MadeBy, Manifest, Part, has_manifest, read_manifest
from univip_stream.sources import Listing, SourceImage

_OF_A_PART = ("sources", "images", "listing", "num_shards", "parts", "added_to", "first_image", "first_shard")
"""Parameters that one part of a set has otherwise than the next."""


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a set has, and what it gets."""

    manifest: Manifest
    """Of the set that is added to."""
    listing: Listing
    """The images that it has not."""
    known: int
    """Images of the sources that it has."""
    gone: list[str]
    """Images that it has of these sources, by name, and the sources have no more; they stay."""
    failed: int
    """Images of the sources that it has as rows with a reason; they are not tried again."""

    @property
    def first_image(self) -> int:
        """Number of the first new image: keys go on where the set's end."""
        return self.manifest.totals["images"]

    def names(self, count: int) -> list[str]:
        """Of `count` new shards: numbers go on where the set's end, with as many digits at least."""
        last = self.manifest.shards[-1].name.removesuffix(".tar")
        first = int(last) + 1
        return [f"{number:0{len(last)}d}.tar" for number in range(first, first + count)]

    def shards_for(self, images: int) -> int:
        """How many shards new images make, of about as many images as the set's have."""
        return max(1, round(images * len(self.manifest.shards) / max(1, self.first_image)))

    def parameters(self, own: dict[str, Any]) -> dict[str, Any]:
        """Of the new part.

        Args:
            own: as a set of its own would have them.

        Raises:
            InputError: the set was made with others, by name.

        """
        there = self.manifest.parameters
        names = [name for name in {**there, **own} if name not in _OF_A_PART and there.get(name) != own.get(name)]
        if names:
            raise InputError(
                "the set that is added to was made with other parameters: "
                + "; ".join(f"{name} {there.get(name)!r} there, {own.get(name)!r} here" for name in names)
                + ". Add with the set's own, or mine a new set"
            )
        (first,) = self.names(1)
        return {**own, "added_to": self.manifest.fingerprint, "first_image": self.first_image, "first_shard": first}

    def joined(self, made_by: MadeBy, names: list[str]) -> tuple[MadeBy, tuple[Part, ...]]:
        """What the manifest says of all parts together, and of each.

        Args:
            made_by: what made the new part.
            names: of its shards.

        """
        own = {member.name: getattr(made_by, member.name) for member in fields(MadeBy)}
        parts = (*self.manifest.all_parts, Part(**own, shards=names))
        parameters = {
            **self.manifest.parameters,
            "sources": list(dict.fromkeys(source for part in parts for source in part.parameters["sources"])),
            "images": sum(part.parameters["images"] for part in parts),
            "listing": digest([part.parameters["listing"] for part in parts]),
            "num_shards": sum(len(part.shards) for part in parts),
            "parts": [part.fingerprint for part in parts],
        }
        classes = sorted({label for part in parts for label in part.classes or []})
        of_all = replace(made_by, parameters=parameters, fingerprint=digest([CONTENT, parameters]), classes=classes or None)
        return of_all, parts


def addition(out: Output, listing: Listing) -> Addition:
    """Compare what sources hold with what a finished set has of them.

    Args:
        out: folder of the set.
        listing: all images of the sources.

    Raises:
        InputError: no finished set there, or one that cannot be told to hold these images or others.

    """
    if not has_manifest(out.location):
        raise InputError(
            f"{out.location} holds a set that is not finished: finish it first, by the command that began it, without --add"
            if out.read(JOB) is not None
            else f"{out.location} holds no set to add to; leave --add out to mine a new one"
        )
    manifest = read_manifest(out.location)
    if not manifest.shards or not manifest.shards[-1].name.removesuffix(".tar").isdecimal():
        raise InputError(f"{out.location} has no shards with a number for a name; expected a set that `mine` wrote")
    _refuse_other_names(listing.sources, manifest.parameters.get("sources") or [])
    rows = {row["source"]: row for row in _rows(out, manifest)}
    # Of a source that is listed now, what is not found again is gone; of others nothing is known.
    missing = {name for name in rows if any(name.startswith(f"{source}/") for source in listing.sources)}
    new = Listing(listing.sources)
    new.ignored, new.notes, new.boxes_left_out = listing.ignored, listing.notes, listing.boxes_left_out
    new.named, new.absent, new.rows_of_absent = listing.named, listing.absent, False
    known = failed = 0
    changed: list[str] = []
    try:
        for image in listing:
            row = rows.get(image.source)
            if row is None:
                new.add(image)
                continue
            known += 1
            missing.discard(image.source)
            failed += row["status"] in FAILED
            if _another(image, row):
                changed.append(image.source)
        if changed:
            raise InputError(
                f"{len(changed)} images of the sources, such as {changed[0]}, have the name of an image of the set and another "
                "size: they changed since, or lie in another folder of that name. An image is known by its name: give changed "
                "ones, or that folder, another"
            )
    except BaseException:
        new.close()
        raise
    return Addition(manifest=manifest, listing=new, known=known, gone=sorted(missing), failed=failed)


def _refuse_other_names(here: list[str], there: list[str]) -> None:
    """Sources are called by their last part, and by more of it where two share that: the same one must be called the same."""
    for mine in here:
        for theirs in there:
            if mine != theirs and (mine.endswith(f"/{theirs}") or theirs.endswith(f"/{mine}")):
                raise InputError(
                    f"the source {mine} here may be {theirs} of the set: sources are called by the last part of their path, with "
                    "the part before it where two share that. Name all sources that the set was mined from that are called so, "
                    "or give the new folder another name"
                )


def _rows(out: Output, manifest: Manifest) -> Iterator[dict[str, Any]]:
    for entry in manifest.shards:
        name = index_name(entry.name)
        data = out.read(name)
        if data is None or hashlib.sha256(data).hexdigest() != entry.index.sha256:
            raise InputError(
                f"{out.path_of(name)} is {'missing' if data is None else 'not the index that the manifest was written for'}; "
                "`univip-stream verify` lists what differs"
            )
        columns = ["source", "status", "size", "converted"]
        for batch in batches_of(data, columns=columns):
            yield from batch.to_pylist()


def _another(image: SourceImage, row: dict[str, Any]) -> bool:
    """Whether a file has another size than the image of its name that was stored as it was, as far as is known unread."""
    if row["size"] is None or row["converted"] is not None:
        return False
    if image.offset is not None:
        return image.size != int(row["size"])
    if storage.is_remote(image.path):
        return False
    try:
        return os.stat(image.path).st_size != int(row["size"])
    except OSError:
        return False  # it is in the set already; that it cannot be read now changes nothing
