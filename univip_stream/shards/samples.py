"""Which members of a WebDataset tar make a sample: one rule, for mining, which lists them, and for training, which indexes them.

Members side by side with one key (their path up to the first dot of the file's name) belong together. The image is the one
whose whole ending is an image's (`00000.jpg`); others under its key (`00000.seg.png`, a second `00000.png`) are masks and their
like, and are left out. Where no member is that (`00000.image.jpg`; `photo.v1.jpg`, `photo.v2.jpg`), each ending in two parts
whose last is an image's is an image of its own, but for those that say they are a mask.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Generic, TypeVar

from univip_stream.images import SUFFIXES

Item = TypeVar("Item")
MOST_LABEL_BYTES = 1 << 12
MOST_JSON_BYTES = 16 << 20
"""A JSON member above this is not read: a thousand boxes take about 20 KB."""
_MOST_TOGETHER = 10_000
"""Members taken for one sample at most; a tar in which all have one key is not to fill the memory."""
MASKS = frozenset(
    {
        *("alpha", "annotation", "annotations", "depth", "disparity", "edge", "edges", "flow", "gt", "instance", "instances"),
        *("label", "labels", "labelmap", "mask", "masks", "matte", "normal", "normals", "panoptic", "seg", "segm"),
        *("segmentation", "semantic", "trimap"),
    }
)
"""Parts of an ending that say that an image shows what is in another."""


@dataclass(frozen=True, kw_only=True)
class SamplePart(Generic[Item]):
    """One image of a sample, and what lies beside it."""

    key: str
    """Its name without the ending."""
    image: Item
    suffix: str
    """The image's ending, lower case."""
    beside: dict[str, Item] = field(default_factory=dict)
    """`json`, `cls` and the captions' endings -> member."""


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """Path up to the first dot of the file's name, and what follows it in lower case; None where either is empty."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}{slash}{stem}", suffix.lower()) if stem and suffix else None


def grouped(members: Iterable[Item], name_of: Callable[[Item], str]) -> Iterator[tuple[str, list[tuple[str, Item]]]]:
    """Neighbours of one key: the key, and each member with its suffix. All names have a key and a suffix."""

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
    """The images among members of one key.

    Args:
        key: theirs.
        group: each with its suffix.
        left_out: called with `second` or `mask` and the suffix of each image that is none of a sample.

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
        said, _, last = suffix.rpartition(".")
        if not MASKS.isdisjoint(said.split(".")):
            left_out("mask", suffix)
            continue
        # What is said of one of several has its name: v1.json beside v1.jpg.
        own = {end.removeprefix(f"{said}."): found for end, found in group if end.rpartition(".")[0] == said}
        parts.append(SamplePart(key=f"{key}.{said}", image=member, suffix=last, beside=beside | own))
    return parts


def is_picture(suffix: str) -> bool:
    """Whether what follows a name's first dot ends as an image's name does."""
    return suffix.rpartition(".")[2] in SUFFIXES


def shows_masks(group: list[tuple[str, Any]]) -> bool:
    """Whether an image and a mask of it lie under one key: then a tar is of samples, even without labels."""
    masks = [not MASKS.isdisjoint(suffix.split(".")) for suffix, _ in group if is_picture(suffix)]
    return any(masks) and not all(masks)


def in_pairs(groups: list[list[tuple[str, Any]]]) -> bool:
    """Whether most images have a second one under their key whose ending says no more (`0.jpg`, `0.png`): it may be a mask."""
    images = [sum(suffix in SUFFIXES for suffix, _ in group) for group in groups]
    several, all_of_them = sum(count > 1 for count in images), sum(count > 0 for count in images)
    return all_of_them > 1 and 2 * several > all_of_them


def label_of(value: Any) -> str | None:
    """A label as text: of a text or a whole number, also where that was written as a float (pandas does); None of all else.

    A boolean is none: `{"label": true}` says that there is one, not which.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    text = str(value).encode("utf-8", "backslashreplace").decode()[:MOST_LABEL_BYTES]
    return text or None


def class_of(data: bytes) -> str | None:
    """The text of a `.cls` member."""
    return data.decode("utf-8", "backslashreplace").strip() or None
