"""WebDataset shards as a source: ours, img2dataset's, or any whose samples are `key.jpg` with a `.json`, `.txt` or `.cls`."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from univip_stream.files import system_file
from univip_stream.shards.samples import (
    MOST_JSON_BYTES,
    MOST_LABEL_BYTES,
    SamplePart,
    class_of,
    grouped,
    in_pairs,
    is_picture,
    key_and_suffix,
    label_of,
    parts_of,
    shows_masks,
)
from univip_stream.sources.listing import SourceImage, text_of
from univip_stream.sources.tars import Member, member_image, members, read_member

_BESIDE = frozenset({"json", "txt", "cls"})
"""Suffixes of the members that a sample can have beside its image."""
_INSPECTED = 64
"""Number of members after which a tar without a sample is taken for another kind."""


def is_webdataset(location: str) -> bool:
    """Whether a tar's first members are an image and its description or mask under one key, or images in pairs.

    Raises:
        InputError: it is not a tar, or compressed, damaged or truncated.

    """
    first = islice(members(location), _INSPECTED)
    groups = []
    for key, group in grouped(_named(first, Counter()), _name):
        parts = parts_of(key, group, lambda why, suffix: None)
        if shows_masks(group) or any(part.beside.keys() & _BESIDE for part in parts):
            return True
        groups.append(group)
    return in_pairs(groups)


def webdataset_images(shards: Sequence[tuple[str, str]], name: str, ignored: Counter[str]) -> Iterator[SourceImage]:
    """Yield the images of shards, in their order in the shards; `shards.samples` defines what a sample is.

    The label is the `.cls` member, or `label` in the JSON if that is a string or a whole number.

    Args:
        shards: (location, prefix of the members' names) of each; the prefix is empty, or a folder with a slash.
        name: name of the source.
        ignored: counts the members that are not part of a sample, by suffix or kind.

    Raises:
        InputError: a tar is compressed, damaged or truncated.

    """

    def left_out(why: str, suffix: str) -> None:
        ignored[f"masks or second images of a sample (.{suffix})"] += 1

    for location, prefix in shards:
        for key, group in grouped(_named(members(location), ignored), _name):
            parts = parts_of(key, group, left_out)
            for suffix, _ in group:
                described = suffix.rpartition(".")[2] in _BESIDE
                if not is_picture(suffix) and not (parts and described):
                    ignored[f".{suffix}"] += 1
            for part in parts:
                facts = _facts(location, part, ignored)
                image = member_image(location, f"{name}/{text_of(prefix + part.image.name)}", part.image)
                yield SourceImage(
                    source=image.source, path=location, offset=image.offset, size=image.size, fault=image.fault, **facts
                )


def _facts(location: str, part: SamplePart[Member], ignored: Counter[str]) -> dict[str, Any]:
    """Return a sample's label and image id, if it gives them."""
    fields: dict[str, Any] = {}
    label = None
    class_member, json_member = part.beside.get("cls"), part.beside.get("json")
    if class_member is not None and class_member.fault is None:
        if class_member.size <= MOST_LABEL_BYTES:
            label = class_of(read_member(location, class_member))
        else:
            ignored["class members over 4 KiB"] += 1
    if json_member is not None and json_member.fault is None:
        found: Any = None
        if json_member.size <= MOST_JSON_BYTES:
            try:
                found = json.loads(read_member(location, json_member))
            except (ValueError, RecursionError):
                found = None
        if not isinstance(found, dict):
            ignored["JSON members that hold no JSON object, or over 16 MiB"] += 1
        fields = found if isinstance(found, dict) else {}
    if label is None:
        label = label_of(fields.get("label"))
        if label is None and fields.get("label") not in (None, ""):
            ignored["labels in JSON that are no text or whole number"] += 1
    number = fields.get("image_id")
    whole = isinstance(number, int) and not isinstance(number, bool) and abs(number) < 1 << 63
    return {"label": label, "image_id": number if whole else None}


def _named(listed: Iterator[Member], ignored: Counter[str]) -> Iterator[Member]:
    """Yield the members that may be part of a sample."""
    for member in listed:
        kind = system_file(member.name)
        if kind is None and key_and_suffix(member.name) is None:
            kind = "(no suffix)"
        if kind is None:
            yield member
        else:
            ignored[kind] += 1


def _name(member: Member) -> str:
    return member.name
