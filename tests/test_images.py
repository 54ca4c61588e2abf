import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from demo_images import draw_scene
from PIL import Image

from univip_stream import images
from univip_stream.images import BadImageError, decode, read_picture


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
