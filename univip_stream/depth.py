"""Samples of more than 8 bits, brought to 8.

A file of 16 bits a sample often holds fewer: cameras, microscopes and X-ray detectors write 10, 12 or 14 bits into 16, and taken
for 16 such an image is almost black. How many are used is told by the file (PNG's sBIT, TIFF's bits a sample) or by its
largest value; samples are then shifted so that these bits fill 8.
"""

import cv2
import numpy as np
from PIL import Image

from univip_stream.filetypes import BadImageError

_DEPTHS = (8, 10, 12, 14, 16)
"""Bits that detectors' converters have. The largest value counts only in these steps, so that a dark picture of full depth is
brightened by four at the most, and usually not at all."""


def is_deep(image: Image.Image, data: bytes) -> bool:
    """Whether samples have more than 8 bits in the file; not of formats whose decoder gives 8 (HEIC, AVIF, JPEG 2000 in colour)."""
    if image.mode.startswith(("I", "F")):
        return True
    if image.format == "PNG":
        return data[24:25] == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(258, ()) if image.format == "TIFF" else ()
    return any(count > 8 for count in bits)


def to_8_bits(image: Image.Image, data: bytes) -> tuple[Image.Image, int]:
    """The image with samples of 8 bits (L, RGB or RGBA), and how many bits of each were used.

    Args:
        image: opened by Pillow, of a kind that `is_deep` finds.
        data: the file.

    Raises:
        BadImageError: numbers whose range nothing tells: floating point, negative, or beyond 16 bits.

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
        used = _used(values, image, data)
        if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]
            values = (1 << used) - 1 - values  # TIFF 6.0: the smallest value is white, which Pillow does not look at here
        grey = Image.fromarray(_shifted(values, used))
        if mask is not None:
            grey.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
        return grey, used
    associated = image.format == "TIFF" and 1 in tuple(image.tag_v2.get(338, ()))  # type: ignore[attr-defined]
    if image.mode not in ("RGB", "RGBA", "LA") or associated:
        return image, 16  # colours that OpenCV reads otherwise: Pillow's upper 8 bits
    # Pillow keeps the upper 8 bits of colours. OpenCV turns a TIFF by its orientation, as Pillow does, and nothing else.
    wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if wide is None or wide.dtype != np.uint16 or wide.shape[:2] != (image.height, image.width) or wide.ndim != 3:
        return image, 16
    colours = wide[..., 2::-1]
    used = _used(colours, image, data)
    planes = [_shifted(colours, used)]
    clear = image.info.get("transparency")
    if isinstance(clear, tuple):  # PNG's one colour that is none
        planes.append((~(colours == np.array(clear)).all(axis=2, keepdims=True) * 255).astype(np.uint8))
    elif image.mode in ("RGBA", "LA") and wide.shape[2] == 4:  # opaque is all bits set, however few the colours use
        planes.append(_shifted(wide[..., 3:], 16))
    return Image.fromarray(np.concatenate(planes, axis=2)), used


def _used(values: np.ndarray, image: Image.Image, data: bytes) -> int:
    """How many bits of each sample hold the picture."""
    most = int(values.max())
    said = _said(image, data)
    if said is not None and most < 1 << said:
        return said
    # PNG 3rd edition, 11.3.2.7: a conforming file has scaled its fewer bits up to 16 already, and then the upper ones count.
    return 16 if said is not None or most == 0 else next(depth for depth in _DEPTHS if most < 1 << depth)


def _said(image: Image.Image, data: bytes) -> int | None:
    """What the file says of it; None where it says nothing, or 16, which any file of this kind says."""
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
