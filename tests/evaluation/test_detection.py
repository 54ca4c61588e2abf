"""Detection: scores whose value is known by hand, and a run that learns and resumes."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detecting import command

import univip_stream as us
from univip_stream.evaluation.detection import protocol as module
from univip_stream.evaluation.detection.batches import DetectionItems
from univip_stream.evaluation.detection.data import DetectionSet, read_coco
from univip_stream.evaluation.detection.models import MODELS, build_detector, first_label, has_masks
from univip_stream.evaluation.detection.protocol import DetectionProtocol, voc
from univip_stream.evaluation.detection.score import average_precision, detections
from univip_stream.evaluation.subject import open_subject


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
    network = build_detector(name, open_subject(run), 2, sides=(32,), longest=48).train()
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
    how = {"model": "retinanet", "iterations": 12, "batch_size": 4, "sides": (32,), "rate": 0.02, "workers": 0}
    again = us.evaluate(us.Detect(run=run, **sets, **how), quiet=True)
    assert json.loads(json.dumps(again)) == result
    assert not any(capsys.readouterr())


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
