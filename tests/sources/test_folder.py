import os
import shutil

import pytest

from univip_stream.errors import InputError
from univip_stream.images import BadImageError
from univip_stream.sources import list_sources, read_bytes


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_a_flat_folder_is_sorted_and_has_no_labels(tmp_path):
    listing = list_sources([touch(tmp_path / "train2017", "b.jpg", "a.JPEG", "c.webp", "d.png")])
    assert [image.source for image in listing] == [f"train2017/{name}" for name in ("a.JPEG", "b.jpg", "c.webp", "d.png")]
    assert listing.classes is None
    assert {image.label for image in listing} == {None}


def test_class_folders_give_labels(tmp_path):
    listing = list_sources([touch(tmp_path / "train", "n02/x.JPEG", "n01/y.JPEG", "n01/deep/z.JPEG")])
    assert [(image.source, image.label) for image in listing] == [
        ("train/n01/deep/z.JPEG", "n01"), ("train/n01/y.JPEG", "n01"), ("train/n02/x.JPEG", "n02")
    ]  # fmt: skip
    assert listing.classes == ["n01", "n02"]


def test_several_sources_follow_each_other(tmp_path):
    folders = [touch(tmp_path / "train2017", "9.jpg"), touch(tmp_path / "unlabeled2017", "1.jpg")]
    assert [image.source for image in list_sources(folders)] == ["train2017/9.jpg", "unlabeled2017/1.jpg"]


def test_sources_of_one_name_are_told_apart(tmp_path):
    folders = [touch(tmp_path / "a" / "images", "1.jpg"), touch(tmp_path / "b" / "images", "1.jpg")]
    assert [image.source for image in list_sources(folders)] == ["a/images/1.jpg", "b/images/1.jpg"]


def test_files_that_are_no_images_are_counted(tmp_path):
    listing = list_sources([touch(tmp_path, "a.jpg", "notes.txt", "more.txt", "README")])
    assert listing.ignored == {".txt": 2, "(no suffix)": 1}


def test_names_of_any_bytes_can_be_said_and_read(tmp_path):
    names = [b"new\nline.jpg", b"\xff\xfe.jpg", "ü.jpg".encode()]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    listing = list_sources([tmp_path])
    assert sorted(read_bytes(image) for image in listing) == sorted(names)
    for image in listing:
        image.source.encode("utf-8")


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path / "set", "in/a.jpg")
    (tmp_path / "set" / "in" / "again").symlink_to(tmp_path / "set")
    assert len(list_sources([tmp_path / "set"])) == 1


def test_a_link_to_nowhere_is_listed_and_unreadable(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    [image] = list_sources([tmp_path])
    with pytest.raises(BadImageError, match="No such file"):
        read_bytes(image)


def test_a_pipe_and_a_link_to_itself_are_listed_and_unreadable(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    for image in list_sources([tmp_path]):
        with pytest.raises(BadImageError):
            read_bytes(image)


def test_the_order_is_that_of_bytes_not_of_the_file_system(tmp_path):
    names = [f"{i}.jpg" for i in (10, 9, 1, 100)] + ["B.jpg", "a.jpg", "Ä.jpg"]
    first = [image.source for image in list_sources([touch(tmp_path / "s", *names)])]
    shutil.rmtree(tmp_path / "s")
    second = [image.source for image in list_sources([touch(tmp_path / "s", *reversed(names))])]
    assert first == second == [f"s/{name}" for name in sorted(names, key=os.fsencode)]


def test_sources_that_cannot_be_used_are_said(tmp_path):
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "a.jpg", "words/b.txt")
    wrong = {"none": "no such folder", "a.jpg": "is a file", "empty": "holds no image", "words": "1 other files"}
    for name, words in wrong.items():
        with pytest.raises(InputError, match=words):
            list_sources([tmp_path / name])
    with pytest.raises(InputError, match="named twice"):
        list_sources([tmp_path, tmp_path])


def test_what_systems_and_programs_leave_behind_is_left_out_and_counted(tmp_path):
    folder = touch(
        tmp_path / "train",
        "cat/1.jpg", "dog/2.jpg", "cat/._1.jpg", ".ipynb_checkpoints/1-checkpoint.jpg", "dog/.ipynb_checkpoints/2.jpg",
        "__MACOSX/cat/._1.jpg", ".Trash-1000/files/3.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", ".secret/4.jpg",
        "Thumbs.db", ".DS_Store", "dog/.5.jpg", "raw/6.CR2",
    )  # fmt: skip
    with list_sources([folder]) as listing:
        assert [(image.source, image.label) for image in listing] == [("train/cat/1.jpg", "cat"), ("train/dog/2.jpg", "dog")]
        assert listing.classes == ["cat", "dog"]
        assert listing.ignored == {
            "._* (AppleDouble)": 1, "in .ipynb_checkpoints": 2, "in __MACOSX": 1, "in .Trash-*": 1, "in @eaDir": 1,
            "in hidden folders": 1, ".db": 1, "hidden files": 2, ".cr2": 1,
        }  # fmt: skip
        assert listing.remarks[-1] == "images of kinds that are not read, left out: 1 .cr2"
    touch(tmp_path / "flat", "a.jpg", ".Trash-1000/files/b.jpg", "._a.jpg")
    assert [image.source for image in list_sources([tmp_path / "flat"])] == ["flat/a.jpg"]
    touch(tmp_path / "only", ".hidden/a.jpg")
    with pytest.raises(InputError, match="in hidden folders"):
        list_sources([tmp_path / "only"])


def test_a_hidden_source_is_read_as_any(tmp_path):
    assert len(list_sources([touch(tmp_path / ".cache" / "set", "a.jpg")])) == 1


def test_classes_lost_to_a_stray_image_and_folders_met_twice_are_said(tmp_path):
    touch(tmp_path / "train", "n01/a.jpg", "n02/b.jpg", "stray.jpg")
    with list_sources([tmp_path / "train"]) as listing:
        assert listing.classes is None
        assert "images lie in the folder itself, so its folders, with 2 more, are not classes" in listing.remarks[0]
    touch(tmp_path / "links", "n01/a.jpg")
    (tmp_path / "links" / "n02").symlink_to(tmp_path / "links" / "n01")
    with list_sources([tmp_path / "links"]) as listing:
        assert len(listing) == 1
        assert listing.ignored == {"links to folders that were listed already": 1}


def test_heic_and_jpeg_xl_are_images_by_their_names(tmp_path):
    assert len(list_sources([touch(tmp_path / "phone", "a.HEIC", "b.heif", "c.hif", "d.jxl")])) == 4


def test_a_source_within_another_is_an_error(tmp_path):
    """Every image of it would be in the set twice, once by either name."""
    touch(tmp_path / "coco", "train/a.jpg", "val/b.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "coco" / "val")
    for inner in (tmp_path / "coco" / "train", tmp_path / "link"):
        with pytest.raises(InputError, match=r"lies in .*twice"):
            list_sources([tmp_path / "coco", inner])
    assert len(list_sources([tmp_path / "coco" / "train", tmp_path / "coco" / "val"])) == 2
    touch(tmp_path / "coco" / ".kept", "c.jpg")  # of a hidden folder the outer one has nothing
    assert len(list_sources([tmp_path / "coco", tmp_path / "coco" / ".kept"])) == 3
