"""Folders of images, local or in an object store: flat (COCO), or with one folder per class (ImageNet), which is detected."""

import heapq
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from typing import BinaryIO

from univip_stream import storage
from univip_stream.files import Scratch, system_file
from univip_stream.images import SUFFIXES
from univip_stream.sources.listing import SourceImage, text_of

_NAMES_AT_ONCE = 50_000
"""Number of a folder's names that are sorted in memory; if there are more, they are merged from disk."""

ODD_KEY = "keys with an empty part, . or .. (a//b)"
"""Kind under which object-store keys are counted that cannot be written as a path."""


def folder_images(folder: str, name: str, ignored: Counter[str], *, labelled: bool) -> Iterator[SourceImage]:
    """Yield the images below a folder, sorted by the bytes of their paths.

    Args:
        folder: local folder, or one in an object store.
        name: name of the source.
        ignored: counts the files that are left out, by suffix or kind, and the keys that cannot be written as a path.
        labelled: whether the first folder below the source is the label (`n01440764/x.JPEG`); see `is_flat`.

    """
    for relative in files_below(folder, ignored):
        why = ODD_KEY if storage.is_odd(relative) else left_out(relative)
        if why is None:
            yield folder_image(folder, name, relative, labelled=labelled)
        else:
            ignored[why] += 1


def folder_image(folder: str, name: str, relative: str, *, labelled: bool) -> SourceImage:
    """Return the image at a path below a folder."""
    label = text_of(relative.split("/", 1)[0]) if labelled else None
    return SourceImage(source=f"{name}/{text_of(relative)}", path=storage.join(folder, relative), label=label)


def is_flat(folder: str) -> bool:
    """Whether the folder itself contains images. If only its subfolders do, these are classes."""
    if storage.is_remote(folder):
        return any(is_image(name) for name in storage.names_in(folder) if not name.endswith("/"))
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not _is_folder(entry) for entry in entries)


def is_image(path: str) -> bool:
    """Whether a file is an image, judging by its path below the source."""
    return left_out(path) is None


def left_out(path: str) -> str | None:
    """Return the kind under which a file is counted if its path below the source is not an image's; None for images."""
    suffix = suffix_of(path)
    return system_file(path) or (None if suffix[1:] in SUFFIXES else suffix or "(no suffix)")


def suffix_of(name: str) -> str:
    """Return the suffix in lower case, such as `.jpg`; empty if there is none."""
    return os.path.splitext(name)[1].lower()


def files_below(root: str, ignored: Counter[str] | None = None) -> Iterator[str]:
    """Yield the paths of all files below a folder, sorted by their bytes, with forward slashes.

    Folders behind links are entered once, so that loops end; `ignored` counts how often one was met again.
    """
    if storage.is_remote(root):
        yield from (path for path, _ in storage.files_below(root))
        return
    entered: set[tuple[int, int]] = set()
    open_folders = [("", _sorted_names(root, entered, ignored))]
    while open_folders:
        below, names = open_folders[-1]
        found = next(names, None)
        if found is None:
            open_folders.pop()
            continue
        relative = below + os.fsdecode(found)
        if found.endswith(b"/"):
            open_folders.append((relative, _sorted_names(os.path.join(root, relative), entered, ignored)))
        else:
            yield relative


def _sorted_names(folder: str, entered: set[tuple[int, int]], ignored: Counter[str] | None) -> Iterator[bytes]:
    """Yield the sorted names in a folder. Folders' names end in a slash, so that the order is that of whole paths."""
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in entered:
        if ignored is not None:
            ignored["links to folders that were listed already"] += 1
        return
    entered.add((place.st_dev, place.st_ino))
    with ExitStack() as stack:
        runs: list[Iterator[bytes]] = []
        names = _names_in(folder)
        while chunk := sorted(islice(names, _NAMES_AT_ONCE)):
            if len(chunk) < _NAMES_AT_ONCE and not runs:
                yield from chunk
                return
            run = stack.enter_context(Scratch())
            # A name may contain a line break but no zero byte; for lines it is the other way round.
            run.write(b"".join(name.replace(b"\n", b"\0") + b"\n" for name in chunk))
            run.seek(0)
            runs.append(_lines(stack.enter_context(io.BufferedReader(run))))
            del chunk
        yield from heapq.merge(*runs)


def _names_in(folder: str) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield os.fsencode(entry.name) + b"/" * _is_folder(entry)


def _lines(run: Iterable[bytes] | BinaryIO) -> Iterator[bytes]:
    for line in run:
        yield line[:-1].replace(b"\0", b"\n")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: it is listed, and reading it fails
        return False
