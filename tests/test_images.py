import io
import struct
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from demo_images import draw_scene
from PIL import Image

from univip_stream import filetypes, images
from univip_stream.filetypes import BadImageError
from univip_stream.images import decode, read_picture


@pytest.fixture
def scene(rng):
    return draw_scene("star", rng, 120, 80)


def encoded(pixels, fmt, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, fmt, **options)
    return file.getvalue()


def bad(data, **limits):
    with pytest.raises(BadImageError) as caught:
        read_picture(data, **limits)
    return caught.value


@pytest.mark.parametrize(("fmt", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_plain_images_are_kept_byte_for_byte(scene, fmt, suffix):
    data = encoded(scene, fmt)
    picture = read_picture(data)
    assert (picture.data, picture.suffix, picture.converted) == (data, suffix, None)
    np.testing.assert_array_equal(picture.pixels, np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_reading_is_the_same_without_simplejpeg(scene, monkeypatch):
    data = encoded(scene, "JPEG", quality=80)
    fast = read_picture(data).pixels, decode(data)
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(read_picture(data).pixels, fast[0])
    np.testing.assert_array_equal(decode(data), fast[1])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_rotated_image_is_stored_upright(scene, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(encoded(scene, "JPEG", quality=100, subsampling=0, exif=exif))
    # EXIF 2.32, section 4.6.4: which side of the stored image is the visual top and left.
    upright = {
        2: scene[:, ::-1], 3: scene[::-1, ::-1], 4: scene[::-1], 5: scene.transpose(1, 0, 2),
        6: np.rot90(scene, -1), 7: scene[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(scene),
    }[orientation]  # fmt: skip
    assert picture.converted == f"EXIF orientation {orientation}"
    assert np.abs(picture.pixels.astype(int) - upright).mean() < 3
    plain = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    assert np.abs(plain.astype(int) - upright).mean() < 3


def test_what_plain_decoders_show_differently_is_converted(scene):
    alpha = np.dstack([scene, np.full(scene.shape[:2], 128, np.uint8)])
    reasons = {
        "CMYK": io.BytesIO(),
        "16 bit": io.BytesIO(),
        "transparency": io.BytesIO(),
        "animation": io.BytesIO(),
        "format BMP": io.BytesIO(),
    }
    Image.fromarray(scene).convert("CMYK").save(reasons["CMYK"], "JPEG")
    reasons["16 bit"].write(cv2.imencode(".png", scene[..., ::-1].astype(np.uint16) * 257)[1].tobytes())
    Image.fromarray(alpha).save(reasons["transparency"], "PNG")
    frames = [Image.fromarray(scene), Image.fromarray(255 - scene)]
    frames[0].save(reasons["animation"], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    Image.fromarray(scene).save(reasons["format BMP"], "BMP")
    for reason, file in reasons.items():
        picture = read_picture(file.getvalue())
        assert picture.converted is not None
        assert picture.converted.startswith(reason)
        assert picture.suffix == "jpg"
        expected = scene / 2 + 127.5 if reason == "transparency" else scene
        if reason != "CMYK":  # a naive CMYK round trip shifts colours
            assert np.abs(picture.pixels - expected).mean() < 2
        stored = decode(picture.data)
        assert np.abs(stored.astype(int) - picture.pixels).mean() < 3


def test_bad_files_are_named_by_what_is_wrong(scene):
    jpeg = encoded(scene, "JPEG")
    assert bad(b"").status == "unreadable"
    assert "begins with b'hello'" in str(bad(b"hello"))
    assert bad(jpeg[: len(jpeg) // 2]).status == "unreadable"
    assert bad(encoded(scene, "PNG")[:-200]).status == "unreadable"
    assert bad(encoded(scene[:8], "PNG")).status == "too_small"
    assert bad(jpeg, max_pixels=100).status == "too_large"


def test_a_bomb_is_refused_before_it_is_decoded():
    """A PNG of 30,000 x 30,000 in a few bytes: only its header may be read."""
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    error = bad(data)
    assert error.status == "too_large"
    with pytest.raises(BadImageError):
        decode(data)


def test_stray_bytes_in_a_jpeg_are_forgiven_as_pillow_does(scene):
    data = encoded(scene, "JPEG")
    np.testing.assert_array_equal(read_picture(data + b"trailing words").pixels, read_picture(data).pixels)


def test_every_odd_file_is_a_picture_or_a_reason(shared_data):
    outcomes = {}
    for path in sorted((shared_data / "odd").iterdir()):
        try:
            picture = read_picture(path.read_bytes())
        except BadImageError as error:
            outcomes[path.name] = (error.status, str(error))
        else:
            outcomes[path.name] = ("kept", decode(picture.data).shape == picture.pixels.shape)
    assert {status for status, _ in outcomes.values()} == {"kept", "unreadable", "too_small", "too_large"}
    assert all(said for _, said in outcomes.values()), outcomes


def png(pixels, bits=None):
    """A PNG of 16 bits; `bits` is its sBIT."""
    data = cv2.imencode(".png", pixels)[1].tobytes()
    if bits is None:
        return data
    body = bytes([bits] * (pixels.shape[2] if pixels.ndim == 3 else 1))
    chunk = struct.pack(">I", len(body)) + b"sBIT" + body + struct.pack(">I", zlib.crc32(b"sBIT" + body))
    return data[:33] + chunk + data[33:]  # after the header


def tiff(pixels):
    return cv2.imencode(".tiff", pixels)[1].tobytes()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(("write", "kind"), [(png, "16 bit"), (tiff, "format TIFF")])
def test_samples_of_few_bits_in_16_are_shown_as_they_are_meant(bits, colours, write, kind, rng):
    """A detector's 12 bits in 16: the 8 upper ones of the 12 are the picture, and the shard says so."""
    seen = rng.integers(0, 256, (40, 50, colours), np.uint8)
    seen[0, 0] = 255
    picture = read_picture(write((seen.astype(np.uint16) << (bits - 8)).squeeze()[..., :: 1 if colours == 1 else -1]))
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to(seen, (40, 50, 3)))
    assert picture.converted == kind + (f", {bits} of 16 bits used" if bits < 16 else "")
    assert np.abs(decode(picture.data).astype(int) - picture.pixels).mean() < 4


def test_what_the_file_says_of_its_bits_counts_before_its_largest_value(rng):
    dark = rng.integers(0, 256, (40, 50), np.uint16)  # of twelve bits, nearly black
    np.testing.assert_array_equal(read_picture(png(dark, 12)).pixels[..., 0], dark >> 4)
    np.testing.assert_array_equal(read_picture(png(dark)).pixels[..., 0], dark)
    # A PNG by the book has its twelve bits scaled up to sixteen.
    scaled = dark << 8
    picture = read_picture(png(scaled, 12))
    np.testing.assert_array_equal(picture.pixels[..., 0], dark)
    assert picture.converted == "16 bit"


def test_alpha_of_16_bits_is_full_whatever_the_colours_use(rng):
    colours = rng.integers(0, 4096, (40, 50, 3), np.uint16)
    alpha = np.full((40, 50, 1), 0xFFFF, np.uint16)
    alpha[:20] = 0
    pixels = read_picture(png(np.concatenate([colours, alpha], axis=2))).pixels
    assert (pixels[:20] == 255).all()
    np.testing.assert_array_equal(pixels[20:], colours[20:, :, ::-1] >> 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("colours", [1, 3])
def test_a_deep_tiff_is_turned_once(orientation, colours, rng):
    """Pillow turns a TIFF as it loads it, and so does OpenCV."""
    tifffile = pytest.importorskip("tifffile")
    stored = rng.integers(0, 1 << 16, (40, 50, colours), np.uint16).squeeze()
    file = io.BytesIO()
    tifffile.imwrite(
        file, stored, photometric="rgb" if colours == 3 else "minisblack", extratags=[(274, 3, 1, orientation, True)]
    )
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    pixels = read_picture(file.getvalue()).pixels
    np.testing.assert_array_equal(pixels, np.broadcast_to((upright >> 8).reshape(*upright.shape[:2], colours), pixels.shape))
    assert images.upright_size(file.getvalue()) == pixels.shape[1::-1]


def test_a_tiff_whose_smallest_value_is_white_is_shown_so(rng):
    tifffile = pytest.importorskip("tifffile")
    seen = rng.integers(0, 256, (40, 50), np.uint8)
    seen[0, 0] = 0
    file = io.BytesIO()
    tifffile.imwrite(file, (255 - seen).astype(np.uint16) << 4, photometric="miniswhite")
    assert np.abs(read_picture(file.getvalue()).pixels[..., 0].astype(int) - seen).max() <= 1


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.linspace(0, 1, 2000, dtype=np.float32), "floating point numbers (0 to 1)"),
        (np.arange(-100, 1900, dtype=np.int16), "pixel values from -100 to 1899"),
        (np.arange(2000, dtype=np.uint32) * 1000, "pixel values from 0 to 1999000"),
    ],
)
def test_numbers_without_a_known_range_are_refused_in_words(pixels, words):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, pixels.reshape(40, 50), photometric="minisblack")
    error = bad(file.getvalue())
    assert error.status == "unreadable"
    assert words in str(error)
    assert "convert them" in str(error)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 100}])
def test_a_jpeg_that_lacks_its_end_mark_alone_is_kept_and_noted(options, scene):
    data = encoded(scene, "JPEG", **options)
    whole = read_picture(data).pixels
    for missing in (1, 2):
        picture = read_picture(data[:-missing])
        assert picture.converted == "JPEG without its end mark"
        np.testing.assert_array_equal(picture.pixels, whole)
        assert np.abs(decode(picture.data).astype(int) - whole).mean() < 3
    for missing in (4, 10, 100):  # blocks are gone: grey must not pass for them
        assert bad(data[:-missing]).status == "unreadable"


def test_a_turned_jpeg_without_its_end_mark_is_turned_too(scene):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(encoded(scene, "JPEG", exif=exif)[:-2])
    assert picture.converted == "JPEG without its end mark, EXIF orientation 6"
    assert picture.pixels.shape == (120, 80, 3)


def test_a_jpeg_of_twelve_bits_is_said_to_be_one(scene):
    data = bytearray(encoded(scene, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 4] = 12
    assert "a JPEG of 12 bits a sample" in str(bad(bytes(data)))


def test_every_page_but_the_first_of_a_tiff_is_said_to_be_left_out(scene):
    file = io.BytesIO()
    Image.fromarray(scene).save(file, "TIFF", save_all=True, append_images=[Image.fromarray(scene)])
    assert read_picture(file.getvalue()).converted == "format TIFF, first of several pages"


@pytest.mark.parametrize("fmt", ["HEIF", "JXL", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_phones_formats_are_read_upright(fmt, orientation, scene, tmp_path):
    """As phones write them: the turning in the image itself (HEIC), or in the EXIF of a JPEG packed into JPEG XL."""
    plugin = pytest.importorskip({"HEIF": "pillow_heif", "JXL": "pillow_jxl", "AVIF": "PIL"}[fmt])
    if fmt == "HEIF":
        plugin.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = {1: scene, 3: scene[::-1, ::-1], 6: np.rot90(scene), 8: np.rot90(scene, -1)}[orientation]
    if fmt == "JXL":
        path = tmp_path / "phone.jpg"
        path.write_bytes(encoded(stored, "JPEG", quality=95, exif=exif))
        Image.open(path).save(
            tmp_path / "phone.jxl", lossless_jpeg=True
        )  # the plugin packs JPEGs that it knows by their path
        data = (tmp_path / "phone.jxl").read_bytes()
        assert b"jbrd" in data
    else:
        data = encoded(stored, fmt, quality=95, exif=exif.tobytes())
    picture = read_picture(data)
    assert picture.converted == f"format {fmt}"
    assert picture.suffix == "jpg"
    assert np.abs(picture.pixels.astype(int) - scene).mean() < 6
    assert images.upright_size(data) == (120, 80)
    assert Image.open(io.BytesIO(picture.data)).getexif().get(0x0112) is None


def test_exif_beside_a_jpeg_xl_is_ignored_as_its_standard_says(scene):
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(encoded(scene, "JXL", lossless=True, exif=exif.tobytes()))
    np.testing.assert_array_equal(picture.pixels, scene)


@pytest.mark.parametrize("size", [(120, 80), (64, 64), (8, 256), (1000, 16), (317, 211)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size, monkeypatch):
    pytest.importorskip("pillow_jxl")
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "JXL", lossless=True)
    assert filetypes.jxl_size(file.getvalue()) == size
    monkeypatch.setattr(filetypes.Image, "open", lambda *arguments, **options: pytest.fail("decoded"))
    assert bad(file.getvalue(), max_pixels=size[0] * size[1] - 1).status == "too_large"


def test_without_their_plugins_heic_and_jpeg_xl_are_named(monkeypatch):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    assert "HEIC, which needs pillow-heif: pip install" in str(bad(b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + b"\0" * 50))
    assert "JPEG XL, which needs pillow-jxl-plugin" in str(bad(b"\xff\x0a" + b"\0" * 50))


def claimed(width, height):
    """A PNG of one colour, by its header and rows: small on disk at any size."""
    rows = zlib.compressobj(1)
    body = b"".join(rows.compress(bytes(1 + width // 8)) for _ in range(height)) + rows.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
    )


def test_pillows_own_limit_does_not_come_before_ours(monkeypatch):
    """Pillow's is set low, so that little has to be decoded; many threads read at once and leave it as it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = claimed(64, 64)
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(lambda limit: read_picture(data, max_pixels=limit).pixels.shape, [4096, 5000] * 50))
    assert set(sizes) == {(64, 64, 3)}
    assert Image.MAX_IMAGE_PIXELS == 1000
    assert "the limit is 4095 pixels" in str(bad(data, max_pixels=4095))
    assert Image.MAX_IMAGE_PIXELS == 1000
