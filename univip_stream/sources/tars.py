"""Plain tars of images, read in place: an image is a range of bytes, and nothing is unpacked.

A tar inside a tar (ImageNet's train set is a tar of a thousand) counts as a folder of its name, and so does each tar of a
folder of tars. Folders then act as in a folder source: if images are only in folders, these are the labels.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO, cast

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.shards.foreign import tar_members
from univip_stream.sources.folder import left_out, suffix_of
from univip_stream.sources.listing import SourceImage, Spool, text_of

_LOCAL_PIECE = 4096
"""Bytes read for a header on a local disk: a page; data between headers is skipped."""
_REMOTE_PIECE = 8 << 20
"""Bytes read for a header of a remote tar, where a request costs as much as reading a few megabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    """Path, with the names of enclosing tars as folders."""
    offset: int
    """First byte in the outermost tar."""
    size: int
    """Size in bytes."""
    fault: str | None
    """Reason why it is not read; None if it can be."""


def tar_images(tars: Sequence[tuple[str, str]], name: str, ignored: Counter[str]) -> Iterator[SourceImage]:
    """Yield the images of one or several plain tars, in their order in the tars.

    If all images are in one folder, it is taken as the archive's root and not as a label.

    Args:
        tars: (location, prefix of the members' names) of each; the prefix is empty, or a folder with a slash.
        name: name of the source.
        ignored: counts the members that are left out, by suffix or kind.

    Raises:
        InputError: a tar is compressed, damaged or truncated.

    """
    layout, spool = _Layout(), Spool()
    for location, prefix in tars:
        for member in members(location):
            if why := left_out(member.name):
                ignored[why] += 1
                continue
            path = prefix + member.name
            layout.add(path)
            spool.add(member_image(location, f"{name}/{text_of(path)}", member))
    for image in spool.read(0, spool.count):
        yield replace(image, label=layout.label(image.source.removeprefix(f"{name}/")))
    spool.close()


def member_image(location: str, source: str, member: Member) -> SourceImage:
    """Return a member of a tar as an image."""
    return SourceImage(source=source, path=location, offset=member.offset, size=member.size, fault=member.fault)


def members(location: str) -> Iterator[Member]:
    """Yield all files in a tar, and in the tars that it contains.

    Raises:
        InputError: it is not a tar, or compressed, damaged or truncated.

    """
    try:
        size = storage.size_of(location)
        if size is None:
            raise InputError("no such file")
        if storage.is_remote(location):
            yield from _members(location, 0, size, None)
        else:
            with open(location, "rb", buffering=0) as file:
                yield from _members(location, 0, size, cast(BinaryIO, file))
    except (InputError, OSError) as error:
        raise InputError(f"{location}: {str(error).removeprefix(f'{location}: ')}") from error


def read_member(location: str, member: Member) -> bytes:
    """Read the bytes of a small member."""
    return storage.read(location, member.offset, member.size)


class _Window:
    """Part of a file as a file of its own, for reading headers: small pieces, each a little behind the last."""

    def __init__(self, location: str, start: int, size: int, file: BinaryIO | None):
        self._location, self._start, self._size, self._file = location, start, size, file
        self._position = 0
        self._piece, self._piece_at = b"", 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        first = self._position
        last = min(first + size, self._size)
        if first >= last:
            return b""
        if not self._piece_at <= first <= last <= self._piece_at + len(self._piece):
            ahead = _REMOTE_PIECE if self._file is None else _LOCAL_PIECE
            self._piece_at, self._piece = first, self._fetch(first, min(max(last - first, ahead), self._size - first))
        data = self._piece[first - self._piece_at : last - self._piece_at]
        self._position += len(data)
        return data

    def _fetch(self, first: int, size: int) -> bytes:
        if self._file is None:
            return storage.read(self._location, self._start + first, size)
        self._file.seek(self._start + first)
        return self._file.read(size)


def _members(location: str, start: int, size: int, file: BinaryIO | None, within: str = "") -> Iterator[Member]:
    for info in tar_members(cast(BinaryIO, _Window(location, start, size, file))):
        if info.isdir():
            continue
        parts = [part for part in info.name.split("/") if part not in ("", ".")]
        name = within + "/".join(parts)
        fault = _fault(info, parts)
        if suffix_of(name) == ".tar" and not within and fault is None:
            try:
                inner = name.removesuffix(".tar") + "/"
                yield from _members(location, start + info.offset_data, info.size, file, inner)
            except InputError as error:
                raise InputError(f"{text_of(name)} in it: {error}") from error
        else:
            yield Member(name=name, offset=start + info.offset_data, size=info.size, fault=fault)


def _fault(info: tarfile.TarInfo, parts: list[str]) -> str | None:
    if info.issym() or info.islnk():
        return "it is a link in a tar, and links are not followed"
    if not info.isreg() or info.issparse():
        return "it is no regular file of the tar"
    if info.name.startswith("/") or ".." in parts:
        return "its name leads out of the tar"
    return None


class _Layout:
    """Finds out which folder of a path is the label, once all paths are added."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.one_root = True
        self.flat = [False, False]
        """Whether there are images in no folder, and images in exactly one folder."""

    def add(self, path: str) -> None:
        parts = path.split("/", 2)
        if len(parts) < 3:
            self.flat[len(parts) - 1] = True
        if self.first is None:
            self.first = parts[0]
        self.one_root = self.one_root and parts[0] == self.first

    def label(self, path: str) -> str | None:
        root = int(self.one_root and not self.flat[0])
        return None if any(self.flat[: root + 1]) else path.split("/")[root]
