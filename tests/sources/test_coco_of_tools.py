"""COCO's JSON as annotation tools write it: what it means is mined, and what cannot be used is counted and said."""

import json
import shutil
import unicodedata

import pytest
from click.testing import CliRunner
from mined import column, mined
from PIL import Image

from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.evaluation.detection.data import read_coco
from univip_stream.formats.registry import read_published
from univip_stream.probe.labelled import ImageSource
from univip_stream.sources.coco import listed_images


@pytest.fixture
def photos(drawn_folder, tmp_path):
    """Four photographs of 320 x 240, and the content of a JSON of them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"scene{at:02d}.jpg" for at in range(4)]
    for name in names:
        shutil.copy(drawn_folder / name, folder)
    images = [{"id": 10 + at, "file_name": name, "width": 320, "height": 240} for at, name in enumerate(names)]
    objects = [
        {"id": at, "image_id": 10 + at, "category_id": 1, "bbox": [10 * at, 20, 100, 90], "iscrowd": 0} for at in range(4)
    ]
    return folder, {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}


def written(folder, content):
    path = folder.parent / "boxes.json"
    path.write_text(json.dumps(content))
    return path


def of_truth(out, folder, content, **changes):
    settings = {"proposals": "ground-truth", "num_shards": 1, "max_failures": "1%"} | changes
    return mined(out, folder, annotations=(written(folder, content),), **settings)


def command(*arguments):
    return CliRunner().invoke(cli, ["mine", *map(str, arguments), "--inline"], catch_exceptions=False)


@pytest.mark.parametrize("empty", [[], None, "no key"])
def test_an_object_without_a_box_is_left_out_counted_and_said(empty, photos, tmp_path):
    folder, content = photos
    if empty == "no key":
        del content["annotations"][1]["bbox"]
    else:
        content["annotations"][1]["bbox"] = empty
    rows, report = of_truth(tmp_path / "out", folder, content)
    assert [row["candidates"] for row in rows] == [[[0, 20, 100, 90]], [], [[20, 20, 100, 90]], [[30, 20, 100, 90]]]
    assert report.manifest.boxes_left_out == {"without a bbox": 1}
    assert report.notes == ["1 object of the annotations left out: without a bbox"]


def test_ids_may_be_whole_floats(photos, tmp_path):
    folder, content = photos
    for image in content["images"]:
        image["id"] = float(image["id"])
    for thing in content["annotations"]:
        thing["image_id"] = float(thing["image_id"])
    rows, _ = of_truth(tmp_path / "out", folder, content)
    assert column(rows, "image_id") == [(10,), (11,), (12,), (13,)]
    assert all(row["boxes"] for row in rows)
    content["images"][0]["id"] = 10.5
    with pytest.raises(InputError, match=r"the id 10\.5; expected a whole number"):
        of_truth(tmp_path / "other", folder, content)


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_match_in_either_unicode_form(here, there, photos, tmp_path):
    folder, content = photos
    for at, image in enumerate(content["images"][:2]):
        (folder / image["file_name"]).rename(folder / unicodedata.normalize(there, f"café{at}.jpg"))
        image["file_name"] = unicodedata.normalize(here, f"café{at}.jpg")
    rows, report = of_truth(tmp_path / "out", folder, content)
    assert column(rows, "image_id") == [(10,), (11,), (12,), (13,)]
    assert [len(row["boxes"]) for row in rows] == [1] * 4
    assert report.manifest.absent is None


def test_a_name_of_the_very_characters_comes_before_one_that_only_looks_so(photos, tmp_path):
    folder, content = photos
    for at, (form, image) in enumerate(zip(("NFC", "NFD"), content["images"], strict=False)):
        name = unicodedata.normalize(form, "café.jpg")
        (folder / f"scene0{at}.jpg").rename(folder / name)
        image["file_name"] = name
    rows, _ = of_truth(tmp_path / "both", folder, content)
    assert {row["source"]: row["image_id"] for row in rows} == {
        f"photos/{image['file_name']}": image["id"] for image in content["images"]
    }
    del content["images"][0], content["annotations"][0]  # the NFC one is on the disk, and the JSON names the NFD one alone
    rows, _ = of_truth(tmp_path / "one", folder, content)
    assert [row["source"] for row in rows if row["image_id"] is None] == [
        f"photos/{unicodedata.normalize('NFC', 'café.jpg')}"
    ]


def test_a_part_of_what_the_json_describes_is_mined_and_the_rest_counted(photos, tmp_path):
    folder, content = photos
    content["images"] += [{"id": 50 + at, "file_name": f"gone{at:02d}.jpg", "width": 9, "height": 9} for at in range(30)]
    done = command("--src", folder, "--annotations", written(folder, content), "--proposals", "ground-truth", "--out",
                   tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    line = "30 of the 34 images that the annotations name are missing, such as photos/gone00.jpg; they are left out"
    assert line in done.stdout
    assert line in done.stderr  # before the work, too
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["totals"]["images"] == manifest["totals"]["ok"] == 4
    assert (manifest["absent"]["images"], manifest["absent"]["of"]) == (30, 34)
    assert manifest["absent"]["such_as"][29] == "photos/gone29.jpg"
    told = command("--src", folder, "--annotations", written(folder, content), "--proposals", "ground-truth", "--out",
                   tmp_path / "out", "--json")  # fmt: skip
    assert json.loads(told.stdout)["notes"] == [line]


def test_few_absent_images_are_rows_that_do_not_count_as_failures(photos, tmp_path):
    """As many as may fail: one that is put back is mined alone."""
    folder, content = photos
    content["images"].append({"id": 50, "file_name": "a-gone.jpg", "width": 320, "height": 240})
    (folder / "scene03.jpg").write_text("words")
    rows, report = of_truth(tmp_path / "out", folder, content, max_failures="1")  # that of the broken one
    assert column(rows, "image_id", "status")[0] == (50, "unreadable")
    assert report.manifest.totals["unreadable"] == 2
    assert "each is a row with that reason" in report.notes[0]
    shutil.copy(folder / "scene00.jpg", folder / "a-gone.jpg")
    again, report = of_truth(tmp_path / "out", folder, content, max_failures="1", retry_failed=True)
    assert report.manifest.totals["unreadable"] == 1
    assert report.manifest.absent is None
    assert column(again, "key", "source") == column(rows, "key", "source")
    (folder / "scene02.jpg").write_text("words")
    with pytest.raises(InputError, match="2 of 5 images could not be used"):
        of_truth(tmp_path / "more", folder, content, max_failures="1")


def test_a_set_goes_on_as_it_was_begun_whatever_may_fail_now(photos, tmp_path):
    folder, content = photos
    content["images"] += [{"id": 50 + at, "file_name": f"gone{at:02d}.jpg", "width": 9, "height": 9} for at in range(4)]
    for begun, other in (("100%", "1%"), ("1%", "100%")):
        rows, _ = of_truth(tmp_path / begun, folder, content, max_failures=begun)
        again, report = of_truth(tmp_path / begun, folder, content, max_failures=other)
        assert (report.mined, again) == (0, rows)


@pytest.fixture
def upside_down(tmp_path):
    """A photograph that EXIF turns by a quarter, and a JSON of the stored pixels beside it."""
    folder = tmp_path / "phone"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (320, 240)).save(folder / "a.jpg", exif=exif)
    image = {"id": 1, "file_name": "a.jpg", "width": 320, "height": 240}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 100, 70], "iscrowd": 0}
    return folder, {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "thing"}]}


def test_a_size_of_the_other_frame_is_said(upside_down, tmp_path):
    folder, content = upside_down
    _, report = of_truth(tmp_path / "upright", folder, content)
    [note] = report.notes
    assert "1 image has the width and height of the stored picture" in note
    assert "phone/a.jpg (320 x 240 there, 240 x 320 upright)" in note
    assert "--box-frame stored" in note
    _, report = of_truth(tmp_path / "stored", folder, content, box_frame="stored")
    assert report.notes == []
    content["images"][0] |= {"width": 240, "height": 320}
    _, report = of_truth(tmp_path / "contrary", folder, content, box_frame="stored")
    assert "of the upright picture" in report.notes[0]
    content["images"][0] |= {"width": 2400, "height": 3200}
    _, report = of_truth(tmp_path / "larger", folder, content)
    assert "1 image is of another size than the annotations say" in report.notes[0]


def test_the_frame_is_a_part_of_the_job_and_a_set_of_before_goes_on_in_the_stored_one(upside_down, tmp_path):
    folder, content = upside_down
    before, report = of_truth(tmp_path / "out", folder, content, box_frame="stored")
    assert "box_frame" not in report.manifest.parameters  # as in sets of before there was a choice
    (tmp_path / "out" / "000.parquet").unlink()
    (tmp_path / "out" / "manifest.json").rename(tmp_path / "whole.json")
    (tmp_path / "out" / ".mining.json").write_text(json.dumps(report.manifest.parameters))  # stopped on the way
    again, report = of_truth(tmp_path / "out", folder, content)
    assert again == before
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    with pytest.raises(InputError, match="box_frame 'stored' there, 'upright' here"):
        of_truth(tmp_path / "out", folder, content, box_frame="upright")
    upright, report = of_truth(tmp_path / "new", folder, content)
    assert report.manifest.parameters["box_frame"] == "upright"
    assert upright[0]["boxes"] != before[0]["boxes"]
    with pytest.raises(InputError, match="box_frame 'upright' there, 'stored' here"):
        of_truth(tmp_path / "new", folder, content, box_frame="stored")


def test_a_frame_where_no_boxes_are_read_is_wrong_use(upside_down, tmp_path):
    folder, content = upside_down
    with pytest.raises(UsageError, match="leave it out"):
        of_truth(tmp_path / "out", folder, content, proposals="naive", box_frame="upright")
    _, report = of_truth(tmp_path / "out", folder, content, proposals="naive")
    assert "box_frame" not in report.manifest.parameters


def test_protocols_take_the_images_of_a_part_that_are_there(photos):
    """What is judged is a folder; an annotation file beside it may name more."""
    folder, content = photos
    content["images"].append({"id": 50, "file_name": "a-gone.jpg", "width": 320, "height": 240})
    (folder.parent / "annotations").mkdir()
    (folder.parent / "annotations" / "instances_photos.json").write_text(json.dumps(content))
    found = ImageSource(str(folder))
    assert len(found) == 4
    assert found[0].key == "photos/scene00.jpg"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_json_may_be_of_any_unicode_encoding_for_every_reader(encoding, photos, tmp_path):
    """Windows tools write UTF-8 with a mark, PowerShell UTF-16; `json.loads` reads them, and so must the streaming reader."""
    _, content = photos
    path = tmp_path / "boxes.json"
    path.write_bytes(json.dumps(content).encode(encoding))
    assert [image.file_name for image in listed_images((str(path),))] == [image["file_name"] for image in content["images"]]
    path.write_bytes(json.dumps([{"image_id": 10, "bbox": [1, 2, 3, 4], "score": 0.5}]).encode(encoding))
    assert len(read_published(str(path), "coco")) == 1


@pytest.mark.parametrize("lost", ["id", "file_name"])
def test_an_image_without_id_or_name_does_not_vanish(lost, photos, tmp_path):
    folder, content = photos
    del content["images"][1][lost]
    with pytest.raises(InputError, match="1 of its 4 images have no file_name or no id"):
        of_truth(tmp_path / "out", folder, content)


def test_objects_of_no_image_and_crowds_are_counted_and_said(photos, tmp_path):
    folder, content = photos
    things = content["annotations"]
    del things[0]["image_id"]
    things[1]["image_id"] = 999
    things[2]["iscrowd"] = 1
    rows, report = of_truth(tmp_path / "out", folder, content)
    assert [len(row["candidates"]) for row in rows] == [0, 0, 0, 1]
    assert report.manifest.boxes_left_out == {
        "crowds": 1, "of an image that it does not list": 1, "without an image_id": 1,
    }  # fmt: skip
    assert report.notes == [
        "1 object of the annotations left out: crowds",
        "1 object of the annotations left out: of an image that it does not list",
        "1 object of the annotations left out: without an image_id",
    ]


def test_a_crowd_is_said_by_a_number(photos, tmp_path):
    """ "0" is no crowd, though Python takes any text for true; nobody is to lose a box by it."""
    folder, content = photos
    content["annotations"][1]["iscrowd"] = "0"
    with pytest.raises(InputError, match="iscrowd '0'; expected 0 or 1"):
        of_truth(tmp_path / "out", folder, content)
    with pytest.raises(InputError, match="iscrowd '0'; expected 0 or 1"):
        read_coco(written(folder, content), folder)


def test_two_images_of_one_id_are_an_error_as_in_detection(photos, tmp_path):
    folder, content = photos
    content["images"][1]["id"] = content["images"][0]["id"]
    with pytest.raises(InputError, match=r"two images with the id 10, scene00\.jpg and scene01\.jpg"):
        of_truth(tmp_path / "out", folder, content)


def test_boxes_with_nothing_inside_their_image_are_counted_and_said(photos, tmp_path):
    folder, content = photos
    content["annotations"][0]["bbox"] = [5000, 20, 100, 90]
    content["annotations"][1]["bbox"] = [-200, 20, 100, 90]
    rows, report = of_truth(tmp_path / "out", folder, content)
    assert [len(row["candidates"]) for row in rows] == [0, 0, 1, 1]
    assert report.notes == ["2 boxes left out: outside their image, such as one of photos/scene00.jpg"]


def test_captions_are_no_boxes(photos, tmp_path):
    folder, content = photos
    content["annotations"] = [{"id": at, "image_id": 10 + at, "caption": "a bar"} for at in range(4)]
    with pytest.raises(InputError, match="has no object with a bbox"):
        of_truth(tmp_path / "out", folder, content)


@pytest.mark.parametrize("said", ["10", 10.5, [10]])
def test_ids_that_export_cannot_use_are_said(said, photos, tmp_path):
    _, content = photos
    content["images"][0]["id"] = said
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the image 'scene00.jpg' with the id .*expected a whole number"):
        list(listed_images((str(path),)))
    content["images"][0]["id"] = 10.0
    path.write_text(json.dumps(content))
    assert next(listed_images((str(path),))).image_id == 10


def test_boxes_of_added_images_are_compared_with_those_images(photos, tmp_path):
    """The manifest lists the shards of before too; what was read of the annotations is of the new ones alone."""
    folder, content = photos
    last = folder / content["images"][3]["file_name"]
    data = last.read_bytes()
    last.unlink()
    of_truth(tmp_path / "out", folder, {**content, "images": content["images"][:3]})
    last.write_bytes(data)
    content["images"][3].update(width=999)
    _, report = of_truth(tmp_path / "out", folder, content, add=True, num_shards=None)
    assert report.mined == 1
    assert [note for note in report.notes if "another size" in note] == [
        "1 image is of another size than the annotations say, such as photos/scene03.jpg (999 x 240 there, 320 x 240 upright); "
        "its boxes may not fit: expected the annotations of exactly these images"
    ]
