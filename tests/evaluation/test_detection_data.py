"""Annotations of COCO and Pascal VOC: ids, names, frames, and sets that do not belong together."""

import json
import re
import unicodedata

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from detecting import command
from PIL import Image, ImageOps
from pycocotools import mask as mask_tools

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation.detection.batches import DetectionItems
from univip_stream.evaluation.detection.data import read_coco, read_voc
from univip_stream.evaluation.detection.score import average_precision, detections


@pytest.fixture
def run(resnet_folder):
    """What is judged: a ResNet of torchvision's, around which the detectors are built."""
    return resnet_folder


def perfect(known, kind="bbox"):
    """AP of detections that are the truth."""
    rows = []
    for number in range(len(known)):
        target = known.target(number, masks=kind == "segm")
        result = {**target, "scores": torch.ones(len(target["labels"]))}
        if kind == "segm":
            result["masks"] = target["masks"][:, None].float()
        rows += detections(known, number, result)
    return average_precision(known, rows, kind)["AP"]


def changed(drawn, tmp_path, change):
    """The drawn annotations after a change, beside their images."""
    content = json.loads((drawn / "boxes.json").read_text())
    change(content)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    return read_coco(tmp_path / "changed.json", drawn)


@pytest.mark.parametrize("ids", [[0, 1, 2], [1, 1, 1], [2**40, None, 0]])
def test_ap_does_not_depend_on_the_ids_of_annotations(ids, drawn, tmp_path):
    def renumber(content):
        for row, number in zip(content["annotations"], ids, strict=True):
            row["id"] = number

    known = changed(drawn, tmp_path, renumber)
    assert [perfect(known, kind) for kind in ("bbox", "segm")] == [pytest.approx(1), pytest.approx(1)]


def test_json_of_other_tools_is_read_and_what_has_no_box_is_counted(drawn, tmp_path):
    def floats(content):
        for row in content["images"]:
            row |= {name: float(row[name]) for name in ("id", "width", "height")}
        for row in content["annotations"]:
            row |= {"image_id": float(row["image_id"]), "area": None, "iscrowd": None}

    assert perfect(changed(drawn, tmp_path, floats)) == pytest.approx(1)

    def empty(content):
        content["annotations"][0]["bbox"] = []
        content["annotations"][1]["bbox"] = [10, 10, -5, 4]

    known = changed(drawn, tmp_path, empty)
    assert known.facts()["left_out"] == {"without a bbox": 1, "with a bbox of no area": 1}
    assert known.facts()["objects"] == 1
    assert "1 object left out: without a bbox" in known.notes[1]
    assert perfect(known) == pytest.approx(1)


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_match_in_either_unicode_form(here, there, drawn, tmp_path):
    content = json.loads((drawn / "boxes.json").read_text())
    for at, image in enumerate(content["images"]):
        data = (drawn / image["file_name"]).read_bytes()
        (tmp_path / unicodedata.normalize(there, f"café{at}.png")).write_bytes(data)
        image["file_name"] = unicodedata.normalize(here, f"café{at}.png")
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    known = read_coco(tmp_path / "boxes.json", tmp_path)
    assert known.pixels(0).shape == (80, 96, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["images"][0].update(id="8193"), "has the id '8193'; expected a whole number"),
        (lambda content: content["images"][0].pop("width"), "the image '0.png' has no width"),
        (lambda content: content["images"][0].update(height=79.5), "has the height 79.5; expected a whole number of pixels"),
        (lambda content: content["images"][0].pop("file_name"), "has no file_name"),
        (lambda content: content["annotations"][0].update(category_id=4711), "no category_id that is one of the categories"),
        (lambda content: content["annotations"][0].update(image_id=[1]), "no image_id that is a whole number"),
        (lambda content: content["images"][1].update(id=100), "two images with the id 100"),
        (lambda content: content["categories"].append({"id": 7}), "two of its categories have one id"),
    ],
)
def test_what_is_wrong_with_annotations_is_named(change, words, drawn, tmp_path):
    with pytest.raises(InputError, match=re.escape(words)):
        changed(drawn, tmp_path, change)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["outline", "run lengths", "compressed"])
def test_boxes_and_masks_of_either_frame_lie_on_the_upright_picture(orientation, kind, tmp_path):
    """A bright L on black: no turn and no mirror maps it to itself."""
    stored = np.zeros((60, 90), np.uint8)
    stored[10:50, 12:24] = stored[38:50, 12:70] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    for frame, pixels in (("stored", stored), ("upright", upright)):
        ys, xs = np.nonzero(pixels)
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        run = mask_tools.encode(np.asfortranarray(pixels // 255))
        outlines = {
            "outline": [
                np.squeeze(cv2.findContours(pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]).ravel().tolist()
            ],
            "run lengths": {"size": [*pixels.shape], "counts": lengths(pixels)},
            "compressed": {"size": [*run["size"]], "counts": run["counts"].decode()},
        }
        image = {"id": 1, "file_name": "a.png", "width": pixels.shape[1], "height": pixels.shape[0]}
        thing = {"id": 0, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0, "segmentation": outlines[kind]}
        content = {"images": [image], "annotations": [thing], "categories": [{"id": 1, "name": "L"}]}
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        known = read_coco(tmp_path / "boxes.json", tmp_path, box_frame=frame)
        assert known.notes == []
        assert known.pixels(0).shape[:2] == upright.shape
        target = known.target(0, masks=True)
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        ys, xs = np.nonzero(upright)
        assert (x1, y1, x2, y2) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        differ = (target["masks"][0].numpy() > 0) != (upright > 0)
        # An outline runs through the middles of the outermost pixels, and its raster may lack a line of them.
        assert differ.sum() <= (0 if kind != "outline" else 220)
        assert [perfect(known, kind) for kind in ("bbox", "segm")] == [pytest.approx(1), pytest.approx(1)]


def lengths(pixels):
    """COCO's uncompressed runs, of nothing first, column after column."""
    flat = np.concatenate([[0], pixels.T.ravel() > 0, [2]])
    ends = np.nonzero(np.diff(flat))[0]
    return np.diff(np.concatenate([[0], ends])).tolist()


def test_a_size_of_the_other_frame_is_said_and_the_picture_is_upright_all_the_same(run, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jpg", exif=exif)
    image = {"id": 1, "file_name": "a.jpg", "width": 96, "height": 64}  # Label Studio: upright boxes beside it
    thing = {"id": 0, "image_id": 1, "category_id": 1, "bbox": [30, 60, 20, 20]}
    content = {"images": [image], "annotations": [thing], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    known = read_coco(tmp_path / "boxes.json", tmp_path)
    assert known.target(0, masks=False)["boxes"].tolist() == [[30, 60, 50, 80]]
    assert known.pixels(0).shape == (96, 64, 3)
    done = command(run, tmp_path, tmp_path / "out.json", "--iterations", 1)
    assert done.exit_code == 0, done.output
    assert (
        "1 image has the width and height of the stored picture, such as a.jpg (96 x 64 there, 64 x 96 upright)"
        in done.stderr
    )
    assert "if they lie wrong, use --box-frame stored" in done.stderr
    done = command(run, tmp_path, tmp_path / "out.json", "--iterations", 1, "--box-frame", "stored")
    assert "have the width" not in done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["train"]["box_frame"] == "stored"


def test_flipped_boxes_lie_on_flipped_pixels(drawn):
    known = read_coco(drawn / "boxes.json", drawn)
    for flip in (False, True):
        image, target, _ = DetectionItems(known, masks=True)[0, flip]
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        inside = torch.zeros(80, 96, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        assert torch.equal(image[0] > 200, inside)
        assert torch.equal(target["masks"][0].bool(), inside)


def test_the_objects_of_images_that_were_not_looked_at_do_not_count(drawn):
    known = read_coco(drawn / "boxes.json", drawn)
    rows = []
    for number in (0, 2, 3):
        target = known.target(number, masks=False)
        rows += detections(known, number, {**target, "scores": torch.ones(len(target["labels"]))})
    assert average_precision(known, rows, "bbox")["AP"] < 1
    assert average_precision(known, rows, "bbox", without={1})["AP"] == pytest.approx(1)


def test_pascal_voc_becomes_the_same(tmp_path):
    for part in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / "VOC2007" / part).mkdir(parents=True)
    (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("000001\n")
    cv2.imwrite(str(tmp_path / "VOC2007/JPEGImages/000001.jpg"), np.zeros((50, 60, 3), np.uint8))
    things = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>30</xmax>"
        "<ymax>40</ymax></bndbox></object>"
        for name, hard in (("dog", 0), ("cat", 1))
    )
    xml = tmp_path / "VOC2007/Annotations/000001.xml"
    xml.write_text(f"<annotation><size><width>60</width><height>50</height></size>{things}</annotation>")
    known = read_voc(tmp_path, [("2007", "test")])
    assert [row["bbox"] for row in known.annotations[0]] == [[10, 20, 20, 20]] * 2
    target = known.target(0, masks=False)
    assert target["boxes"].tolist() == [[10, 20, 30, 40]]
    assert known.categories[target["labels"][0]]["name"] == "dog"
    xml.write_text("<!DOCTYPE x [<!ENTITY a 'b'>]><annotation/>")
    with pytest.raises(InputError, match="defines entities"):
        read_voc(tmp_path, [("2007", "test")])


def test_what_does_not_belong_together_is_said(run, drawn, tmp_path):
    content = json.loads((drawn / "boxes.json").read_text())
    (tmp_path / "other").mkdir()
    bare = [{**row, "segmentation": []} for row in content["annotations"]]
    variants = {
        "other images": (content, tmp_path / "other", "names 4 images, of which 4 are not in"),
        "no outlines": (content | {"annotations": bare}, drawn, "outline"),
        "no list": ({"images": []}, drawn, "expected an object with the lists"),
        "no boxes": (content | {"annotations": [{"image_id": 100, "category_id": 7}]}, drawn, "no bbox of four numbers"),
        "outside": (
            content | {"images": [{**content["images"][0], "file_name": "../x.png"}]},
            drawn,
            "leads outside its folder",
        ),
        "names": (content | {"categories": [{"id": 7, "name": "bar"}, {"id": 9, "name": "bird"}]}, drawn, "bird"),
    }
    for name, (changed, images, words) in variants.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(changed))
        train = ["--train-json", str(path), "--train-images", str(images)]
        val = ["--val-json", str(drawn / "boxes.json"), "--val-images", str(drawn)]
        done = CliRunner().invoke(cli, ["eval", "detect", str(run), *train, *val, "--iterations", "1"])
        assert (done.exit_code, words in done.output) == (1, True), (name, done.output)
    assert CliRunner().invoke(cli, ["eval", "detect", str(run)]).exit_code == 2
