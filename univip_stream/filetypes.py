"""What an image file is, by its bytes, and opening it with Pillow: also HEIC and JPEG XL, where their plugins are installed."""

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
"""What Pillow reads for us without a plugin. Not EPS and its like: those run an interpreter."""
_SUFFIXES = "jpg jpeg jpe jfif png webp gif bmp dib tif tiff ppm pgm pbm pnm jp2 j2k jpf jpx avif mpo heic heif hif jxl"
SUFFIXES = frozenset(_SUFFIXES.split())
"""File name endings taken for images, lower case."""
_UNREAD = "arw bpg cr2 cr3 dcm dng eps exr hdr ico jxr nef orf pcx pef psd psb raf raw rw2 sgi svg svgz tga xcf"
UNREAD_SUFFIXES = frozenset(_UNREAD.split())
"""Endings of images of kinds that are not read, lower case."""
PLUGINS = {"HEIF": ("pillow_heif", "pillow-heif", "HEIC"), "JXL": ("pillow_jxl", "pillow-jxl-plugin", "JPEG XL")}
"""Format -> module, package, and what people call it."""

MAX_PIXELS = 100_000_000
"""Width times height beyond which an image is not decoded: 300 MB of RGB."""
MAX_BYTES = 1 << 29
"""Encoded size beyond which an image is not read: 512 MiB."""


class BadImageError(InputError):
    """An image that cannot be used; `status` is one of the shard format's words for why."""

    def __init__(self, status: str, reason: str):
        super().__init__(reason)
        self.status = status


def too_large(width: int, height: int, max_pixels: int, max_side: int) -> BadImageError:
    """What is said of an image beyond a limit."""
    return BadImageError(
        "too_large",
        f"{width} x {height} pixels; the limit is {max_pixels} pixels and {max_side} a side (--max-pixels)",
    )


def opened(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image that bytes are, opened but not decoded.

    Args:
        data: a whole file.
        max_pixels: width times height up to which it is opened for certain. Pillow's own limit does not come before; larger
            ones may be opened too, so that the caller still has to look.

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
            warnings.simplefilter("ignore")  # about bombs and odd metadata: sizes are checked by the caller
            return Image.open(io.BytesIO(data), formats=(plugin,) if plugin else FORMATS)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise BadImageError(
            "too_large", f"{pixels[0] if pixels else 'too many'} pixels; the limit is {max_pixels} pixels (--max-pixels)"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImageError("unreadable", _unknown(data)) from error
    except Exception as error:  # Pillow's readers raise whatever broken headers lead them to
        raise BadImageError("unreadable", f"{type(error).__name__}: {error}") from error


def turned_by(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8: how the decoder's pixels have to be turned to be upright.

    HEIC and JPEG XL say it in the image itself, their decoders turn, and what EXIF says beside it is to be ignored (ISO/IEC
    23008-12, 6.5.10; ISO/IEC 18181-2). A JPEG packed into JPEG XL comes out as that JPEG, unturned.
    """
    if image.format == "HEIF" or (image.format == "JXL" and not getattr(image, "jpeg", False)):
        return 1
    found = image.getexif().get(0x0112, 1)
    return int(found) if found in range(2, 9) else 1


def plugin_for(data: bytes) -> str | None:
    """The format whose plugin reads this file; None where Pillow does alone, if anything does."""
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
        loaded = importlib.import_module(module)  # JPEG XL's makes itself known to Pillow
        if plugin == "HEIF" and plugin not in Image.OPEN:
            loaded.register_heif_opener()
    except ImportError as error:
        raise BadImageError(
            "unreadable", f"{called}, which needs {package}: pip install {package} (or 'univip-stream[formats]')"
        ) from error


def jxl_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG XL file, from its header (ISO/IEC 18181-1, SizeHeader), before any turning.

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


def _unknown(data: bytes) -> str:
    """Why Pillow reads nothing here."""
    bits = jpeg_bits(data)
    if bits is not None and bits != 8:
        return (
            f"a JPEG of {bits} bits a sample; only those of 8 are read: convert it to an 8-bit JPEG or a 16-bit PNG or TIFF"
        )
    return f"not an image that can be read (it begins with {data[:12]!r})"


def jpeg_bits(data: bytes) -> int | None:
    """Bits a sample, as a JPEG's frame header says (ITU-T T.81, B.2.2); None where there is none."""
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
_theirs: int | None = None


@contextlib.contextmanager
def pillows_limit_lifted(max_pixels: int) -> Iterator[None]:
    """Let Pillow read images of up to `max_pixels`; whoever calls has looked, or looks, at their size.

    Pillow's limit is one for the process. It goes with the first thread that needs that and is back with the last.
    """
    global _lifted, _theirs
    with _lock:
        limit = _theirs if _lifted else Image.MAX_IMAGE_PIXELS
        lifting = limit is not None and max_pixels > 2 * limit  # Pillow only warns up to twice its limit
        if lifting:
            if not _lifted:
                _theirs, Image.MAX_IMAGE_PIXELS = limit, None
            _lifted += 1
    try:
        yield
    finally:
        if lifting:
            with _lock:
                _lifted -= 1
                if not _lifted:
                    Image.MAX_IMAGE_PIXELS = _theirs


def _after_fork() -> None:
    """A forked process has none of the threads that had lifted it, or held the lock."""
    global _lock, _lifted
    _lock = threading.Lock()
    if _lifted:
        _lifted, Image.MAX_IMAGE_PIXELS = 0, _theirs


os.register_at_fork(after_in_child=_after_fork)
