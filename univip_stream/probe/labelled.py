"""Images that are read by number, in any order: from a folder (one subfolder per class, if labelled), a list, a tar, or shards."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from univip_stream import storage
from univip_stream.errors import InputError
from univip_stream.failures import Failure
from univip_stream.images import MAX_PIXELS, BadImageError, read_picture
from univip_stream.shards import ShardSet, expand_shards, open_shards
from univip_stream.shards.cache import FetchError
from univip_stream.shards.format import UNREADABLE
from univip_stream.shards.rows import ShardError
from univip_stream.sources import Listing, list_sources, read_bytes
from univip_stream.stream.reader import Reader


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image with its label and key."""

    image: np.ndarray
    """uint8, height x width x 3, RGB, upright."""
    label: str | None
    """Class of the image, if the source gives one."""
    key: str
    """Name in the source."""


class ImageSource:
    """Images that are read by number, in a fixed order. After pickling or forking, each process opens its own files.

    Of shards, a few indexes are in memory at a time, so numbers that follow each other cost least.

    Args:
        spec: a folder, a tar of images or a list of images, as in `mine --src`; or shards, which may be open already.
        max_pixels: larger images are refused; images in our own shards are read at any size.

    Reading a bad image raises BadImageError; any other error has another cause than the image.

    Raises:
        InputError: there are no images.

    """

    def __init__(self, spec: str | ShardSet, *, max_pixels: int = MAX_PIXELS) -> None:
        if isinstance(spec, ShardSet):
            self.name = "the shards"
            self._images: _Listed | _Sharded = _Sharded(spec)
        else:
            self.name = spec
            # Shards are recognised by a manifest or tars. Anything else is a collection of images.
            folder = Path(spec)
            as_images = (folder.is_dir() and not any(folder.glob("*.tar"))) or spec.lower().endswith((".txt", ".parquet"))
            if not storage.is_remote(spec) and not set("<{*?[") & set(spec) and not os.path.lexists(spec):
                raise InputError(f"{spec}: no such folder of images or shards, tar, list or manifest; check the path")
            if as_images:
                self._images = _Listed(spec, max_pixels)
            else:
                self._images = _Sharded(open_shards(expand_shards(spec), max_pixels=max_pixels))
        self.notes: list[str] = self._images.notes
        """Sentences about what is left out."""

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> LabelledImage:
        return self._images[number]

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[number] for number in range(len(self)))

    def failure(self, number: int, error: BadImageError) -> Failure:
        """Return the Failure of an image that could not be read, with its name."""
        return Failure(self._images.source(number), error.status, str(error))

    def names(self, first: int, last: int) -> list[tuple[str, str | None]]:
        """(name in the source, label) of the images from `first` up to, not with, `last`."""
        return self._images.names(first, last)

    @cached_property
    def places(self) -> frozenset[str]:
        """Paths of the images, or their hashes in shards: two sources that have one in common share an image."""
        return frozenset(self._images.places())

    @cached_property
    def all_labels(self) -> list[str | None]:
        """Label of every image, in order; None if the source gives none."""
        return self._images.labels()

    @cached_property
    def keys(self) -> list[str]:
        """Key of every image, in order: its unique name in the source."""
        return self._images.keys()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what identifies the images: names, sizes and times of files, or a manifest's hashes."""
        return self._images.fingerprint()


class LabelledSource(ImageSource):
    """Images that all have a label. All that is known of them is in memory, for any order.

    Raises:
        InputError: there are no images, or some have no label.

    """

    def __init__(self, spec: str, *, max_pixels: int = MAX_PIXELS) -> None:
        super().__init__(spec, max_pixels=max_pixels)
        self._images.in_any_order()
        missing = sum(label is None for label in self.all_labels)
        if missing:
            raise InputError(
                f"{spec}: {missing} of {len(self)} images have no label; expected a folder a class, such as "
                f"{spec}/<class>/image.jpg, or shards that were mined from one"
            )

    @cached_property
    def labels(self) -> list[str]:
        """Label of every image, in order."""
        return [str(label) for label in self.all_labels]

    @cached_property
    def classes(self) -> list[str]:
        """Distinct labels, sorted."""
        return sorted(set(self.labels))

    @cached_property
    def numbers(self) -> np.ndarray:
        """int64: class of each image, as an index into `classes`."""
        place = {label: number for number, label in enumerate(self.classes)}
        return np.array([place[label] for label in self.labels])


def same_classes(train: LabelledSource, val: LabelledSource) -> None:
    """Check that a classifier trained on `train` can be judged by `val`.

    Raises:
        InputError: `val` has a class that `train` lacks, or there is only one class.

    """
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise InputError(
            f"{val.name} has classes that {train.name} lacks: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}; "
            f"they share {len(set(val.classes) & set(train.classes))}"
        )
    if len(train.classes) < 2:
        raise InputError(f"{train.name} has one class ({train.classes[0]}); expected at least two to tell apart")


class _Listed:
    """Images as `mine --src` lists them."""

    def __init__(self, spec: str, max_pixels: int) -> None:
        self.listing: Listing = list_sources([spec]).present()  # an annotation file may name more than the folder has
        self.max_pixels, self.notes = max_pixels, self.listing.remarks

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, number: int) -> LabelledImage:
        (image,) = self.listing.slice(number, number + 1)
        pixels = read_picture(read_bytes(image), max_pixels=self.max_pixels, min_side=1, max_side=1 << 30).pixels
        return LabelledImage(image=pixels, label=image.label, key=image.source)

    def source(self, number: int) -> str:
        (image,) = self.listing.slice(number, number + 1)
        return image.source

    def names(self, first: int, last: int) -> list[tuple[str, str | None]]:
        return [(image.source, image.label) for image in self.listing.slice(first, last)]

    def in_any_order(self) -> None:
        pass  # any is as near as the next

    def places(self) -> Iterator[str]:
        folders: dict[str, str] = {}
        for image in self.listing:
            folder, name = os.path.split(image.path)
            if folder not in folders:
                folders[folder] = folder if storage.is_remote(folder) else os.path.realpath(folder)
            yield f"{folders[folder]}/{name}" + ("" if image.offset is None else f"@{image.offset}")

    def labels(self) -> list[str | None]:
        return [image.label for image in self.listing]

    def keys(self) -> list[str]:
        return [image.source for image in self.listing]

    def fingerprint(self) -> str:
        facts = hashlib.sha256(self.listing.digest.encode())
        for image in self.listing:
            if not storage.is_remote(image.path):
                try:
                    status = os.stat(image.path)
                    facts.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
                except (OSError, ValueError):
                    facts.update(b"not there\n")  # reading it will fail
        return facts.hexdigest()


class _Sharded:
    """Samples of shards, checked against their hashes as they are read."""

    def __init__(self, index: ShardSet) -> None:
        self.index = index
        self.notes = index.notes
        self._reader: tuple[int, Reader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> LabelledImage:
        if self._reader is None or self._reader[0] != os.getpid():
            self._reader = (os.getpid(), Reader(self.index))
        try:
            pixels = self._reader[1].image(number)
        except (FetchError, ShardError):
            raise
        except InputError as error:
            raise BadImageError(UNREADABLE, str(error)) from error
        return LabelledImage(image=pixels, label=self.index.text("label", number), key=self.index.text("key", number))

    def source(self, number: int) -> str:
        return str(self.index.text("source", number))

    def names(self, first: int, last: int) -> list[tuple[str, str | None]]:
        return [(self.index.text("key", number), self.index.text("label", number)) for number in range(first, last)]

    def in_any_order(self) -> None:
        self.index = self.index.whole()

    def places(self) -> Iterator[str]:
        return self._column("sha256")

    def labels(self) -> list[str | None]:
        return list(self._column("label"))

    def keys(self) -> list[str]:
        return list(self._column("key"))

    def _column(self, name: str) -> Iterator[Any]:
        for shard in range(len(self.index.shards)):
            if self.index.counts[shard]:
                yield from getattr(self.index.rows(shard), name).to_pylist()

    def fingerprint(self) -> str:
        return str(self.index.fingerprint)
