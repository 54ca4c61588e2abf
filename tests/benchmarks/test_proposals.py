"""The proposals' benchmark counts as pycocotools counts."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import proposals


@pytest.fixture
def found(rng):
    """(boxes, objects) of three images: objects that overlap each other, boxes near them and elsewhere."""
    boxes, truth = {}, {}
    for name in "abc":
        objects = np.concatenate([rng.integers(0, 200, (9, 2)), rng.integers(8, 160, (9, 2))], axis=1)
        near = np.repeat(objects, 30, axis=0) + rng.integers(-12, 13, (270, 4))
        near[:, 2:] = np.maximum(near[:, 2:], 2)
        boxes[name] = rng.permutation(near).astype(np.int32)
        area = objects[:, 2] * objects[:, 3] * rng.uniform(0.5, 1, 9)
        truth[name] = np.concatenate([objects, area[:, None]], axis=1)
    return boxes, truth


@pytest.mark.slow
def test_average_recall_is_pycocotools(found, capsys):
    tools = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    boxes, truth = found
    images = {name: at for at, name in enumerate(truth, 1)}
    drawn = [
        {"image_id": images[name], "category_id": 1, "bbox": row[:4].tolist(), "area": row[4], "iscrowd": 0}
        for name, rows in truth.items()
        for row in rows
    ]
    coco = tools.COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": at} for at in images.values()],
        "categories": [{"id": 1}],
        "annotations": [{"id": at, **fields} for at, fields in enumerate(drawn, 1)],
    }
    coco.createIndex()
    results = coco.loadRes(
        [
            {"image_id": images[name], "category_id": 1, "bbox": box, "score": -float(at)}
            for name, rows in boxes.items()
            for at, box in enumerate(rows.tolist())
        ]
    )
    judged = evaluation.COCOeval(coco, results, "bbox")
    judged.params.useCats, judged.params.maxDets = 0, list(proposals.COUNTS)
    judged.evaluate()
    judged.accumulate()
    mine = proposals.recalls(boxes, truth)
    expected = judged.eval["recall"]  # IoUs x categories x sizes x counts
    for at, size in enumerate(("all", "small", "medium", "large")):
        np.testing.assert_allclose(mine[size], expected[:, 0, at], atol=1e-12)
    assert 0 < mine["small"].mean() < 1
    capsys.readouterr()
