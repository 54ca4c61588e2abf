"""Notes at the end of a job about annotation files: what was left out, and where they contradict the images."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from univip_stream import storage
from univip_stream.errors import InputError, counted, why
from univip_stream.formats.published import Published
from univip_stream.mining.output import Output
from univip_stream.shards.candidates import candidates_beside, rows_with_candidates
from univip_stream.shards.format import HELD, index_name
from univip_stream.sources import Listing, SourceImage

_TURNED = re.compile(r"EXIF orientation [5-8]")


def left_out(listing: Listing, published: Published | None) -> list[str]:
    """Return a sentence for each kind of thing in annotation files that is not mined."""
    sentences = []
    if listing.absent:
        become = "each is a row with that reason" if listing.rows_of_absent else "they are left out"
        sentences.append(
            f"{len(listing.absent)} of the {listing.named} images that the annotations name are missing, such as "
            f"{listing.absent[0]}; {become}"
        )
    counts = dict(listing.boxes_left_out)
    for what, count in (published.boxes.left_out if published is not None else {}).items():
        counts[what] = counts.get(what, 0) + count
    sentences += [f"{counted(count, 'object')} of the annotations left out: {what}" for what, count in sorted(counts.items())]
    return sentences


def notes(
    listing: Listing,
    published: Published | None,
    upright: bool | None,
    out: Output,
    shards: Iterable[str],
    *,
    first: int = 0,
) -> list[str]:
    """Return sentences about what was left out, and about COCO images of another size than their annotations state.

    Args:
        listing: the images, in the order of the shards' rows.
        published: the imported boxes; None if none were imported.
        upright: whether a COCO file's boxes were taken as boxes of the upright image; None if boxes come from elsewhere.
        out: folder of the shards.
        shards: file names of the shards of these images.
        first: number of the first image in the first of these shards.

    """
    sentences = left_out(listing, published)
    if upright is None and published is None:
        return sentences
    images = listing.from_number(first)
    contrary: list[str] = []
    other: list[str] = []
    outside, whose = 0, ""
    for name in shards:
        for row in _rows(out, name):
            image = next(images)
            if row["status"] in HELD and (lost := _with_area(image, published) - row["candidates"]) > 0:
                outside, whose = outside + lost, whose or row["source"]
            if upright is None:
                continue
            size = image.size_said or (None if published is None else published.size_of(image))
            if size is None or row["status"] not in HELD:
                continue
            real = (row["width"], row["height"])
            turned = _TURNED.fullmatch(row["converted"] or "") is not None
            # For an image that was converted for another reason too, such as a TIFF, it is not known whether it was turned.
            expected = [real] if upright else [real[::-1]] if turned else [real, real[::-1]] if row["converted"] else [real]
            if size not in expected:
                swapped = size == (real[::-1] if upright else real)
                about = contrary if swapped and row["converted"] else other
                about.append(f"{row['source']} ({size[0]} x {size[1]} there, {real[0]} x {real[1]} upright)")
    if outside:
        boxes = counted(outside, "box", "boxes")
        sentences.append(f"{boxes} left out: outside their image, such as one of {whose}")
    if contrary:
        this, that = ("upright", "stored") if upright else ("stored", "upright")
        having = counted(len(contrary), "image has", "images have")
        sentences.append(
            f"{having} the width and height of the {that} picture in the annotations, such as {contrary[0]}, and their boxes are "
            f"taken as of the {this} one; look at some with `univip-stream inspect`, and if they lie wrong, mine with --box-frame "
            f"{that} into another --out"
        )
    if other:
        sentences.append(
            f"{counted(len(other), 'image is', 'images are')} of another size than the annotations say, such as {other[0]}; "
            f"{'its' if len(other) == 1 else 'their'} boxes may not fit: expected the annotations of exactly these images"
        )
    return sentences


def _rows(out: Output, name: str) -> Iterator[dict[str, Any]]:
    """Yield the columns that the notes need of each row, with the number of its `candidates`."""
    data = out.read(index_name(name))
    if data is None:
        raise InputError(f"{out.location} has no {index_name(name)} any more; was it moved while this job ran?")
    columns = ["source", "status", "width", "height", "converted"]
    try:
        for batch in rows_with_candidates(data, candidates_beside(data, out.path_of(name), storage.read), columns=columns):
            lengths = batch.column("candidates").value_lengths().fill_null(0)
            yield from batch.select(columns).append_column("candidates", lengths).to_pylist()
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"{out.path_of(index_name(name))} cannot be read ({why(error)}); mine this shard again") from error


def _with_area(image: SourceImage, published: Published | None) -> int:
    """Return how many boxes with an area an image was given; those without are counted where they are read."""
    boxes = image.boxes if published is None else published.boxes_of(image)
    given = np.asarray([] if boxes is None else boxes, np.int64).reshape(-1, 4)
    return int((given[:, 2:] > 0).all(axis=1).sum())
