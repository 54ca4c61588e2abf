"""Open the sources that people name after `--src`: the kind of each is recognised by what is there."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path

from univip_stream import storage
from univip_stream.errors import InputError, UsageError
from univip_stream.files import system_file
from univip_stream.shards.spec import expand_shards
from univip_stream.sources.coco import Annotations, coco_images, find_annotations, read_annotations
from univip_stream.sources.columns import TABLES
from univip_stream.sources.folder import ODD_KEY, files_below, folder_images, is_flat, is_image, left_out
from univip_stream.sources.listing import Listing, SourceImage, text_of
from univip_stream.sources.lists import TEXTS, list_images
from univip_stream.sources.tars import tar_images
from univip_stream.sources.webdataset import is_webdataset, webdataset_images

KINDS = "a folder of images, a .tar of images, a folder or range of tars, or a list (.txt, .csv or .parquet)"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


def list_sources(
    sources: Sequence[str | Path], *, annotations: Sequence[str | Path] = (), with_boxes: bool = False
) -> Listing:
    """List the images of one or several sources, in the order these are named.

    Args:

        sources: folders (flat, with one folder per class, or of tars), tars, ranges of tars, lists; local or remote.
        annotations: COCO's annotation files, for folders that have none in `../annotations`.
        with_boxes: whether to read ground-truth boxes from the annotations.

    Raises:
        InputError: a source is missing, cannot be read or contains no image; or boxes are asked for and missing.
        UsageError: an annotation file cannot be assigned to one of the sources.

    """
    opened = [_Source(str(source)) for source in sources]
    names = _names(opened)
    given = _assigned([str(file) for file in annotations], opened)
    ignored: Counter[str] = Counter()
    listing = Listing(names)
    try:
        for source, name in zip(opened, names, strict=True):
            before, left_out = len(listing), Counter[str]()
            try:
                for image in source.images(name, left_out, listing.notes, given.get(source.text), with_boxes):
                    listing.add(image)
            except InputError:
                raise
            except OSError as error:
                raise InputError(f"{error.filename or source.text} cannot be read: {error.strerror or error}") from error
            if len(listing) == before:
                raise _no_image(source.text, left_out)
            ignored += left_out
            if source.annotations is not None:
                listing.named += len(source.annotations.ids)
                listing.boxes_left_out += Counter(source.annotations.left_out)
    except BaseException:
        listing.close()
        raise
    listing.ignored = dict(sorted(ignored.items()))
    return listing


@dataclass
class _Source:
    """One source, inspected as far as needed."""

    text: str
    """Text that the user wrote."""
    annotations: Annotations | None = None
    """Annotations of its images, once they were listed."""

    @cached_property
    def remote(self) -> bool:
        return storage.is_remote(self.text)

    @property
    def _web(self) -> bool:
        return storage.scheme_of(self.text) in storage.WEB

    @cached_property
    def pattern(self) -> bool:
        """Whether it is a range or a glob of tars."""
        there = not self.remote and os.path.lexists(self.text)
        return self._fixed_folder != self.text and storage.name_of(self.text).endswith(".tar") and not there

    @property
    def _fixed_folder(self) -> str:
        """The part of a pattern before its first range or wildcard, up to a slash; all of it if there is none."""
        head, *rest = re.split(r"[*<{\[]" if self._web else r"[*?<{\[]", self.text, maxsplit=1)
        return head.rpartition("/")[0] if rest else self.text

    @cached_property
    def kind(self) -> str:
        """Kind of the source: `folder`, `tars` or `list`.

        Raises:
            InputError: it does not exist, or is of no known kind.

        """
        if self.pattern:
            return "tars"
        lower = storage.name_of(self.text).lower()
        if self.remote:
            if lower.endswith((".tar", *_COMPRESSED)):
                return self._tar(lower)
            if lower.endswith(TEXTS + TABLES):
                return "list"
            if self._web:
                raise InputError(f"{self.text}: a web server lists no folder; expected a .tar, a range of tars or a list")
            return "folder"
        if not os.path.exists(self.text):
            raise InputError(f"{self.text}: no such folder or file; expected {KINDS} for --src")
        if os.path.isdir(self.text):
            return "folder"
        if lower.endswith((".tar", *_COMPRESSED)):
            return self._tar(lower)
        if lower.endswith(TEXTS + TABLES):
            return "list"
        raise InputError(f"{self.text} is a file; expected {KINDS} for --src")

    @property
    def place(self) -> str:
        """Location of the source, the same for all ways of writing it."""
        return self.text if self.remote else os.path.realpath(self.text)

    @property
    def stem(self) -> str:
        """Location without the suffix, or a pattern's folder. Its last parts serve as a name."""
        if self.pattern:
            return self._fixed_folder if self.remote else os.path.realpath(self._fixed_folder)
        path = self.place.partition("?")[0] if self._web else self.place
        return os.path.splitext(path)[0] if self.kind in ("tars", "list") else path

    def images(
        self, name: str, ignored: Counter[str], notes: list[str], annotations: str | None, with_boxes: bool
    ) -> Iterator[SourceImage]:
        """Yield its images in a fixed order; `ignored` and `notes` are filled as in a listing."""
        tars: list[tuple[str, str]] = []
        flat = self.kind == "folder" and is_flat(self.text)
        if self.pattern:
            tars = [(tar, self._folder_of(tar)) for tar in expand_shards(self.text)]
        elif self.kind == "tars":
            tars = [(self.text, "")]
        elif self.kind == "folder" and not flat and not any(map(_is_readable_image, files_below(self.text))):
            tars = list(_tars_below(self.text, ignored))
            if not tars:
                ignored.clear()  # counted again below
        of_files = self.kind == "folder" and not tars
        if annotations and not of_files:
            raise UsageError(f"--annotations {annotations} belongs to {self.text}, which is not a folder of images")
        found = (annotations or find_annotations(self.text)) if of_files else None
        if with_boxes and not found:
            raise InputError(
                f"{self.text} has no annotations, so no ground-truth boxes; expected a folder of images with "
                f"../annotations/instances_{name.rpartition('/')[2]}.json, or the file by --annotations"
            )
        if found:
            self.annotations = read_annotations(found, with_boxes=with_boxes)
            yield from coco_images(self.text, name, ignored, self.annotations, labelled=not flat)
        elif of_files:
            below = 0
            for image in folder_images(self.text, name, ignored, labelled=not flat):
                below += flat and "/" in image.source[len(name) + 1 :]
                yield image
            if below:  # one stray image among class folders takes all labels away
                notes.append(
                    f"{self.text}: images lie in the folder itself, so its folders, with {below} more, are not classes"
                )
        elif self.kind == "list":
            yield from list_images(self.text, name, ignored, notes)
        elif is_webdataset(tars[0][0]):
            yield from webdataset_images(tars, name, ignored)
        else:
            yield from tar_images(tars, name, ignored)

    def _folder_of(self, tar: str) -> str:
        """Return the folder that stands for one of a pattern's tars in its members' names."""
        path = tar.partition("?")[0] if self._web else tar
        return path.removeprefix(f"{self._fixed_folder}/").removesuffix(".tar") + "/"

    def _tar(self, lower: str) -> str:
        if lower.endswith(_COMPRESSED):
            raise InputError(
                f"{self.text} is compressed; images are read from a tar as ranges of bytes, so decompress it to a plain .tar"
            )
        return "tars"


def _is_readable_image(path: str) -> bool:
    return is_image(path) and not storage.is_odd(path)


def _tars_below(folder: str, ignored: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield the tars of a folder without images, each with the folder that stands for it in its members' names."""
    for path in files_below(folder):
        why = ODD_KEY if storage.is_odd(path) else left_out(path) or "(no suffix)"
        if why == ".tar":
            yield storage.join(folder, path), path[: -len(why)] + "/"
        else:
            ignored[why] += 1


def _assigned(files: list[str], sources: list[_Source]) -> dict[str, str]:
    """Assign annotation files to sources: to the one whose folder the file names, or to the only one."""
    given: dict[str, str] = {}
    for file in files:
        stem = os.path.splitext(storage.name_of(file))[0]
        owners = [source.text for source in sources if stem.endswith(f"_{storage.name_of(source.stem)}")]
        if not owners and len(sources) == len(files) == 1:
            owners = [sources[0].text]
        if len(owners) != 1 or owners[0] in given:
            names = ", ".join(source.text for source in sources)
            raise UsageError(
                f"--annotations {file} does not belong to exactly one of {names}; expected one file a folder, called "
                "something_<folder>.json where there are several"
            )
        given[owners[0]] = file
    return given


def _names(sources: list[_Source]) -> list[str]:
    """Return the name of each source: the last part of its location, with parents if two would be equal."""
    places = [source.place for source in sources]
    if len(set(places)) < len(places):
        raise InputError(f"the same source is named twice: {', '.join(places)}; expected each once")
    for outer, inner in permutations(sources, 2):
        below = inner.place.removeprefix(f"{outer.place.rstrip('/')}/")
        nested = below != inner.place and outer.kind == inner.kind == "folder"
        if nested and system_file(f"{below}/x") is None:
            raise InputError(
                f"{inner.text} lies in {outer.text}, so its images would be in the set twice; expected sources beside each other"
            )
    # train2017 and train2017.tar beside it differ only in the suffix.
    for texts in ([source.stem for source in sources], places):
        parts = [[part for part in text.split("/") if part] for text in texts]
        for depth in range(1, max(map(len, parts), default=0) + 1):
            names = ["/".join(part[-depth:]) for part in parts]
            if len(set(names)) == len(names):
                return [text_of(name) for name in names]
    return [text_of(place) for place in places]


def _no_image(source: str, ignored: Counter[str]) -> InputError:
    others = f"; it has {ignored.total()} other files ({', '.join(sorted(ignored))})" if ignored else ""
    return InputError(f"{source} holds no image: no file below it ends in .jpg, .png, .webp or another image suffix{others}")
