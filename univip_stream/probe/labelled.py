"""Images to look at one by one, in any order: a folder (a folder a class, if there are labels), a list, a tar, or shards."""

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
from univip_stream.images import read_picture
from univip_stream.shards import expand_shards, open_index
from univip_stream.sources import Listing, list_sources, read_bytes
from univip_stream.stream.reader import Reader


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """An image with what it is."""

    image: np.ndarray
    """uint8, height x width x 3, RGB, upright."""
    label: str | None
    """Its class, where the source says one."""
    key: str
    """Its name in the source."""


class ImageSource:
    """Images that can be read again and again, by number, in a fixed order. Pickled or forked, each process opens its own files.

    Args:
        spec: a folder, a tar of images or a list of images, as `mine --src` takes them; or shards.

    Raises:
        InputError: nothing there.

    """

    def __init__(self, spec: str) -> None:
        self.name = spec
        # Shards are what has been mined: a manifest or tars. Anything else is images as people keep them.
        folder = Path(spec)
        as_images = (folder.is_dir() and not any(folder.glob("*.tar"))) or spec.lower().endswith((".txt", ".parquet"))
        self._images: _Listed | _Sharded = _Listed(spec) if as_images else _Sharded(spec)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> LabelledImage:
        return self._images[number]

    def __iter__(self) -> Iterator[LabelledImage]:
        return (self[number] for number in range(len(self)))

    @cached_property
    def all_labels(self) -> list[str | None]:
        """Of every image, in order; None where the source says none."""
        return self._images.labels()

    @cached_property
    def keys(self) -> list[str]:
        """Of every image, in order: its name in the source, unique."""
        return self._images.keys()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the images are known by: names, sizes and times of files, or a manifest's hashes."""
        return self._images.fingerprint()


class LabelledSource(ImageSource):
    """Images that all have a label.

    Raises:
        InputError: nothing there, no labels, or not a label for every image.

    """

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        missing = sum(label is None for label in self.all_labels)
        if missing:
            raise InputError(
                f"{spec}: {missing} of {len(self)} images have no label; expected a folder a class, such as "
                f"{spec}/<class>/image.jpg, or shards that were mined from one"
            )

    @cached_property
    def labels(self) -> list[str]:
        """Of every image, in order."""
        return [str(label) for label in self.all_labels]

    @cached_property
    def classes(self) -> list[str]:
        """The labels there are, sorted."""
        return sorted(set(self.labels))

    @cached_property
    def numbers(self) -> np.ndarray:
        """int64: each image's class, as its place in `classes`."""
        place = {label: number for number, label in enumerate(self.classes)}
        return np.array([place[label] for label in self.labels])


def same_classes(train: LabelledSource, val: LabelledSource) -> None:
    """Make sure that what is asked can be answered.

    Raises:
        InputError: `val` has a class that `train` has not, or there is but one class.

    """
    unknown = sorted(set(val.classes) - set(train.classes))
    if unknown:
        raise InputError(
            f"{val.name} has classes that {train.name} has not: {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}; "
            f"they share {len(set(val.classes) & set(train.classes))}"
        )
    if len(train.classes) < 2:
        raise InputError(f"{train.name} has one class ({train.classes[0]}); expected at least two to tell apart")


class _Listed:
    """Images as `mine --src` lists them."""

    def __init__(self, spec: str) -> None:
        self.listing: Listing = list_sources([spec])

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, number: int) -> LabelledImage:
        (image,) = self.listing.slice(number, number + 1)
        try:
            pixels = read_picture(read_bytes(image), min_side=1, max_side=1 << 30).pixels
        except InputError as error:
            raise InputError(f"{image.path}: {error}; a protocol needs every image: mend or remove it") from error
        return LabelledImage(image=pixels, label=image.label, key=image.source)

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
                except ValueError as error:  # a NUL in it: a list that is no text, such as UTF-16
                    raise InputError(f"{image.path[:200]!r} is no name of a file; expected a list in UTF-8") from error
                facts.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        return facts.hexdigest()


class _Sharded:
    """Samples of shards, checked against their hashes as they are read."""

    def __init__(self, spec: str) -> None:
        self.index = open_index(expand_shards(spec))
        self._reader: tuple[int, Reader] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> LabelledImage:
        if self._reader is None or self._reader[0] != os.getpid():
            self._reader = (os.getpid(), Reader(self.index))
        pixels = self._reader[1].image(number)
        return LabelledImage(image=pixels, label=self.index.text("label", number), key=self.index.text("key", number))

    def labels(self) -> list[str | None]:
        found: list[str | None] = self.index.label.to_pylist()
        return found

    def keys(self) -> list[str]:
        return [self.index.text("key", number) for number in range(len(self.index))]

    def fingerprint(self) -> str:
        return str(self.index.fingerprint)
