"""Convert samples of more than 8 bits to 8.

A file with 16 bits per sample often uses fewer: cameras, microscopes and X-ray detectors store 10, 12 or 14 bits in 16, and read
as 16 bits such an image is almost black. The number of bits used is given by the file (PNG's sBIT, TIFF's bits per sample) or
follows from its largest value; samples are then shifted so that these bits fill 8.
"""

import cv2
import numpy as np
from PIL import Image

from univip_stream.filetypes import BadImageError

_DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths of common detectors. The largest value is rounded up to one of these, so that a dark picture of full depth is
brightened by a factor of four at most, and usually not at all."""


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Return whether the file has samples of more than 8 bits; False if its decoder returns 8 (HEIC, AVIF, JPEG 2000 in colour)."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "PNG":
        return data[24:25] == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(258, ()) if image.format == "TIFF" else ()
    return any(count > 8 for count in bits)


def to_8_bits(image: Image.Image, data: bytes) -> tuple[Image.Image, int]:
    """Return the image with samples of 8 bits (L, RGB or RGBA), and the number of bits that each sample used.

    Args:
        image: image opened by Pillow, for which `is_deep` is True.
        data: bytes of the file.

    Raises:
        BadImageError: the range of the samples is unknown: they are floating point, negative, or larger than 16 bits.

    """
    if image.mode == "F":
        values = np.asarray(image)
        raise BadImageError(
            "unreadable",
            f"pixels are floating point numbers ({values.min():g} to {values.max():g}) of a range that the file does not say; "
            "convert them to 8 or 16 bits",
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadImageError(
                "unreadable",
                f"pixel values from {values.min()} to {values.max()}; expected 8 or 16 bits: convert them, as nothing tells "
                "which of them is white",
            )
        clear = image.info.get("transparency") if image.format == "PNG" else None
        mask = values != clear if isinstance(clear, int) else None
        used = _used_bits(values, image, data)
        if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
            values = (1 << used) - 1 - values  # TIFF 6.0: the smallest value is white, which Pillow ignores here
        grey = Image.fromarray(_shifted(values, used))
        if mask is not None:
            grey.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
        return grey, used
    associated = image.format == "TIFF" and 1 in tuple(image.tag_v2.get(338, ()))  # type: ignore[attr-defined]
    if image.mode not in ("RGB", "RGBA", "LA") or associated:
        return image, 16  # colours that OpenCV reads differently: keep Pillow's upper 8 bits
    # Pillow keeps the upper 8 bits of colours. OpenCV turns a TIFF by its orientation, as Pillow does, and nothing else.
    wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if wide is None or wide.dtype != np.uint16 or wide.shape[:2] != (image.height, image.width) or wide.ndim != 3:
        return image, 16
    colours = wide[..., 2::-1]
    used = _used_bits(colours, image, data)
    planes = [_shifted(colours, used)]
    clear = image.info.get("transparency")
    if isinstance(clear, tuple):  # the one colour of a PNG that is transparent
        planes.append((~(colours == np.array(clear)).all(axis=2, keepdims=True) * 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA") and wide.shape[2] == 4:  # in alpha, all 16 bits set is opaque, whatever the colours use
        planes.append(_shifted(wide[..., 3:], 16))
    return Image.fromarray(np.concatenate(planes, axis=2)), used


def _used_bits(values: np.ndarray, image: Image.Image, data: bytes) -> int:
    """Return how many bits of each sample are used."""
    most = int(values.max())
    stated = _stated_bits(image, data)
    if stated is not None and most < 1 << stated:
        return stated
    # PNG 3rd edition, 11.3.2.7: a conforming file has scaled its fewer bits up to 16 already, so the upper bits count.
    return 16 if stated is not None or most == 0 else next(depth for depth in _DEPTHS if most < 1 << depth)


def _stated_bits(image: Image.Image, data: bytes) -> int | None:
    """Return the number of used bits that the file states; None if it states none, or 16, which all files of this kind do."""
    bits: tuple[int, ...] = ()
    if image.format == "PNG":
        at, end = data.find(b"sBIT", 0, 1 << 16), data.find(b"IDAT", 0, 1 << 16)
        if 0 < at < end:
            length = int.from_bytes(data[at - 4 : at])
            bits = tuple(data[at + 4 : at + 4 + min(length, 3)])
            bits = bits[:1] if length in (1, 2) else bits  # one or two: grey, and alpha
    elif image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = tuple(tags.get(258, ()))
        if not bits or max(bits) == 16:
            most = tags.get(281, ())  # MaxSampleValue
            most = max(most) if isinstance(most, tuple) and most else most
            bits = (most.bit_length(),) if isinstance(most, int) else ()
    depth = max(bits, default=16)
    return depth if 8 <= depth < 16 else None


def _shifted(values: np.ndarray, used: int) -> np.ndarray:
    held: np.ndarray = np.minimum(values.astype(np.int64), (1 << used) - 1) >> (used - 8)
    return held.astype(np.uint8)
