"""Detection: scores whose value is known by hand, a run that learns and resumes, and sets that do not belong together."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageOps
from pycocotools import mask as mask_tools

import univip_stream as us
from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation.detection import protocol as module
from univip_stream.evaluation.detection.batches import DetectionItems
from univip_stream.evaluation.detection.data import DetectionSet, read_coco, read_voc
from univip_stream.evaluation.detection.models import MODELS, build_detector, first_label, has_masks
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


@pytest.fixture
def run(resnet_folder):
    """What is judged: a ResNet of torchvision's, around which the detectors are built."""
    return resnet_folder


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


@pytest.mark.parametrize("name", MODELS)
def test_every_detector_takes_the_backbone_and_freezes_nothing(name, run):
    subject = open_subject(run)
    network = build_detector(name, subject, 2, sides=(64,), longest=96)
    assert all(parameter.requires_grad for parameter in network.parameters())
    mine = network.backbone.body.state_dict()
    if name.endswith("-c4"):
        mine |= {f"layer4.{key}": value for key, value in network.roi_heads.region.res5.state_dict().items()}
    theirs = subject.backbone.trunk.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    assert not any("Frozen" in type(part).__name__ for part in network.modules())
    heads = network.head if name == "retinanet" else network.roi_heads
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in heads.modules()) == (name != "retinanet")
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1 + first_label(name)])}
    if has_masks(name):
        target["masks"] = torch.ones(1, 64, 64, dtype=torch.uint8)
    losses = network.train()([torch.rand(3, 64, 64)] * 2, [target] * 2)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert ("loss_mask" in losses) == has_masks(name)


@pytest.mark.parametrize("name", MODELS)
def test_losses_on_the_same_images_agree_in_training_and_in_evaluation_mode(name, run, drawn):
    """What is scored is what was trained: a normalisation that several levels share would be neither level's when scored."""
    torch.manual_seed(0)
    network = build_detector(name, open_subject(run), 2, sides=(64,), longest=96).train()
    if name != "retinanet":
        network.roi_heads.fg_bg_sampler.batch_size_per_image = 8  # for the test's time
    images = DetectionItems(read_coco(drawn / "boxes.json", drawn), masks=has_masks(name))
    pixels, targets, _ = zip(*(images[number, False] for number in range(3)), strict=True)
    targets = [{**target, "labels": target["labels"] + first_label(name)} for target in targets]
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    calls = dict.fromkeys(norms, 0)
    for norm in norms:
        norm.register_forward_hook(lambda norm, *_: calls.update({norm: calls[norm] + 1}))

    def loss():
        torch.manual_seed(1)  # the same regions are learnt from
        return sum(network([image.float() / 255 for image in pixels], targets).values())

    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9)
    for _ in range(6):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(calls.values()) == {6}  # one batch a pass, for each normalisation
    for norm in norms:
        norm.momentum = 0.5  # what the training has moved is forgotten soon
    with torch.no_grad():
        for _ in range(8):
            in_training = loss()
        for norm in norms:
            norm.eval()
        in_evaluation = loss()
    assert in_evaluation == pytest.approx(in_training, rel=0.5)


def test_rates_and_decays_are_detectron2s(run):
    assert [module.rate_for(name, 16) for name in MODELS] == [0.02, 0.02, 0.01, 0.02, 0.02]
    assert module.rate_for("retinanet", 8) == 0.005
    network = build_detector("faster-rcnn", open_subject(run), 2, sides=(64,), longest=96)
    others, norms = module._groups(network, DetectionProtocol())
    assert (others["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
    known = {id(parameter): key for key, parameter in network.named_parameters()}
    names = {key for group in (others, norms) for key in (known[id(parameter)] for parameter in group["params"])}
    assert names == set(known.values())
    decayed = {known[id(parameter)] for parameter in others["params"]}
    spared = {known[id(parameter)] for parameter in norms["params"]}
    assert not decayed & spared
    assert {"backbone.body.bn1.weight", "backbone.fpn.inner_blocks.0.1.bias", "roi_heads.box_head.0.1.weight"} <= spared
    assert {"backbone.body.conv1.weight", "roi_heads.box_predictor.cls_score.bias"} <= decayed


def test_the_rate_is_the_schedules():
    protocol = DetectionProtocol()
    assert [protocol.rate_at(at) for at in (1000, 59_999, 60_000, 80_000)] == pytest.approx([0.02, 0.02, 0.002, 0.0002])
    assert protocol.rate_at(0) == pytest.approx(0.02 * 1e-3)
    assert [round(voc().rate_at(at), 6) for at in (17_999, 18_000, 22_000)] == [0.02, 0.002, 0.0002]
    assert [round(voc().rate_at(at), 6) for at in (99, 100)] == [0.0198, 0.02]  # MoCo's WARMUP_ITERS: 100
    assert DetectionProtocol(iterations=100).rate_at(10) == pytest.approx(0.02)
    # Detectron2 02b5c4e: SOLVER.STEPS of its 1x, MoCo's 2x, its 3x; and the last 60 and 20 thousand of any longer one.
    for iterations, falls in ((90, (60, 80)), (180, (120, 160)), (270, (210, 250)), (540, (480, 520))):
        assert DetectionProtocol(iterations=iterations * 1000).falls() == tuple(at * 1000 for at in falls)


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


def test_the_loss_falls_and_from_python_it_is_the_same(run, drawn, tmp_path, capsys):
    done = command(run, drawn, tmp_path / "out.json", "--iterations", 12, "--batch-size", 4, "--lr", "0.02", "--json")
    result = json.loads(done.stdout)
    assert result["loss_last"] < 0.8 * result["loss_first"]
    sets = dict.fromkeys(("train_json", "val_json"), drawn / "boxes.json") | dict.fromkeys(
        ("train_images", "val_images"), drawn
    )
    how = {"model": "retinanet", "iterations": 12, "batch_size": 4, "sides": (64,), "rate": 0.02, "workers": 0}
    again = us.evaluate(us.Detect(run=run, **sets, **how), quiet=True)
    assert json.loads(json.dumps(again)) == result
    assert not any(capsys.readouterr())


def test_flipped_boxes_lie_on_flipped_pixels(drawn):
    known = read_coco(drawn / "boxes.json", drawn)
    for flip in (False, True):
        image, target, _ = DetectionItems(known, masks=True)[0, flip]
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
