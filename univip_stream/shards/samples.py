"""The rule that says which members of a WebDataset tar form a sample. Mining lists samples by it, and training indexes them.

Adjacent members with the same key (their path up to the first dot of the file name) belong together. The image is the member
whose whole ending is that of an image (`00000.jpg`); other images with its key (`00000.seg.png`, a second `00000.png`) are
taken for masks and the like, and are left out. If no member has such an ending (`00000.image.jpg`; `photo.v1.jpg`,
`photo.v2.jpg`), each member with an ending of several parts, the last of which is that of an image, is an image of its own,
unless its ending says that it is a mask.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, TypeVar

from univip_stream.images import SUFFIXES

Item = TypeVar("Item")
MOST_LABEL_BYTES = 1 << 12
MOST_JSON_BYTES = 16 << 20
"""Larger JSON members, in bytes, are not read; a thousand boxes take about 20 KB."""
_MOST_TOGETHER = 10_000
"""The most members of one sample, so that a tar in which all members have the same key does not fill the memory."""
MASKS = frozenset(
    {
        *("alpha", "annotation", "annotations", "depth", "disparity", "edge", "edges", "flow", "gt", "instance", "instances"),
        *("label", "labels", "labelmap", "mask", "masks", "matte", "normal", "normals", "panoptic", "seg", "segm"),
        *("segmentation", "semantic", "trimap"),
    }
)
"""Parts of an ending that mark an image as a mask or map of another image."""


@dataclass(frozen=True, kw_only=True)
class SamplePart(Generic[Item]):
    """One image of a sample, and the members beside it."""

    key: str
    """Name of the image without the ending."""
    image: Item
    suffix: str
    """Ending of the image in lower case."""
    beside: dict[str, Item] = field(default_factory=dict)
    """Members by ending: `json`, `cls` and those of captions."""


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Return the path up to the first dot of the file name, and what follows it in lower case; None if either is empty."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem and suffix else None


def grouped(members: Iterable[Item], name_of: Callable[[Item], str]) -> Iterator[tuple[str, list[tuple[str, Item]]]]:
    """Yield each key with its adjacent members, each as (suffix, member). All names must have a key and a suffix."""

    def key(member: Item) -> str:
        split = key_and_suffix(name_of(member))
        assert split is not None
        return split[0]

    for found, neighbours in groupby(members, key):
        group: list[tuple[str, Item]] = []
        for member in neighbours:
            if len(group) == _MOST_TOGETHER:
                yield found, group
                group = []
            split = key_and_suffix(name_of(member))
            assert split is not None
            group.append((split[1], member))
        yield found, group


def parts_of(key: str, group: list[tuple[str, Item]], left_out: Callable[[str, str], None]) -> list[SamplePart[Item]]:
    """Return the images among the members of one key.

    Args:
        key: key of the members.
        group: the members, each as (suffix, member).
        left_out: called with `second` or `mask` and the suffix for each image that is left out.

    """
    plain = next((at for at, (suffix, _) in enumerate(group) if suffix in SUFFIXES), None)
    beside = {suffix: member for suffix, member in group if "." not in suffix and suffix not in SUFFIXES}
    if plain is not None:
        for at, (suffix, _) in enumerate(group):
            if at != plain and is_picture(suffix):
                left_out("second", suffix)
        return [SamplePart(key=key, image=group[plain][1], suffix=group[plain][0], beside=beside)]
    parts = []
    for suffix, member in group:
        if not is_picture(suffix):
            continue
        stem, _, last = suffix.rpartition(".")
        if not MASKS.isdisjoint(stem.split(".")):
            left_out("mask", suffix)
            continue
        # What belongs to one of several images has its name: v1.json beside v1.jpg.
        own = {end.removeprefix(f"{stem}."): found for end, found in group if end.rpartition(".")[0] == stem}
        parts.append(SamplePart(key=f"{key}.{stem}", image=member, suffix=last, beside=beside | own))
    return parts


def is_picture(suffix: str) -> bool:
    """Return whether a suffix (what follows the first dot of a name) ends like the name of an image."""
    return suffix.rpartition(".")[2] in SUFFIXES


def shows_masks(group: list[tuple[str, Any]]) -> bool:
    """Return whether an image and a mask of it share the key: then a tar consists of samples, even without labels."""
    masks = [not MASKS.isdisjoint(suffix.split(".")) for suffix, _ in group if is_picture(suffix)]
    return any(masks) and not all(masks)


def in_pairs(groups: list[list[tuple[str, Any]]]) -> bool:
    """Return whether most images share their key with another plain image (`0.jpg`, `0.png`), which may be a mask."""
    images = [sum(suffix in SUFFIXES for suffix, _ in group) for group in groups]
    several, all_of_them = sum(count > 1 for count in images), sum(count > 0 for count in images)
    return all_of_them > 1 and 2 * several > all_of_them


def label_of(value: Any) -> str | None:
    """Return a label as text; None if it is neither a text nor a whole number.

    A whole number may be written as a float, as pandas does. A boolean is not a label: `{"label": true}` says that there is
    one, but not which.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).encode("utf-8", "backslashreplace").decode()[:MOST_LABEL_BYTES]
    return text or None


def class_of(data: bytes) -> str | None:
    """Return the text of a `.cls` member; None if it is empty."""
    return data.decode("utf-8", "backslashreplace").strip() or None
