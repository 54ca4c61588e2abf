"""Labelled images for a protocol: a folder of class folders, or shards whose samples have labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from univip_stream.errors import InputError
from univip_stream.images import decode
from univip_stream.probe.features import LabelledImage
from univip_stream.shards import expand_shards, open_index
from univip_stream.sources import list_sources, read_bytes
from univip_stream.stream import ShardDataset


@dataclass(frozen=True, kw_only=True)
class LabelledSource:
    """Labelled images that can be read again and again, in a fixed order."""

    name: str
    """As the user wrote it."""
    labels: list[str]
    """Of every image, in order."""
    _images: "_Folder | _Shards"

    def __iter__(self) -> Iterator[LabelledImage]:
        return iter(self._images)

    @property
    def classes(self) -> set[str]:
        """The labels there are."""
        return set(self.labels)


def open_labelled(spec: str) -> LabelledSource:
    """Open a folder of class folders, or shards.

    Raises:
        InputError: nothing there, no labels, or not a label for every image.

    """
    path = Path(spec)
    if path.is_dir() and not any(path.glob("*.tar")):
        images: _Folder | _Shards = _Folder(path)
    else:
        images = _Shards(spec)
    return LabelledSource(name=spec, labels=images.labels(), _images=images)


class _Folder:
    def __init__(self, folder: Path):
        self.folder = folder
        self.listing = list_sources([folder])

    def labels(self) -> list[str]:
        if self.listing.classes is None:
            raise InputError(
                f"{self.folder} has images but no classes; expected a folder a class, such as {self.folder}/<class>/image.jpg"
            )
        return [str(image.label) for image in self.listing]

    def __iter__(self) -> Iterator[LabelledImage]:
        for image in self.listing:
            try:
                pixels = decode(read_bytes(image))
            except InputError as error:
                raise InputError(f"{image.path}: {error}; a protocol needs every image: mend or remove it") from error
            yield LabelledImage(image=pixels, label=str(image.label), key=image.source)


class _Shards:
    def __init__(self, spec: str):
        self.spec = spec
        self.index = open_index(expand_shards(spec))

    def labels(self) -> list[str]:
        labels: list[str | None] = self.index.label.to_pylist()
        missing = sum(label is None for label in labels)
        if missing:
            raise InputError(
                f"{self.spec}: {missing} of {len(labels)} samples have no label; mine a folder of class folders to get them"
            )
        return [str(label) for label in labels]

    def __iter__(self) -> Iterator[LabelledImage]:
        for sample in ShardDataset(self.index):
            pixels = sample.image.permute(1, 2, 0).numpy()
            yield LabelledImage(image=pixels, label=str(sample.label), key=sample.key)
