"""Image bytes -> upright RGB pixels: one reading of every file, for mining, stream and evaluation.

Most images are plain: an 8-bit JPEG, PNG or WebP that every decoder shows alike. Those are kept as they are. What a plain
decoder would show differently (rotated, CMYK, 16 bit, see-through, moving, or a format that few read) is read here once,
carefully, and can be stored as an upright RGB JPEG instead.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from univip_stream.errors import InputError

try:
    import simplejpeg
except ImportError:  # slower without it, equal in its pixels
    simplejpeg = None

# Formats read at all. Not EPS and its like: those run an interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_SUFFIXES = "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpf jpx avif mpo"
SUFFIXES = frozenset(_SUFFIXES.split())
"""File name endings taken for images, lower case."""

# Formats whose bytes may go into a shard untouched, with the member's suffix.
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}

MAX_PIXELS = 100_000_000
"""Width times height beyond which an image is not decoded: 300 MB of RGB."""
MAX_SIDE = 32_767
"""Longest side in pixels: boxes are stored in 16 bits."""
MIN_SIDE = 16
"""Shortest side in pixels: below it no view can be cut that shows anything."""
MAX_BYTES = 1 << 29
"""Encoded size beyond which an image is not read: 512 MiB."""


class BadImageError(InputError):
    """An image that cannot be used; `status` is one of the shard format's words for why."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image as mining sees and stores it."""

    pixels: np.ndarray
    """uint8, height x width x 3, RGB, upright."""
    data: bytes
    """What to store: the source's own bytes, or an upright RGB JPEG."""
    suffix: str
    """Of the stored bytes: jpg, png or webp."""
    converted: str | None
    """Why the stored bytes are not the source's; None if they are."""


def read_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, min_side: int = MIN_SIDE, max_side: int = MAX_SIDE) -> Picture:
    """Decode any supported image, upright.

    Raises:
        BadImageError: `unreadable`, `too_large` (before anything is decoded) or `too_small`, with the reason.

    """
    with _opened(data) as image:
        _check_size(image, max_pixels, min_side, max_side)
        converted = _why_not_plain(image, data)
        if converted is None:
            return Picture(pixels=_plain_pixels(image, data), data=data, suffix=_KEPT[str(image.format)], converted=None)
        pixels = _decoded(_upright_rgb, image)
    return Picture(pixels=pixels, data=encode_jpeg(pixels), suffix="jpg", converted=converted)


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of what `read_picture` would give, from the header alone.

    Raises:
        BadImageError: `unreadable`, `too_large` or `too_small`, as far as the header tells.

    """
    with _opened(data) as image:
        _check_size(image, MAX_PIXELS, MIN_SIDE, MAX_SIDE)
        width, height = image.size
        turned = _decoded(lambda img: img.getexif().get(0x0112, 1), image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def orientation_of(data: bytes) -> int:
    """EXIF's orientation, 1 to 8: how `read_picture` turned the stored pixels to make them upright.

    Raises:
        BadImageError: `unreadable`, as far as the header tells.

    """
    with _opened(data) as image:
        found = _decoded(lambda img: img.getexif().get(0x0112, 1), image)
    return int(found) if found in range(2, 9) else 1


def stored_size_of(path: Path) -> tuple[int, int, int]:
    """(width, height, EXIF's orientation) of the pixels as they lie in a local file, from its header alone. Pillow may warn.

    Raises:
        BadImageError: `unreadable`, as far as the header tells.

    """
    try:
        with open(path, "rb") as file:
            image = Image.open(file, formats=_FORMATS)
            # Pillow decodes a whole PNG to look for EXIF behind the pixels; few have it there, and a walk over the chunks shows it.
            late = image.format == "PNG" and _facts_behind_pixels(file)
            found = (image.getexif() if late or image.format != "PNG" else Image.Image.getexif(image)).get(0x0112, 1)
            return (*image.size, int(found) if found in range(2, 9) else 1)
    except Exception as error:  # as in `_opened`
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error


def _facts_behind_pixels(file: BinaryIO) -> bool:
    """Whether a PNG has text or EXIF behind its first pixels; the place in the file stays."""
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
    """The pixels that boxes of a shard refer to: uint8, height x width x 3, RGB.

    Raises:
        BadImageError: unreadable or too large.

    """
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if width * height <= max_pixels and colours in ("YCbCr", "Gray", "RGB"):
                return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        except ValueError:
            pass  # Pillow forgives harmless flaws and names the others
    return read_picture(data, max_pixels=max_pixels, min_side=1, max_side=1 << 30).pixels


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """An RGB image as JPEG at quality 95 without chroma subsampling: the loss is invisible to proposals and training."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _check_size(image: Image.Image, max_pixels: int, min_side: int, max_side: int) -> None:
    width, height = image.size
    if width * height > max_pixels or max(width, height) > max_side:
        raise BadImageError(
            "too_large",
            f"{width} x {height} pixels; the limit is {max_pixels} pixels and {max_side} a side (--max-pixels)",
        )
    if min(width, height) < min_side:
        raise BadImageError("too_small", f"{width} x {height} pixels; at least {min_side} a side are needed")


def _opened(data: bytes) -> Image.Image:
    if not data:
        raise BadImageError("unreadable", "the file is empty")
    if len(data) > MAX_BYTES:
        raise BadImageError("too_large", f"{len(data)} bytes; the limit is {MAX_BYTES}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about bombs and odd metadata: sizes are checked by the caller
            return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImageError("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadImageError("unreadable", f"not an image that can be read (it begins with {data[:12]!r})") from error
    except Exception as error:  # Pillow's readers raise whatever broken headers lead them to
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error


def _why_not_plain(image: Image.Image, data: bytes) -> str | None:
    """Why an ordinary decoder would show other pixels than `_upright_rgb`, or None."""
    if image.format not in _KEPT:
        return f"format {image.format}"
    if image.mode == "CMYK":
        return "CMYK"
    if image.mode.startswith(("I", "F")) or (image.format == "PNG" and data[24:25] == b"\x10"):
        return "16 bit"
    if image.format != "MPO" and getattr(image, "is_animated", False):
        return "animation, first frame"
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return "transparency, laid over white"
    orientation = _decoded(lambda img: img.getexif().get(0x0112, 1), image)
    if orientation in range(2, 9):
        return f"EXIF orientation {orientation}"
    return None


def _plain_pixels(image: Image.Image, data: bytes) -> np.ndarray:
    if simplejpeg is not None and image.format in ("JPEG", "MPO"):
        try:
            return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        except ValueError:
            pass  # Pillow forgives harmless flaws (stray bytes between markers) and names the others
    pixels: np.ndarray = _decoded(lambda img: np.array(img.convert("RGB")), image)
    return pixels


def _upright_rgb(image: Image.Image) -> np.ndarray:
    image.load()
    if image.mode == "LAB":
        profile = ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "LAB", "RGB")
        image = ImageCms.applyTransform(image, transform) or image
    if image.mode.startswith("I"):
        values = np.asarray(image, np.int64)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise BadImageError("unreadable", f"pixel values from {values.min()} to {values.max()}; expected 8 or 16 bits")
        image_8bit = Image.fromarray((values >> 8).astype(np.uint8))
        image_8bit.info = image.info
        image = image_8bit
    if image.mode == "F":
        raise BadImageError("unreadable", "pixels are floating point numbers without a known range")
    upright: Image.Image = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in upright.info:
        coloured = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    rgb: np.ndarray = np.array(upright.convert("RGB"))
    return rgb


def _decoded(read: Any, image: Image.Image) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read(image)
    except BadImageError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # as above: a broken body raises anything
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error
