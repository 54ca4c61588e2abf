"""Tars as sources: what mining takes out of them is what lies in the folders they were packed from."""

import gzip
import io
import json
import shutil
import tarfile

import boto3
import pytest
from mined import column, mined
from servers import BUCKET, s3_server

from univip_stream.errors import InputError
from univip_stream.images import BadImageError
from univip_stream.sources import list_sources, read_bytes


def pack(path, members):
    """A tar of (name, bytes or TarInfo) in this order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(data, bytes):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def files(folder):
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


@pytest.fixture
def class_tars(labelled_folder, tmp_path):
    """ImageNet's train set in small: a tar a class, flat inside."""
    folder = tmp_path / "train"
    folder.mkdir()
    for number, place in enumerate(sorted(labelled_folder.iterdir())):
        pack(folder / f"n{number:08d}.tar", [(f"n{number:08d}_{name}", data) for name, data in files(place)])
    return folder


@pytest.fixture
def class_tars_images(labelled_folder):
    """What the tars hold: (path, label, bytes)."""
    places = enumerate(sorted(labelled_folder.iterdir()))
    return [
        (f"n{n:08d}/n{n:08d}_{name}", f"n{n:08d}", data) for n, place in places for name, data in files(place)
    ]  # fmt: skip


def test_imagenets_train_tar_of_tars_is_read_through(class_tars, class_tars_images, tmp_path):
    outer = pack(tmp_path / "ILSVRC2012_img_train.tar", files(class_tars))
    rows, report = mined(tmp_path / "out", outer)
    assert column(rows, "source", "label", "data") == [
        (f"ILSVRC2012_img_train/{path}", label, data) for path, label, data in class_tars_images
    ]
    assert report.manifest.classes == ["n00000000", "n00000001", "n00000002"]


def test_a_folder_of_class_tars_is_the_same(class_tars, class_tars_images, tmp_path):
    (class_tars / "notes.txt").write_text("words")
    rows, report = mined(tmp_path / "out", class_tars)
    assert column(rows, "source", "label", "data") == [
        (f"train/{path}", label, data) for path, label, data in class_tars_images
    ]
    assert report.ignored == {".txt": 1}


def test_a_flat_tar_has_no_labels_and_one_with_folders_has(drawn_folder, labelled_folder, tmp_path):
    flat = pack(tmp_path / "ILSVRC2012_img_val.tar", files(drawn_folder))
    rows, _ = mined(tmp_path / "flat", flat)
    assert column(rows, "source", "label", "data") == [
        (f"ILSVRC2012_img_val/{name}", None, data) for name, data in files(drawn_folder)
    ]
    for root in ("", "./", "train/"):  # the archive's root is no class
        folders = [
            (f"{root}{place.name}/{n}", data) for place in sorted(labelled_folder.iterdir()) for n, data in files(place)
        ]
        with list_sources([pack(tmp_path / "folders.tar", folders)]) as listing:
            assert [image.label for image in listing] == [name.removeprefix(root).split("/")[0] for name, _ in folders]
    rooted = pack(tmp_path / "rooted.tar", [(f"train2017/{name}", data) for name, data in files(drawn_folder)])
    with list_sources([rooted]) as listing:
        assert listing.classes is None


def test_a_folder_of_images_that_holds_a_tar_is_one_of_images(drawn_folder, tmp_path):
    shutil.copytree(drawn_folder, tmp_path / "images")
    pack(tmp_path / "images" / "more.tar", files(drawn_folder))
    with list_sources([tmp_path / "images"]) as listing:
        assert (len(listing), listing.ignored) == (12, {".tar": 1})


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return name, info


def test_links_devices_and_names_that_lead_out_are_rows_and_never_read(drawn_folder, tmp_path):
    good = (drawn_folder / "scene00.jpg").read_bytes()
    tar = pack(tmp_path / "odd.tar", [
        special("hard.jpg", tarfile.LNKTYPE, "good.jpg"), ("good.jpg", good), special("soft.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("device.jpg", tarfile.CHRTYPE), ("/etc/absolute.jpg", good), ("a/../../up.jpg", good), ("notes.txt", b"words"),
        special("folder", tarfile.DIRTYPE),
    ])  # fmt: skip
    rows, report = mined(tmp_path / "out", tar)
    assert {row["source"]: row["reason"] for row in rows if row["status"] == "unreadable"} == {
        "odd/hard.jpg": "it is a link in a tar, and links are not followed",
        "odd/soft.jpg": "it is a link in a tar, and links are not followed",
        "odd/device.jpg": "it is no regular file of the tar",
        "odd/etc/absolute.jpg": "its name leads out of the tar",
        "odd/a/../../up.jpg": "its name leads out of the tar",
    }
    assert [row["source"] for row in rows if row["data"] == good] == ["odd/good.jpg"]
    assert report.ignored == {".txt": 1}


def test_damaged_and_compressed_tars_are_named(class_tars, drawn_folder, tmp_path):
    whole = pack(tmp_path / "whole.tar", files(drawn_folder)).read_bytes()
    for cut in (100, 512, len(whole) // 2, len(whole) // 2 // 512 * 512, len(whole.rstrip(b"\0")) + 512 & -512):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.tar: .*cut off"):
            list_sources([tmp_path / "cut.tar"])
    for name in ("packed.tar", "packed.tar.gz"):
        (tmp_path / name).write_bytes(gzip.compress(whole))
        with pytest.raises(InputError, match=rf"{name}.* is compressed; .*decompress"):
            list_sources([tmp_path / name])
    inner = files(class_tars)
    inner[1] = (inner[1][0], inner[1][1][:5000])
    with pytest.raises(InputError, match=r"train\.tar: n00000001\.tar in it: .*cut off"):
        list_sources([pack(tmp_path / "train.tar", inner)])


def test_a_tar_that_shrinks_after_it_was_listed_gives_a_reason(drawn_folder, tmp_path):
    tar = pack(tmp_path / "a.tar", files(drawn_folder))
    with list_sources([tar]) as listing:
        last = listing.slice(11, 12)[0]
    tar.write_bytes(tar.read_bytes()[: last.offset + 10])
    with pytest.raises(BadImageError, match="ends inside it: 10 of"):
        read_bytes(last)


@pytest.fixture
def webdataset_folder(drawn_folder, tmp_path):
    """Two shards as img2dataset leaves them, labels in every way there is."""
    folder = tmp_path / "laion"
    folder.mkdir()
    images = [data for _, data in files(drawn_folder)]
    pack(folder / "00000.tar", [
        ("000000000.jpg", images[0]), ("000000000.json", json.dumps({"label": "cat"}).encode()), ("000000000.txt", b"a cat"),
        ("000000001.json", json.dumps({"label": 7}).encode()), ("000000001.jpg", images[1]), ("000000001.npy", b"numbers"),
        ("000000002.jpg", images[2]), ("000000002.json", json.dumps({"label": ["x"], "caption": "y"}).encode()),
    ])  # fmt: skip
    pack(folder / "00001.tar", [("000010000.jpeg", images[3]), ("000010000.cls", b"3"), ("alone.json", b"{}")])
    (folder / "00000.parquet").write_bytes(b"")
    return folder


def test_webdataset_shards_give_images_and_labels(webdataset_folder, drawn_folder, tmp_path):
    rows, report = mined(tmp_path / "out", webdataset_folder)
    images = [data for _, data in files(drawn_folder)]
    assert column(rows, "source", "label", "data") == [
        ("laion/00000/000000000.jpg", "cat", images[0]), ("laion/00000/000000001.jpg", "7", images[1]),
        ("laion/00000/000000002.jpg", None, images[2]), ("laion/00001/000010000.jpeg", "3", images[3]),
    ]  # fmt: skip
    assert report.ignored == {
        ".json": 1, ".npy": 1, ".parquet": 1, "labels in JSON that are no text or whole number": 1
    }  # fmt: skip
    for pattern in ("{00000..00001}.tar", "*.tar", "<00000..00001>.tar", "0000?.tar"):
        with list_sources([f"{webdataset_folder}/{pattern}"]) as listing:
            assert [image.source for image in listing] == [row["source"] for row in rows]
    with list_sources([webdataset_folder / "00001.tar"]) as listing:
        assert [(image.source, image.label) for image in listing] == [("00001/000010000.jpeg", "3")]
    with pytest.raises(InputError, match=r"00002\.tar: no such shard"):
        list_sources([f"{webdataset_folder}/{{00000..00002}}.tar"])


def test_our_own_shards_are_a_source(labelled_folder, tmp_path):
    first, _ = mined(tmp_path / "first", labelled_folder)
    again, _ = mined(tmp_path / "again", tmp_path / "first")
    assert column(again, "key", "label", "data") == column(first, "key", "label", "data")


def test_folders_tars_shards_and_lists_in_an_object_store(
    class_tars, class_tars_images, webdataset_folder, drawn_folder, tmp_path
):
    outer = pack(tmp_path / "train.tar", files(class_tars))
    local, _ = mined(tmp_path / "local", outer)
    assert [row["data"] for row in local] == [data for _, _, data in class_tars_images]
    with s3_server():
        client = boto3.client("s3")
        client.upload_file(str(outer), BUCKET, "imagenet/train.tar")
        for name, data in files(drawn_folder):
            client.put_object(Bucket=BUCKET, Key=f"sets/classes/{name[-5]}/{name}", Body=data)
        client.put_object(Bucket=BUCKET, Key="sets/classes/notes.txt", Body=b"words")
        for path in webdataset_folder.glob("*.tar"):
            client.upload_file(str(path), BUCKET, f"laion/{path.name}")
        client.put_object(Bucket=BUCKET, Key="sets/few.txt", Body=b"classes/0/scene00.jpg\nclasses/9/gone.jpg\n")
        remote, _ = mined(tmp_path / "remote", f"s3://{BUCKET}/imagenet/train.tar")
        folder, report = mined(tmp_path / "folder", f"s3://{BUCKET}/sets/classes")
        shards, _ = mined(tmp_path / "shards", f"s3://{BUCKET}/laion/{{00000..00001}}.tar")
        few, _ = mined(tmp_path / "few", f"s3://{BUCKET}/sets/few.txt")
        with pytest.raises(InputError, match="holds no image"):
            list_sources([f"s3://{BUCKET}/nowhere"])
    assert remote == local
    assert column(shards, "source", "label")[::3] == [
        ("laion/00000/000000000.jpg", "cat"),
        ("laion/00001/000010000.jpeg", "3"),
    ]
    assert column(few, "source", "status") == [
        ("few/classes/0/scene00.jpg", "no_boxes"), ("few/classes/9/gone.jpg", "unreadable")
    ]  # fmt: skip
    expected = sorted((f"{name[-5]}/{name}", name[-5], data) for name, data in files(drawn_folder))
    assert column(folder, "source", "label", "data") == [(f"classes/{p}", label, data) for p, label, data in expected]
    assert report.ignored == {".txt": 1}
