"""What a WebDataset sample is, for mining and for training: the same tars through both."""

import io
import json
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from univip_stream.cli import cli
from univip_stream.shards import open_index
from univip_stream.shards.cache import Cache
from univip_stream.sources import list_sources


@pytest.fixture
def both(tmp_path):
    """A tar of these members, as mining lists it and as training indexes it: (names of images, labels), what each leaves out."""

    def read(members):
        folder = tmp_path / "set"
        folder.mkdir()
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        with list_sources([folder / "0.tar"]) as listing:
            mined = [(image.source.removeprefix("0/"), image.label) for image in listing]
            left_out = listing.ignored
        index = open_index([str(folder / "0.tar")], Cache(tmp_path / "cache"))
        trained = [
            (source.removeprefix("0.tar/"), label)
            for source, label in zip(index.source.to_pylist(), index.label.to_pylist(), strict=True)
        ]
        assert mined == trained
        return mined, left_out, index

    return read


def picture(value, fmt="JPEG"):
    file = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), value, np.uint8)).save(file, fmt)
    return file.getvalue()


def test_masks_beside_images_are_left_out_and_counted(both):
    members = []
    for n in range(3):
        members += [(f"{n}.jpg", picture(n)), (f"{n}.seg.png", picture(0, "PNG")), (f"{n}.cls", b"%d" % n)]
    found, left_out, index = both(members)
    assert found == [("0.jpg", "0"), ("1.jpg", "1"), ("2.jpg", "2")]
    assert left_out == {"masks or second images of a sample (.seg.png)": 3}
    assert index.notes == [f"3 members ending in .seg.png, not read (first in {index.shards[0]})"]


def test_masks_alone_beside_images_make_a_tar_one_of_samples(both):
    found, left_out, _ = both([(f"{n}.{end}", picture(n, "PNG")) for n in range(2) for end in ("png", "depth.png")])
    assert [name for name, _ in found] == ["0.png", "1.png"]
    assert left_out == {"masks or second images of a sample (.depth.png)": 2}


def test_a_mask_beside_an_image_whose_ending_has_two_parts_too_makes_a_tar_one_of_samples(both):
    found, left_out, _ = both(
        [(f"{n}.{end}", picture(n, "PNG")) for n in range(2) for end in ("rgb.png", "segmentation.png")]
    )
    assert [name for name, _ in found] == ["0.rgb.png", "1.rgb.png"]
    assert left_out == {"masks or second images of a sample (.segmentation.png)": 2}


def test_images_in_pairs_make_a_tar_one_of_samples(both):
    """What has no name of its own may be a mask too: mining is not to take what training leaves out."""
    found, left_out, _ = both([(f"{n}.{end}", picture(n, "PNG")) for n in range(3) for end in ("jpg", "png")])
    assert [name for name, _ in found] == ["0.jpg", "1.jpg", "2.jpg"]
    assert left_out == {"masks or second images of a sample (.png)": 3}


def test_an_ending_of_two_parts_is_an_image_where_no_other_is(both):
    found, left_out, _ = both(
        [
            ("a/1.image.jpg", picture(1)), ("a/1.mask.png", picture(0, "PNG")), ("a/1.cls", b"cat"),
            ("b.v1.jpg", picture(2)), ("b.v1.json", b'{"label": "one"}'), ("b.v2.jpg", picture(3)), ("b.v2.json", b'{"label": 2}'),
            ("c.jpg", picture(4)), ("c.2.jpg", picture(5)), ("c.png", picture(6, "PNG")), ("c.txt", b"words"),
        ]
    )  # fmt: skip
    assert found == [("a/1.image.jpg", "cat"), ("b.v1.jpg", "one"), ("b.v2.jpg", "2"), ("c.jpg", None)]
    assert left_out == {
        "masks or second images of a sample (.mask.png)": 1,
        "masks or second images of a sample (.2.jpg)": 1,
        "masks or second images of a sample (.png)": 1,
    }


@pytest.mark.parametrize(
    ("label", "expected", "said"),
    [
        ("cat", "cat", False), (7, "7", False), (7.0, "7", False), (None, None, False), (True, None, True), (0.5, None, True),
        ([1, 2], None, True), ({"a": 1}, None, True),
    ],
)  # fmt: skip
def test_labels_in_json_are_text_or_whole_numbers_and_others_are_counted(label, expected, said, both):
    found, left_out, index = both([("0.jpg", picture(0)), ("0.json", json.dumps({"label": label}).encode())])
    assert found == [("0.jpg", expected)]
    assert left_out == ({"labels in JSON that are no text or whole number": 1} if said else {})
    assert [note.startswith("1 labels in JSON that are no text") for note in index.notes] == [True] * said


def test_what_systems_leave_behind_is_left_out_of_tars(both):
    found, left_out, index = both(
        [
            ("__MACOSX/train/._0.jpg", b"\0\5\x16\7"), ("train/._0.jpg", b"\0\5\x16\7"), ("train/0.jpg", picture(0)),
            ("train/0.cls", b"1"), ("train/.ipynb_checkpoints/0-checkpoint.jpg", picture(0)),
        ]
    )  # fmt: skip
    assert found == [("train/0.jpg", "1")]
    assert left_out == {"in __MACOSX": 1, "._* (AppleDouble)": 1, "in .ipynb_checkpoints": 1}
    assert len(index.notes) == 3


def test_a_tar_whose_members_all_have_one_key_is_read_in_pieces(both, monkeypatch):
    monkeypatch.setattr("univip_stream.shards.samples._MOST_TOGETHER", 4)
    found, _, _ = both(
        [(f"photo.v{n}.{end}", picture(n) if end == "jpg" else b"1") for n in range(5) for end in ("jpg", "cls")]
    )
    assert found == [(f"photo.v{n}.jpg", "1") for n in range(5)]


def test_a_limit_leaves_images_out_and_a_higher_one_takes_them_again(both, tmp_path):
    _, _, index = both([("0.jpg", picture(0)), ("1.png", picture(1, "PNG"))])
    shard, cache = index.shards[0], Cache(tmp_path / "cache")
    for limit, count in ((768, 2), (10**9, 2)):
        assert len(open_index([shard], cache, max_pixels=limit)) == count
    with pytest.raises(Exception, match=r"2 images too large .*32 x 24 pixels; the limit is 767 pixels"):
        open_index([shard], cache, max_pixels=767)
    assert len(open_index([shard], cache)) == 2


def test_an_index_made_for_a_low_limit_is_made_anew_for_a_higher_one(both, tmp_path):
    _, _, index = both([("0.jpg", picture(0))])
    shard, cache = index.shards[0], Cache(tmp_path / "cache")
    (tmp_path / "set" / "0.univip-index.parquet").unlink()
    with pytest.raises(Exception, match="images too large"):
        open_index([shard], cache, max_pixels=100)
    assert len(open_index([shard], cache, max_pixels=1000)) == 1


def test_inspect_leaves_out_what_is_larger_than_it_is_told(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, side in (("a.png", 24), ("b.png", 48)):
            file = io.BytesIO()
            Image.new("RGB", (side, side)).save(file, "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(file.getvalue())
            tar.addfile(info, io.BytesIO(file.getvalue()))
    for limit, images in ((1000, 1), (10_000, 2)):
        words = ["inspect", str(tmp_path / "0.tar"), "--max-pixels", str(limit), "--cache", str(tmp_path / "cache"), "--json"]
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert json.loads(done.stdout)["samples"] == images, done.output
