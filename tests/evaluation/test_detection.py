"""Detection: scores whose value is known by hand, a run that learns and resumes, and sets that do not belong together."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation.detection import protocol as module
from univip_stream.evaluation.detection.data import DetectionSet, read_coco, read_voc
from univip_stream.evaluation.detection.models import MODELS, build_detector, first_label
from univip_stream.evaluation.detection.protocol import DetectionProtocol, voc
from univip_stream.evaluation.detection.score import average_precision, detections
from univip_stream.evaluation.subject import open_subject


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Four images of 96 x 80 with a bright rectangle each, and COCO's annotations of them; the last has none."""
    folder = tmp_path_factory.mktemp("detection")
    rng = np.random.default_rng(2)
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "bar"}, {"id": 9, "name": "block"}]}
    for at in range(4):
        image = rng.integers(0, 60, (80, 96, 3), dtype=np.uint8)
        content["images"].append({"id": 100 + at, "file_name": f"{at}.png", "width": 96, "height": 80})
        if at < 3:
            x, y, w, h = 10 + 8 * at, 12, 40, 40 if at % 2 else 20
            image[y : y + h, x : x + w] = 230
            outline = [x, y, x + w, y, x + w, y + h, x, y + h]
            content["annotations"].append(
                {"id": at + 1, "image_id": 100 + at, "category_id": 9 if at % 2 else 7, "bbox": [x, y, w, h], "area": w * h,
                 "iscrowd": 0, "segmentation": [outline]}
            )  # fmt: skip
        cv2.imwrite(str(folder / f"{at}.png"), image)
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder


def of(boxes):
    """A set of one image of 200 x 200 with these boxes (x, y, w, h) of one class; it is never opened."""
    here = Path(__file__)
    rows = [
        {"id": at, "image_id": 1, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for at, box in enumerate(boxes, 1)
    ]
    image = {"id": 1, "file_name": here.name, "width": 200, "height": 200}
    return DetectionSet(
        {"images": [image], "annotations": rows, "categories": [{"id": 3, "name": "thing"}]}, [here.parent], "drawn"
    )


def found(known, boxes, scores):
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=torch.float32)
    return list(
        detections(known, 0, {"boxes": corners, "scores": torch.tensor(scores), "labels": torch.zeros(len(boxes), dtype=int)})
    )


def test_scores_are_those_worked_out_by_hand():
    known = of([[0, 0, 100, 100], [100, 100, 50, 50]])
    # One of two found, and one more that is nothing: precision 1 up to a recall of one half, 51 of COCO's 101 points.
    scores = average_precision(known, found(known, [[0, 0, 100, 100], [0, 150, 20, 20]], [0.9, 0.8]), "bbox")
    assert scores["AP"] == pytest.approx(51 / 101)
    assert scores["AP_large"] == pytest.approx(1)
    assert scores["AP_medium"] == pytest.approx(0)
    assert scores["AP_small"] == -1
    # The nothing first: the precision of the one that is found is one half.
    scores = average_precision(known, found(known, [[0, 0, 100, 100], [0, 150, 20, 20]], [0.8, 0.9]), "bbox")
    assert scores["AP"] == pytest.approx(51 / 101 / 2)
    # An IoU of 0.62 counts at .50, .55 and .60 of the ten thresholds.
    alone = of([[0, 0, 100, 100]])
    scores = average_precision(alone, found(alone, [[0, 0, 100, 62]], [0.5]), "bbox")
    assert (scores["AP"], scores["AP50"], scores["AP75"]) == (pytest.approx(0.3), pytest.approx(1), pytest.approx(0))
    assert average_precision(alone, [], "bbox")["AP"] == 0


def test_the_truth_itself_scores_one_with_boxes_and_with_masks(drawn):
    known = read_coco(drawn / "boxes.json", drawn)
    rows = []
    for number in range(len(known)):
        target = known.target(number, masks=True)
        result = {**target, "masks": target["masks"][:, None].float(), "scores": torch.ones(len(target["labels"]))}
        rows += detections(known, number, result)
    assert [average_precision(known, rows, kind)["AP"] for kind in ("bbox", "segm")] == [pytest.approx(1), pytest.approx(1)]


@pytest.mark.parametrize("name", MODELS)
def test_every_detector_takes_the_backbone_and_freezes_nothing(name, run):
    subject = open_subject(run)
    network = build_detector(name, subject, 2, sides=(64,), longest=96)
    assert all(parameter.requires_grad for parameter in network.parameters())
    for mine, theirs in zip(
        network.backbone.body.state_dict().items(), subject.backbone.trunk.state_dict().items(), strict=True
    ):
        assert mine[0] == theirs[0]
        assert torch.equal(mine[1], theirs[1])
    assert not any("Frozen" in type(part).__name__ for part in network.modules())
    heads = network.head if name == "retinanet" else network.roi_heads
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in heads.modules())
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1 + first_label(name)])}
    if name == "mask-rcnn":
        target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    losses = network.train()([torch.rand(3, 64, 64)] * 2, [target] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert ("loss_mask" in losses) == (name == "mask-rcnn")


def test_the_rate_is_the_schedules():
    protocol = DetectionProtocol()
    assert [protocol.rate_at(at) for at in (1000, 59_999, 60_000, 80_000)] == pytest.approx([0.02, 0.02, 0.002, 0.0002])
    assert protocol.rate_at(0) == pytest.approx(0.02 * 1e-3)
    assert [round(voc().rate_at(at), 6) for at in (17_999, 18_000, 22_000)] == [0.02, 0.002, 0.0002]
    assert DetectionProtocol(iterations=100).rate_at(10) == pytest.approx(0.02)


def command(run, drawn, out, *more):
    sets = [
        "--train-json",
        drawn / "boxes.json",
        "--train-images",
        drawn,
        "--val-json",
        drawn / "boxes.json",
        "--val-images",
        drawn,
    ]
    how = ["--model", "retinanet", "--iterations", 8, "--batch-size", 2, "--short-side", 64, "--lr", "0.005", "--workers", 0]
    arguments = ["eval", "detect", run, *sets, *how, "--save-every", 3, "--out", out, *more]
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_killed_run_goes_on_to_the_same_numbers(run, drawn, tmp_path, monkeypatch):
    calm = command(run, drawn, tmp_path / "calm.json")
    assert calm.exit_code == 0, calm.output
    result = json.loads((tmp_path / "calm.json").read_text())
    assert 0 <= result["bbox"]["AP50"] <= 1
    assert result["train"]["objects"] == 3
    assert "segm" not in result

    real = module.DetectionProtocol.rate_at

    def dying(self, iteration):
        if iteration == 5:
            raise KeyboardInterrupt
        return real(self, iteration)

    monkeypatch.setattr(module.DetectionProtocol, "rate_at", dying)
    assert command(run, drawn, tmp_path / "killed.json").exit_code != 0
    monkeypatch.setattr(module.DetectionProtocol, "rate_at", real)
    again = command(run, drawn, tmp_path / "killed.json")
    assert "continues after iteration 3 of 8" in again.output
    assert json.loads((tmp_path / "killed.json").read_text()) == result


def test_the_loss_falls(run, drawn, tmp_path):
    done = command(run, drawn, tmp_path / "out.json", "--iterations", 30, "--batch-size", 4, "--lr", "0.01", "--json")
    result = json.loads(done.stdout)
    assert result["loss_last"] < 0.8 * result["loss_first"]


def test_flipped_boxes_lie_on_flipped_pixels(drawn):
    known = read_coco(drawn / "boxes.json", drawn)
    for flip in (False, True):
        image, target, _ = module._Images(known, masks=True)[0, flip]
        x1, y1, x2, y2 = target["boxes"][0].int().tolist()
        inside = torch.zeros(80, 96, dtype=torch.bool)
        inside[y1:y2, x1:x2] = True
        assert torch.equal(image[0] > 200, inside)
        assert torch.equal(target["masks"][0].bool(), inside)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_stood_in_for_or_left_out_and_named(workers, run, drawn, tmp_path):
    bad = shutil.copytree(drawn, tmp_path / "bad")
    (bad / "1.png").write_bytes(b"no image")
    cv2.imwrite(str(bad / "2.png"), np.zeros((20, 20, 3), np.uint8))  # of another size than its annotations are for
    stopped = command(run, bad, tmp_path / "out.json", "--workers", workers)
    assert stopped.exit_code == 1
    assert stopped.output.count("error: ") == 1
    assert "--max-failures allows 1% of 4" in stopped.output
    assert "Traceback" not in stopped.output
    done = command(run, bad, tmp_path / "out.json", "--workers", workers, "--max-failures", 2)
    assert done.exit_code == 0, done.output
    assert "left out, 2 of 4 images of --val that cannot be used:\n  1.png: unreadable: not an image" in done.output
    assert "4 of the 4 images" in done.output  # train and val are the same
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["used"] == {"train": 2, "val": 2}
    assert [one["source"] for one in result["failed"]["val"]] == ["1.png", "2.png"]
    assert "is 20 x 20 pixels" in result["failed"]["train"][1]["reason"]
    for name in ("0.png", "3.png"):
        (bad / name).write_bytes(b"no image")
    none = command(run, bad, tmp_path / "none.json", "--workers", workers, "--max-failures", "100%")
    assert (none.exit_code, "no image of" in none.output) == (1, True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_outline_that_is_none_is_named_without_a_traceback(workers, run, drawn, tmp_path):
    bad = shutil.copytree(drawn, tmp_path / "bad")
    content = json.loads((bad / "boxes.json").read_text())
    for row in content["annotations"]:
        row["segmentation"] = "words"
    (bad / "boxes.json").write_text(json.dumps(content))
    done = command(run, bad, tmp_path / "out.json", "--workers", workers, "--model", "mask-rcnn")
    assert done.exit_code == 1
    assert "boxes.json: the objects of" in done.output
    assert "Traceback" not in done.output


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
            "leads out of its folder",
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
