"""Recognise image files by their bytes, and open them with Pillow: also HEIC and JPEG XL, if their plugins are installed."""

import contextlib
import importlib
import io
import os
import re
import threading
import warnings
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from univip_stream.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that Pillow may read without a plugin. EPS and the like are excluded, because they run an interpreter."""
_SUFFIXES = "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpf jpx avif mpo heic heif hif jxl"
SUFFIXES = frozenset(_SUFFIXES.split())
"""Suffixes of image files, lower case."""
_UNREAD = "arw bpg cr2 cr3 dcm dng eps exr hdr ico jxr nef orf pcx pef psd psb raf raw rw2 sgi svg svgz tga xcf"
UNREAD_SUFFIXES = frozenset(_UNREAD.split())
"""Suffixes of image files of kinds that are not read, lower case."""
PLUGINS = {"HEIF": ("pillow_heif", "pillow-heif", "HEIC"), "JXL": ("pillow_jxl", "pillow-jxl-plugin", "JPEG XL")}
"""Format -> module, package, and common name."""

MAX_PIXELS = 100_000_000
"""Width times height beyond which an image is not decoded: 300 MB of RGB."""
MAX_BYTES = 1 << 29
"""Encoded size beyond which an image is not read: 512 MiB."""


class BadImageError(InputError):
    """An image that cannot be used; `status` is the reason in the shard format."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


def too_large(width: int, height: int, max_pixels: int, max_side: int) -> BadImageError:
    """Return the error for an image beyond a limit."""
    return BadImageError(
        "too_large",
        f"{width} x {height} pixels; the limit is {max_pixels} pixels and {max_side} a side (--max-pixels)",
    )


def opened(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open an image file without decoding it.

    Args:
        data: the whole file.
        max_pixels: images up to this width times height are opened, whatever Pillow's own limit. Larger ones may be opened
            too, so the caller must check the size.

    Raises:
        BadImageError: `unreadable` or `too_large`.

    """
    if not data:
        raise BadImageError("unreadable", "the file is empty")
    if len(data) > MAX_BYTES:
        raise BadImageError("too_large", f"{len(data)} bytes; the limit is {MAX_BYTES}")
    plugin = plugin_for(data)
    if plugin:
        _load(plugin)
    if plugin == "JXL":  # its plugin decodes as it opens
        width, height = jxl_size(data)
        if width * height > max_pixels:
            raise too_large(width, height, max_pixels, 1 << 30)
    try:
        with warnings.catch_warnings(), pillows_limit_lifted(max_pixels):
            warnings.simplefilter("ignore")  # about huge images and odd metadata: the caller checks sizes
            return Image.open(io.BytesIO(data), formats=(plugin,) if plugin else FORMATS)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise BadImageError(
            "too_large", f"{pixels[0] if pixels else 'too many'} pixels; the limit is {max_pixels} pixels (--max-pixels)"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImageError("unreadable", _why_unreadable(data)) from error
    except Exception as error:  # Pillow's readers can raise any error for a damaged header
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error


def turned_by(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8: how the decoder's pixels must be turned to be upright.

    HEIC and JPEG XL record the orientation in the image itself and their decoders apply it, so EXIF's must be ignored (ISO/IEC
    23008-12, 6.5.10; ISO/IEC 18181-2). A JPEG packed into JPEG XL is decoded as that JPEG, unturned.
    """
    if image.format == "HEIF" or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return 1
    found = image.getexif().get(0x0112, 1)
    return int(found) if found in range(2, 9) else 1


def plugin_for(data: bytes) -> str | None:
    """Return the format whose plugin reads this file; None if Pillow reads it alone, or nothing does."""
    if data[:2] == b"\xff\x0a" or data[:12] == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JXL"
    if data[4:8] == b"ftyp":
        size = min(int.from_bytes(data[:4]), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}
        # mif1 and msf1 are any image or sequence of this family: AVIF names itself beside them.
        if not brands & {b"avif", b"avis"} and brands & {
            b"heic",
            b"heix",
            b"hevc",
            b"hevx",
            b"heim",
            b"heis",
            b"mif1",
            b"msf1",
        }:
            return "HEIF"
    return None


def _load(plugin: str) -> None:
    module, package, called = PLUGINS[plugin]
    try:
        loaded = importlib.import_module(module)  # JPEG XL's plugin registers itself with Pillow
        if plugin == "HEIF" and plugin not in Image.OPEN:
            loaded.register_heif_opener()
    except ImportError as error:
        raise BadImageError(
            "unreadable", f"{called}, which needs {package}: pip install {package} (or 'univip-stream[formats]')"
        ) from error


def jxl_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of a JPEG XL file from its header (ISO/IEC 18181-1, SizeHeader), before any turning.

    Raises:
        BadImageError: `unreadable`.

    """
    start = 0
    while data[:2] != b"\xff\x0a":  # boxes around the codestream
        size, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        if kind in (b"jxlc", b"jxlp"):
            start += 8 + 4 * (kind == b"jxlp") + 8 * (size == 1)
            break
        size = int.from_bytes(data[start + 8 : start + 16]) if size == 1 else size
        if size < 8 or start + size >= len(data):
            raise BadImageError("unreadable", "JPEG XL without an image in it: cut off or damaged")
        start += size
    head = int.from_bytes(data[start + 2 : start + 14], "little")

    def bits(count: int) -> int:
        nonlocal head
        value, head = head & ((1 << count) - 1), head >> count
        return value

    def side() -> int:
        return 8 * (bits(5) + 1) if small else bits((9, 13, 18, 30)[bits(2)]) + 1

    small = bits(1)
    height = side()
    ratio = bits(3)
    across, down = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    return (height * across // down if ratio else side()), height


def _why_unreadable(data: bytes) -> str:
    """Return the reason why Pillow cannot read a file."""
    bits = jpeg_bits(data)
    if bits is not None and bits != 8:
        return (
            f"a JPEG of {bits} bits a sample; only those of 8 are read: convert it to an 8-bit JPEG or a 16-bit PNG or TIFF"
        )
    return f"not an image that can be read (it begins with {data[:12]!r})"


def jpeg_bits(data: bytes) -> int | None:
    """Return the bits per sample from a JPEG's frame header (ITU-T T.81, B.2.2); None if there is none."""
    at = data.find(b"\xff\xd8", 0, 64)
    at = at + 2 if at >= 0 else len(data)
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return data[at + 4]
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


_lock = threading.Lock()
_lifted = 0
_pillows_limit: int | None = None


@contextlib.contextmanager
def pillows_limit_lifted(max_pixels: int) -> Iterator[None]:
    """While inside: let Pillow read images of up to `max_pixels`; the caller must check their size.

    Pillow has one limit for the process. It is removed for the first thread that needs it, and restored after the last.
    """
    global _lifted, _pillows_limit
    with _lock:
        limit = _pillows_limit if _lifted else Image.MAX_IMAGE_PIXELS
        lifting = limit is not None and max_pixels > 2 * limit  # Pillow only warns up to twice its limit
        if lifting:
            if not _lifted:
                _pillows_limit, Image.MAX_IMAGE_PIXELS = limit, None
            _lifted += 1
    try:
        yield
    finally:
        if lifting:
            with _lock:
                _lifted -= 1
                if not _lifted:
                    Image.MAX_IMAGE_PIXELS = _pillows_limit


def _after_fork() -> None:
    """Reset lock and limit in a forked process, which has none of the threads that held or lifted them."""
    global _lock, _lifted
    _lock = threading.Lock()
    if _lifted:
        _lifted, Image.MAX_IMAGE_PIXELS = 0, _pillows_limit


os.register_at_fork(after_in_child=_after_fork)
