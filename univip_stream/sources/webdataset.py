"""WebDataset shards as a source: ours, img2dataset's, anyone's whose samples are `key.jpg` with a `.json`, `.txt` or `.cls`."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

from univip_stream.sources.folder import is_image
from univip_stream.sources.listing import SourceImage, text_of
from univip_stream.sources.tars import Member, member_image, members, read_member

_BESIDE = frozenset({"json", "txt", "cls"})
"""What a sample has beside its image."""
_LOOKED_AT = 64
"""Members after which a tar without a sample is taken for another kind."""
_MOST_JSON_BYTES = 16 << 20
_MOST_LABEL_BYTES = 1 << 12


def is_webdataset(location: str) -> bool:
    """Whether a tar's first members are an image and what describes it, under one key.

    Raises:
        InputError: no tar, compressed, damaged or cut off.

    """
    for _, group in groupby(islice(members(location), _LOOKED_AT), key=_key):
        sample = list(group)
        if any(map(_shows, sample)) and any(_suffix(member) in _BESIDE for member in sample):
            return True
    return False


def webdataset_images(shards: Sequence[tuple[str, str]], name: str, ignored: Counter[str]) -> Iterator[SourceImage]:
    """Images of shards, in the order they lie in them.

    The label is the `.cls` member, or `label` in the JSON where that is a string or a whole number.

    Args:
        shards: location and prefix of the members' names: empty, or a folder's with a slash.
        name: what the source is called.
        ignored: gets the members that are no part of a sample, counted by suffix.

    Raises:
        InputError: a tar that is compressed, damaged or cut off.

    """
    for location, prefix in shards:
        for _, group in groupby(members(location), key=_key):
            sample = list(group)
            images = list(filter(_shows, sample))
            for member in sample:
                if not _shows(member) and not (images and _suffix(member) in _BESIDE):
                    ignored[f".{_suffix(member)}" if _suffix(member) else "(no suffix)"] += 1
            facts = _facts(location, sample) if images else {}
            for member in images:
                image = member_image(location, f"{name}/{text_of(prefix + member.name)}", member)
                yield SourceImage(
                    source=image.source, path=location, offset=image.offset, size=image.size, fault=image.fault, **facts
                )


def _facts(location: str, sample: list[Member]) -> dict[str, Any]:
    """Label and image id, where the sample says them."""
    fields: dict[str, Any] = {}
    label = None
    for member in sample:
        if member.fault is not None:
            continue
        if _suffix(member) == "json" and member.size <= _MOST_JSON_BYTES:
            try:
                found = json.loads(read_member(location, member))
            except (ValueError, RecursionError):
                found = None
            fields = found if isinstance(found, dict) else {}
        elif _suffix(member) == "cls" and member.size <= _MOST_LABEL_BYTES:
            label = read_member(location, member).decode("utf-8", "backslashreplace").strip() or None
    said = fields.get("label")
    if label is None and isinstance(said, str | int) and not isinstance(said, bool):
        label = str(said).encode("utf-8", "backslashreplace").decode()
    number = fields.get("image_id")
    whole = isinstance(number, int) and not isinstance(number, bool) and abs(number) < 1 << 63
    return {"label": label, "image_id": number if whole else None}


def _key(member: Member) -> str:
    """Up to the first dot after the last slash."""
    folder, slash, file = member.name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _suffix(member: Member) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _shows(member: Member) -> bool:
    return is_image(member.name)
