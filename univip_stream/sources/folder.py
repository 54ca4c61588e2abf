"""Folders of images: flat (COCO), or with a folder a class (ImageNet), found out by looking."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from univip_stream.errors import InputError
from univip_stream.images import MAX_BYTES, SUFFIXES, BadImageError


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """One image file of a source."""

    source: str
    """Its name for people: the source folder's name and the path below it, with forward slashes, valid UTF-8."""
    path: str
    """Where it lies; bytes that are no UTF-8 are kept as the file system's escapes."""
    label: str | None
    """The class folder's name, or None."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images of all sources, sorted within each, in the order the sources were named."""

    images: list[SourceImage]
    """Sorted by path within a source."""
    sources: list[str]
    """What each source is called; the first part of its images' names."""
    classes: list[str] | None
    """Sorted labels; None where no source has class folders."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Files that are no images by their name, counted by suffix."""


def list_sources(folders: Sequence[Path]) -> Listing:
    """List one or several folders, below which every file with an image's suffix counts.

    Where images lie only in subfolders, the first folder below the source is the label (`n01440764/x.JPEG`).

    Raises:
        InputError: a folder that is not there, is no folder, or holds no image.

    """
    images: list[SourceImage] = []
    ignored: Counter[str] = Counter()
    names = _names(folders)
    for folder, name in zip(folders, names, strict=True):
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; expected a folder of images for --src")
        if not folder.is_dir():
            raise InputError(f"{folder} is a file; expected a folder of images for --src")
        found = []
        for relative in _files(folder):
            suffix = os.path.splitext(relative)[1].lower()
            if suffix[1:] in SUFFIXES:
                found.append(relative)
            else:
                ignored[suffix or "(no suffix)"] += 1
        if not found:
            others = f"; it has {sum(ignored.values())} other files ({', '.join(sorted(ignored))})" if ignored else ""
            raise InputError(
                f"{folder} holds no image: no file below it ends in .jpg, .png, .webp or another image suffix{others}"
            )
        labelled = all(os.sep in relative for relative in found)
        for relative in sorted(found, key=os.fsencode):
            label = _text(relative.split(os.sep, 1)[0]) if labelled else None
            source = f"{name}/{_text(relative.replace(os.sep, '/'))}"
            images.append(SourceImage(source=source, path=os.path.join(folder, relative), label=label))
    classes = sorted({image.label for image in images if image.label is not None}) or None
    return Listing(images=images, sources=names, classes=classes, ignored=dict(sorted(ignored.items())))


def read_bytes(image: SourceImage) -> bytes:
    """The file's bytes.

    Raises:
        BadImageError: it cannot be read, or is larger than any image (`unreadable`, `too_large`).

    """
    try:
        status = os.stat(image.path)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("unreadable", "it is no regular file")
        if size > MAX_BYTES:
            raise BadImageError("too_large", f"{size} bytes; the limit is {MAX_BYTES}")
        with open(image.path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadImageError("unreadable", f"{type(error).__name__}: {error.strerror}") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """What each source is called in `source`: its folder's name, with parents where two share it."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise InputError(f"the same folder is named twice: {', '.join(map(str, folders))}; expected each source once")
    depth = 1
    while True:
        names = ["/".join(folder.parts[-depth:]).lstrip("/") for folder in resolved]
        if len(set(names)) == len(names) or depth > 64:
            return [_text(name) for name in names]
        depth += 1


def _files(root: Path) -> Iterator[str]:
    """Paths below `root` of everything that is no folder. Folders behind links are entered once, so a loop ends."""
    entered = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, below)
        place = os.stat(folder)
        if (place.st_dev, place.st_ino) in entered:
            continue
        entered.add((place.st_dev, place.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
                relative = os.path.join(below, entry.name)
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link to itself: listed, and unreadable when its turn comes
                    is_folder = False
                if is_folder:
                    waiting.append(relative)
                else:
                    yield relative


def _text(name: str) -> str:
    """A file name as valid UTF-8: other bytes are written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
