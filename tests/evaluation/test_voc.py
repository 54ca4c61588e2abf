"""VOC's own AP beside a plain transcription of the development kit's rule, C4's parts, and devkits that lack a list."""

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from univip_stream.errors import InputError, UsageError
from univip_stream.evaluation.detection.c4 import POOLED
from univip_stream.evaluation.detection.data import DetectionSet, read_voc
from univip_stream.evaluation.detection.models import build_detector
from univip_stream.evaluation.detection.score import average_precision
from univip_stream.evaluation.detection.voc import voc_precision
from univip_stream.evaluation.subject import open_subject


def kit_ap(truth, found, threshold, eleven):
    """One class. truth: (image, x1, y1, x2, y2, difficult), found: (image, score, x1, y1, x2, y2)."""
    taken, tp, fp = set(), [], []
    for image, _, *corners in sorted(found, key=lambda row: -row[1]):
        own = [(number, row) for number, row in enumerate(truth) if row[0] == image]
        overlaps = [
            float(box_iou(torch.tensor([corners], dtype=float), torch.tensor([row[1:5]], dtype=float))) for _, row in own
        ]
        best = int(np.argmax(overlaps)) if overlaps else None
        if best is not None and overlaps[best] > threshold:
            number, row = own[best]
            if row[5]:
                tp.append(0), fp.append(0)
            elif number in taken:
                tp.append(0), fp.append(1)
            else:
                taken.add(number), tp.append(1), fp.append(0)
        else:
            tp.append(0), fp.append(1)
    tp, fp = np.cumsum(tp), np.cumsum(fp)
    recall, precision = tp / sum(not row[5] for row in truth), tp / np.maximum(tp + fp, 1e-12)
    if eleven:
        return sum((precision[recall >= t].max() if (recall >= t).any() else 0) / 11 for t in np.arange(0.0, 1.1, 0.1))
    recall, precision = [0, *recall, 1], [0, *precision, 0]
    for at in range(len(precision) - 2, -1, -1):
        precision[at] = max(precision[at], precision[at + 1])
    return sum((recall[at + 1] - recall[at]) * precision[at + 1] for at in range(len(recall) - 1))


@pytest.mark.parametrize("eleven", [True, False])
def test_voc_ap_is_the_development_kits(eleven, rng, tmp_path):
    (tmp_path / "a.jpg").touch()
    images = [{"id": at, "file_name": "a.jpg", "width": 100, "height": 100} for at in range(6)]
    rows, found = [], []
    for image in range(6):
        for _ in range(4):
            x, y, w, h = rng.uniform(0, 50), rng.uniform(0, 50), *rng.uniform(15, 40, 2)
            rows.append({"id": len(rows), "image_id": image, "category_id": int(rng.integers(1, 3)), "bbox": [x, y, w, h],
                         "area": w * h, "iscrowd": int(rng.random() < 0.25)})  # fmt: skip
            for _ in range(2):  # near it, twice, so that some truths are found a second time
                moved = np.array([x, y, w, h]) + rng.normal(0, 3, 4)
                found.append({"image_id": image, "category_id": rows[-1]["category_id"], "bbox": moved.tolist(),
                              "score": float(rng.random())})  # fmt: skip
    known = DetectionSet(
        {"images": images, "annotations": rows, "categories": [{"id": at, "name": str(at)} for at in (1, 2, 3)]},
        [tmp_path], "drawn",
    )  # fmt: skip
    expected = []
    for label in (1, 2):
        truth = [(row["image_id"], *_corners(row["bbox"]), row["iscrowd"]) for row in rows if row["category_id"] == label]
        own = [(row["image_id"], row["score"], *_corners(row["bbox"])) for row in found if row["category_id"] == label]
        expected.append([kit_ap(truth, own, threshold / 100, eleven) for threshold in range(50, 100, 5)])
    mean = np.mean(expected, axis=0)
    scores = voc_precision(known, found, eleven=eleven)
    assert scores == pytest.approx({"AP": mean.mean(), "AP50": mean[0], "AP75": mean[5]})
    assert 0.2 < scores["AP50"] < 1
    assert scores["AP50"] != pytest.approx(average_precision(known, found, "bbox")["AP50"], abs=1e-3)
    fewer = voc_precision(known, found, eleven=eleven, without={0, 1, 2})
    assert fewer == voc_precision(known, [row for row in found if row["image_id"] > 2], eleven=eleven, without={0, 1, 2})
    assert voc_precision(known, [])["AP"] == 0


def _corners(box):
    x, y, w, h = box
    return x, y, x + w, y + h


def test_a_devkit_without_the_year_or_the_list_is_told_with_both_sides(tmp_path):
    both = [("2007", "trainval"), ("2012", "trainval")]
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1\n")
    (lists / "dog_train.txt").write_text("1 1\n")
    with pytest.raises(InputError, match=r"there is train; expected .*VOC2007/ImageSets/Main/trainval.txt"):
        read_voc(tmp_path, both)
    (lists / "trainval.txt").write_text("")
    with pytest.raises(InputError, match=r"no folder VOC2012 but VOC2007; .*VOC2012/ImageSets/Main/trainval.txt"):
        read_voc(tmp_path, both)
    # One year's folder is no devkit of two: its images would come twice.
    with pytest.raises(InputError, match="no folder VOC2007"):
        read_voc(tmp_path / "VOC2007", both)
    with pytest.raises(InputError, match="no folder VOC2012"):
        read_voc(tmp_path / "VOC2007", [("2012", "trainval")])


def test_c4_is_detectron2s(resnet_folder):
    network = build_detector("mask-rcnn-c4", open_subject(resnet_folder), 20, sides=(64,), longest=96).eval()
    rpn, heads = network.rpn, network.roi_heads
    # Detectron2 02b5c4e: configs/Base-RCNN-C4.yaml and detectron2/config/defaults.py.
    assert rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 12000, "testing": 6000},
        {"training": 2000, "testing": 1000},
    )
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (512, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img, POOLED) == (0.05, 0.5, 100, 14)
    res4 = network.backbone(torch.rand(1, 3, 64, 96))["0"]
    assert res4.shape == (1, 256, 4, 6)
    region = torch.tensor([[0.0, 0, 96, 64]])
    pooled = []
    heads.region.res5.register_forward_pre_hook(lambda module, given: pooled.append(given[0]))
    found = heads.region(res4, [region])
    assert found.shape == (1, 512, 7, 7)
    # The extra normalisation of MoCo stands behind res5; a whole image as a region is its map, resampled.
    torch.testing.assert_close(pooled[0], _bilinear(res4, POOLED), rtol=1e-3, atol=1e-3)
    assert torch.equal(found, heads.region.norm(heads.region.res5(pooled[0])))
    masks = heads.mask_predictor(found)
    assert masks.shape == (1, 21, 14, 14)


def _bilinear(maps, side):
    """RoIAlign of the whole map by hand: the mean of samples in each of side x side cells, bilinear, half a place off."""
    height, width = maps.shape[-2:]
    out = torch.zeros(1, maps.shape[1], side, side)
    for row in range(side):
        for column in range(side):
            # One sample a cell, as the map has fewer places than cells.
            y, x = (row + 0.5) * height / side - 0.5, (column + 0.5) * width / side - 0.5
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            b, a = y - y0, x - x0
            top = maps[..., y0, x0] * (1 - a) + maps[..., y0, x1] * a
            bottom = maps[..., y1, x0] * (1 - a) + maps[..., y1, x1] * a
            out[..., row, column] = top * (1 - b) + bottom * b
    return out


def test_c4_wants_a_res5(run_folder):
    with pytest.raises(UsageError, match="res5, which runs on each region"):
        build_detector("faster-rcnn-c4", open_subject(run_folder), 2, sides=(64,), longest=96)
