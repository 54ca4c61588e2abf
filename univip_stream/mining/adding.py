"""Add to a finished set: images that it lacks become new shards after its last one, and the existing shards stay as they are.

The resulting set is a function of the existing set and of the present contents of the sources: its parts, in their order,
with the images that were new to each. See docs/decisions/071-adding-is-a-part.md.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from univip_stream import storage
from univip_stream.errors import InputError, as_setting
from univip_stream.mining.job import digest
from univip_stream.mining.output import Output
from univip_stream.parquet import batches_of
from univip_stream.shards.format import CONTENT, FAILED, index_name
from univip_stream.shards.manifest import JOB, MadeBy, Manifest, Part, has_manifest, read_manifest
from univip_stream.sources import Listing, SourceImage

_MAY_DIFFER = ("sources", "images", "listing", "num_shards", "parts", "added_to", "first_image", "first_shard")
"""Parameters that may differ between the parts of a set."""


@dataclass(frozen=True, kw_only=True)
class Addition:
    """An existing set, and the images that are added to it."""

    manifest: Manifest
    """Manifest of the set that is added to."""
    listing: Listing
    """The images that the set lacks."""
    known: int
    """Number of images of the sources that the set has."""
    gone: list[str]
    """Names of images that the set has from these sources, but the sources no longer have; they stay in the set."""
    failed: int
    """Number of images of the sources that the set has as failed rows; they are not tried again."""

    @property
    def first_image(self) -> int:
        """Number of the first new image; its keys continue those of the set."""
        return self.manifest.totals["images"]

    def names(self, count: int) -> list[str]:
        """Return the names of `count` new shards. Their numbers continue those of the set, with at least as many digits."""
        last = self.manifest.shards[-1].name.removesuffix(".tar")
        first = int(last) + 1
        return [f"{number:0{len(last)}d}.tar" for number in range(first, first + count)]

    def shards_for(self, images: int) -> int:
        """Return into how many shards new images are divided, so that they are about as large as the set's."""
        return max(1, round(images * len(self.manifest.shards) / max(1, self.first_image)))

    def parameters(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters of the new part.

        Args:
            own: the parameters that it would have as a set of its own.

        Raises:
            InputError: the set was made with other parameters; the message names them.

        """
        there = self.manifest.parameters
        names = [name for name in {**there, **own} if name not in _MAY_DIFFER and there.get(name) != own.get(name)]
        if names:
            raise InputError(
                "the set that is added to was made with other parameters: "
                + "; ".join(f"{name} {as_setting(there.get(name))} there, {as_setting(own.get(name))} here" for name in names)
                + ". Add with the set's own, or mine a new set"
            )
        (first,) = self.names(1)
        return {**own, "added_to": self.manifest.fingerprint, "first_image": self.first_image, "first_shard": first}

    def joined(self, made_by: MadeBy, names: list[str]) -> tuple[MadeBy, tuple[Part, ...]]:
        """Return what the manifest states about all parts together, and about each part.

        Args:
            made_by: what made the new part.
            names: file names of its shards.

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
    """Compare the images of the sources with those that a finished set has from them.

    Args:
        out: folder of the set.
        listing: all images of the sources.

    Raises:
        InputError: there is no finished set, or it is not certain which of these images it has.

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
    # An image of a source that is listed now is gone if it is not found again; nothing is known about other sources.
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
            if _has_other_size(image, row):
                changed.append(image.source)
        if changed:
            raise InputError(
                f"{len(changed)} images of the sources, such as {changed[0]}, have the name of an image of the set but another "
                "size: they changed since, or are in another folder of the same name. Images are identified by name: give the "
                "changed images, or that folder, another name"
            )
    except BaseException:
        new.close()
        raise
    return Addition(manifest=manifest, listing=new, known=known, gone=sorted(missing), failed=failed)


def _refuse_other_names(here: list[str], there: list[str]) -> None:
    """Raise InputError if a source may be known to the set under another name.

    A source is named after the last part of its path, or after more of the path if two share that part.
    """
    for mine in here:
        for theirs in there:
            if mine != theirs and (mine.endswith(f"/{theirs}") or theirs.endswith(f"/{mine}")):
                raise InputError(
                    f"the source {mine} here may be {theirs} of the set: a source is named after the last part of its path, with "
                    "the part before it if two share that. Give all sources with this name that the set was mined from, or "
                    "rename the new folder"
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


def _has_other_size(image: SourceImage, row: dict[str, Any]) -> bool:
    """Return whether a file has another size than the set's unconverted image of that name, if known without reading."""
    if row["size"] is None or row["converted"] is not None:
        return False
    if image.offset is not None:
        return image.size != int(row["size"])
    if storage.is_remote(image.path):
        return False
    try:
        return os.stat(image.path).st_size != int(row["size"])
    except OSError:
        return False  # the image is in the set already, so it does not matter that it cannot be read now
