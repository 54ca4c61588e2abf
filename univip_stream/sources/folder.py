"""Folders of images, local or in an object store: flat (COCO), or with a folder a class (ImageNet), found out by looking."""

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
"""Names of one folder that are sorted in memory; more are merged from disk."""

ODD_KEY = "keys with an empty part, . or .. (a//b)"
"""What keys of object stores are counted as that no path can name."""


def folder_images(folder: str, name: str, ignored: Counter[str], *, labelled: bool) -> Iterator[SourceImage]:
    """Images below a folder, sorted by the bytes of their paths.

    Args:
        folder: local, or in an object store.
        name: what the source is called.
        ignored: gets the files that are left out, counted by suffix or what they are, and the keys that no path can name.
        labelled: whether the first folder below the source is the label (`n01440764/x.JPEG`): see `is_flat`.

    """
    for relative in files_below(folder, ignored):
        why = ODD_KEY if storage.is_odd(relative) else left_out(relative)
        if why is None:
            yield folder_image(folder, name, relative, labelled=labelled)
        else:
            ignored[why] += 1


def folder_image(folder: str, name: str, relative: str, *, labelled: bool) -> SourceImage:
    """The image at a path below a folder."""
    label = text_of(relative.split("/", 1)[0]) if labelled else None
    return SourceImage(source=f"{name}/{text_of(relative)}", path=storage.join(folder, relative), label=label)


def is_flat(folder: str) -> bool:
    """Whether images lie in the folder itself. Where they lie only in its subfolders, these are classes."""
    if storage.is_remote(folder):
        return any(is_image(name) for name in storage.names_in(folder) if not name.endswith("/"))
    with os.scandir(folder) as entries:
        return any(is_image(entry.name) and not _is_folder(entry) for entry in entries)


def is_image(path: str) -> bool:
    """Whether a file is an image by its path below the source."""
    return left_out(path) is None


def left_out(path: str) -> str | None:
    """What a file is counted as that is no image by its path below the source; None of an image."""
    suffix = suffix_of(path)
    return system_file(path) or (None if suffix[1:] in SUFFIXES else suffix or "(no suffix)")


def suffix_of(name: str) -> str:
    """`.jpg` and the like, lower case; empty where there is none."""
    return os.path.splitext(name)[1].lower()


def files_below(root: str, ignored: Counter[str] | None = None) -> Iterator[str]:
    """Paths below a folder of everything that is no folder, sorted by their bytes, with forward slashes.

    Folders behind links are entered once, so a loop ends; `ignored` gets how often one was met again.
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
    """Names in a folder. A folder's ends in a slash: then folder by folder is the order of whole paths."""
    place = os.stat(folder)
    if (place.st_dev, place.st_ino) in entered:
        if ignored is not None:
            ignored["links to folders that were listed already"] += 1
        return
    entered.add((place.st_dev, place.st_ino))
    with ExitStack() as stack:
        runs: list[Iterator[bytes]] = []
        names = _names(folder)
        while chunk := sorted(islice(names, _NAMES_AT_ONCE)):
            if len(chunk) < _NAMES_AT_ONCE and not runs:
                yield from chunk
                return
            run = stack.enter_context(Scratch())
            # A name may hold a line's end and no zero byte, a line the other way round.
            run.write(b"".join(name.replace(b"\n", b"\0") + b"\n" for name in chunk))
            run.seek(0)
            # The stack lets go of it, and not the last line: a reader that nobody holds is one that nobody closed.
            runs.append(_lines(stack.enter_context(io.BufferedReader(run))))
            del chunk
        yield from heapq.merge(*runs)


def _names(folder: str) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            yield os.fsencode(entry.name) + b"/" * _is_folder(entry)


def _lines(run: Iterable[bytes] | BinaryIO) -> Iterator[bytes]:
    for line in run:
        yield line[:-1].replace(b"\0", b"\n")


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed, and unreadable when its turn comes
        return False
