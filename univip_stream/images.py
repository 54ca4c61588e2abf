"""Decode image files to upright RGB pixels, in the same way for mining, stream and evaluation.

Most images are plain: an 8-bit JPEG, PNG or WebP that all decoders decode alike. Those are kept as they are. An image that
ordinary decoders would treat differently (rotated, CMYK, 16 bit, transparent, animated, or in a rare format) is decoded here
once, carefully, and can be stored as an upright RGB JPEG instead.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms

from univip_stream.depth import is_deep, to_8_bits
from univip_stream.filetypes import (
    FORMATS,
    MAX_BYTES,
    MAX_PIXELS,
    SUFFIXES,
    BadImageError,
    opened,
    pillows_limit_lifted,
    plugin_for,
    too_large,
    turned_by,
)

try:
    import simplejpeg
except ImportError:  # without it decoding is slower, with the same pixels
    simplejpeg = None

# The first four are exported here too, beside the functions that use them.
__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "SUFFIXES",
    "VERSION",
    "BadImageError",
    "Picture",
    "decode",
    "encode_jpeg",
    "orientation_of",
    "read_picture",
    "upright_size",
]

VERSION = "2"
"""Version of the decoding. Shards made by another version are not continued. Version 1 took all 16-bit samples as full
range."""

# Formats whose bytes may go into a shard untouched, with the member's suffix.
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
# EXIF 2.32, 4.6.4 A: transpositions that make the pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_END = b"\xff\xd9"
"""End mark of a JPEG."""

MAX_SIDE = 32_767
"""Longest side in pixels: boxes are stored in 16 bits."""
MIN_SIDE = 16
"""Shortest side in pixels: views of smaller images show nothing."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A decoded image, with the bytes that mining stores."""

    pixels: np.ndarray
    """uint8, height x width x 3, RGB, upright."""
    data: bytes
    """Bytes to store: the source's own, or an upright RGB JPEG."""
    suffix: str
    """Suffix of the stored bytes: jpg, png or webp."""
    converted: str | None
    """Reason why the stored bytes are not the source's; None if they are."""


def read_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE, max_side: int = MAX_SIDE) -> Picture:
    """Decode any supported image, upright.

    Raises:
        BadImageError: `unreadable`, `too_large` (before anything is decoded) or `too_small`, with the reason.

    """
    with opened(data, max_pixels=max_pixels) as image, pillows_limit_lifted(max_pixels):
        _check_size(image, max_pixels, min_side, max_side)
        whole: bytes | None = None
        converted = _why_not_plain(image, data)
        try:
            if converted is None:
                return Picture(pixels=_plain_pixels(image, data), data=data, suffix=_KEPT[str(image.format)], converted=None)
            pixels, more = _decoded(lambda img: _upright_rgb(img, data), image)
        except BadImageError:
            whole = _with_end_mark(data)
            if whole is None:
                raise
    if whole is not None:
        mended = read_picture(whole, max_pixels=max_pixels, min_side=min_side, max_side=max_side)
        pixels, converted, more = (
            mended.pixels,
            "JPEG without its end mark",
            f", {mended.converted}" if mended.converted else "",
        )
    return Picture(pixels=pixels, data=encode_jpeg(pixels), suffix="jpg", converted=f"{converted}{more}")


def upright_size(data: bytes, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> tuple[int, int]:
    """Return (width, height) of the image that `read_picture` would return, from the header alone.

    Raises:
        BadImageError: `unreadable`, `too_large` or `too_small`, as far as the header shows.

    """
    with opened(data, max_pixels=max_pixels) as image:
        _check_size(image, max_pixels, MIN_SIDE, max_side)
        width, height = image.size
        if image.format == "TIFF":  # Pillow gives its upright size
            return width, height
        turned = _decoded(turned_by, image) >= 5
    return (height, width) if turned else (width, height)


def orientation_of(data: bytes) -> int:
    """Return EXIF's orientation, 1 to 8: how `read_picture` turned the stored pixels to make them upright.

    Raises:
        BadImageError: `unreadable`, as far as the header shows.

    """
    with opened(data, max_pixels=1 << 62) as image:
        return int(_decoded(turned_by, image))


def stored_size_of(path: Path) -> tuple[int, int, int]:
    """Return (width, height, EXIF's orientation) of the stored pixels of a local file, from its header alone. Pillow may warn.

    Raises:
        BadImageError: `unreadable`, as far as the header shows.

    """
    try:
        with open(path, "rb") as file, pillows_limit_lifted(1 << 62):
            head = file.read(256)
            file.seek(0)
            if plugin_for(head):
                image = opened(file.read(), max_pixels=1 << 62)
                return (*image.size, turned_by(image))
            image = Image.open(file, formats=FORMATS)
            # Pillow decodes a whole PNG to find EXIF behind the pixels; few have it there, and the list of chunks shows
            # which.
            late = image.format == "PNG" and _has_late_metadata(file)
            found = (image.getexif() if late or image.format != "PNG" else Image.Image.getexif(image)).get(0x0112, 1)
            return (*image.size, int(found) if found in range(2, 9) else 1)
    except Exception as error:  # as in `_opened`
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error


def _has_late_metadata(file: BinaryIO) -> bool:
    """Return whether a PNG has text or EXIF after its first pixels; the position in the file is restored."""
    place = file.tell()
    file.seek(8)
    pixels = found = False
    while len(head := file.read(8)) == 8:
        pixels = pixels or head[4:] == b"IDAT"
        found = found or (pixels and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"))
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)
    file.seek(place)
    return found


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode a shard's image to the pixels that its boxes refer to: uint8, height x width x 3, RGB.

    Raises:
        BadImageError: it is unreadable or too large.

    """
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if width * height <= max_pixels and colours in ("YCbCr", "Gray", "RGB"):
                return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        except ValueError:
            pass  # Pillow tolerates harmless flaws and names the others
    return read_picture(data, max_pixels=max_pixels, min_side=1, max_side=1 << 30).pixels


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Encode an RGB image as JPEG at quality 95 without chroma subsampling: the loss does not affect proposals and training."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _check_size(image: Image.Image, max_pixels: int, min_side: int, max_side: int) -> None:
    width, height = image.size
    if width * height > max_pixels or max(width, height) > max_side:
        raise too_large(width, height, max_pixels, max_side)
    if min(width, height) < min_side:
        raise BadImageError("too_small", f"{width} x {height} pixels; at least {min_side} a side are needed")


def _why_not_plain(image: Image.Image, data: bytes) -> str | None:
    """Return the reason why an ordinary decoder would give other pixels than `_upright_rgb`, or None."""
    if image.format not in _KEPT:
        return f"format {image.format}"
    if image.mode == "CMYK":
        return "CMYK"
    if is_deep(image, data):
        return "16 bit"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return "animation, first frame"
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return "transparency, laid over white"
    orientation = _decoded(turned_by, image)
    return f"EXIF orientation {orientation}" if orientation > 1 else None


def _plain_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    if simplejpeg is not None and image.format in ("JPEG", "MPO"):
        try:
            return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        except ValueError:
            pass  # Pillow tolerates harmless flaws (stray bytes between markers) and names the others
    pixels: np.ndarray = _decoded(lambda img: np.array(img.convert("RGB")), image)
    return pixels


def _with_end_mark(data: bytes) -> bytes | None:
    """Return a JPEG that lacks only its end mark, with the end mark; None for any other file.

    libjpeg fills missing blocks with grey and warns; a file decodes without a warning only if all blocks are there.
    """
    if simplejpeg is None or data[:2] != b"\xff\xd8" or data.endswith(_END):
        return None
    whole = data + (_END[1:] if data.endswith(_END[:1]) else _END)
    try:
        simplejpeg.decode_jpeg(whole, colorspace="RGB", strict=True)
    except ValueError:
        return None
    return whole


def _upright_rgb(image: Image.Image, data: bytes) -> tuple[np.ndarray, str]:
    """Return upright RGB pixels, and remarks on the conversion that the format's name does not imply."""
    turned = 1 if image.format == "TIFF" else turned_by(image)  # Pillow turns a TIFF as it loads
    more = ", first of several pages" if image.format == "TIFF" and getattr(image, "is_animated", False) else ""
    deep = is_deep(image, data)
    image.load()
    if deep:
        image, used = to_8_bits(image, data)
        more += "" if used == 16 else f", {used} of 16 bits used"
    if image.mode == "LAB":
        profile = ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, transform) or image
    upright = image.transpose(_TURNS[turned]) if turned > 1 else image
    if upright.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in upright.info:
        coloured = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    rgb: np.ndarray = np.array(upright.convert("RGB"))
    return rgb, more


def _decoded(read: Any, image: Image.Image) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(image)
    except BadImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers can raise any error for a damaged file
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error
