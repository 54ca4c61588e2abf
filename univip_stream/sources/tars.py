"""Plain tars of images, read where they lie: an image is a range of bytes, and nothing is unpacked.

A tar inside a tar (ImageNet's train set is one of a thousand) counts as a folder of its name, and so does each tar of a
folder of tars. Folders then act as in a folder source: where images lie only in them, they are the labels.
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
"""Bytes read for a header on a local disk: a page; what lies between headers is skipped."""
_REMOTE_PIECE = 8 << 20
"""The same from afar, where a request costs as much as reading through a few megabytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A file in a tar."""

    name: str
    """Its path, with the names of tars around it as folders."""
    offset: int
    """First byte in the outermost tar."""
    size: int
    """Bytes."""
    fault: str | None
    """Why it is not read; None if it may be."""


def tar_images(tars: Sequence[tuple[str, str]], name: str, ignored: Counter[str]) -> Iterator[SourceImage]:
    """Images of one or several plain tars, in the order they lie in them.

    Where all lie in one folder, that is taken for the archive's root and not for a label.

    Args:
        tars: location and prefix of the members' names: empty, or a folder's with a slash.
        name: what the source is called.
        ignored: gets the members that are left out, counted by suffix or what they are.

    Raises:
        InputError: a tar that is compressed, damaged or cut off.

    """
    layout, spool = _Layout(), Spool()
    for location, prefix in tars:
        for member in members(location):
            if why := left_out(member.name):
                ignored[why] += 1
                continue
            path = prefix + member.name
            layout.see(path)
            spool.add(member_image(location, f"{name}/{text_of(path)}", member))
    for image in spool.read(0, spool.count):
        yield replace(image, label=layout.label(image.source.removeprefix(f"{name}/")))
    spool.close()


def member_image(location: str, source: str, member: Member) -> SourceImage:
    """The image that a member is."""
    return SourceImage(source=source, path=location, offset=member.offset, size=member.size, fault=member.fault)


def members(location: str) -> Iterator[Member]:
    """Everything in a tar that is no folder, also in the tars it holds.

    Raises:
        InputError: no tar, compressed, damaged or cut off.

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
    """The bytes of a small member."""
    return storage.read(location, member.offset, member.size)


class _Window:
    """Part of a file as a file of its own. What it reads are headers: small pieces, each a little after the last."""

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
    """Which folder of a path is the label, told when all paths were seen."""

    def __init__(self) -> None:
        self.first: str | None = None
        self.one_root = True
        self.flat = [False, False]
        """Whether images lie in no folder, and in one only."""

    def see(self, path: str) -> None:
        parts = path.split("/", 2)
        if len(parts) < 3:
            self.flat[len(parts) - 1] = True
        if self.first is None:
            self.first = parts[0]
        self.one_root = self.one_root and parts[0] == self.first

    def label(self, path: str) -> str | None:
        root = int(self.one_root and not self.flat[0])
        return None if any(self.flat[: root + 1]) else path.split("/")[root]
