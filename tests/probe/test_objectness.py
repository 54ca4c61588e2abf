"""Boxes scored by features: as plain loops over the places of a map say, and best where a thing is."""

import numpy as np
import pytest
import torch
from torch import nn

from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError, UsageError
from univip_stream.networks import build_backbone
from univip_stream.probe.objectness import check_backbone, image_map, objectness, order_by

AROUND = 0.25


def covered(low, high, size, count):
    """The share of each of `count` places of a side that an interval of pixels covers."""
    step = size / count
    return np.array([max(0.0, min(high, (at + 1) * step) - max(low, at * step)) / step for at in range(count)])


def plainly(features, boxes, width, height):
    """Agreement less cosine, place by place, and what a quadratic in the logarithm of the area leaves of it."""
    h, w, D = features.shape
    unit = features - features.reshape(-1, D).mean(axis=0)
    unit = unit / np.linalg.norm(unit, axis=2, keepdims=True)
    scores = []
    for x, y, wide, high in boxes.tolist():
        inside = np.outer(covered(y, y + high, height, h), covered(x, x + wide, width, w))
        left, top = max(0, x - AROUND * wide), max(0, y - AROUND * high)
        right, bottom = min(width, x + (1 + AROUND) * wide), min(height, y + (1 + AROUND) * high)
        around = np.outer(covered(top, bottom, height, h), covered(left, right, width, w)) - inside
        own = sum(inside[r, c] * unit[r, c] for r in range(h) for c in range(w)) / inside.sum()
        other = sum(around[r, c] * unit[r, c] for r in range(h) for c in range(w)) / around.sum()
        scores.append(np.linalg.norm(own) - own @ other / np.linalg.norm(own) / np.linalg.norm(other))
    log_area = np.log(boxes[:, 2].astype(float) * boxes[:, 3])
    return np.array(scores) - np.polyval(np.polyfit(log_area, scores, 2), log_area)


def some_boxes(rng, count, width, height):
    low = rng.integers(0, [width - 8, height - 8], (count, 2))
    size = rng.integers(4, np.array([width, height]) - low, endpoint=True)
    return np.concatenate([low, size], axis=1).astype(np.int32)


def test_scores_are_those_of_plain_loops(rng):
    features = rng.normal(size=(6, 9, 5))
    boxes = some_boxes(rng, 40, 130, 77)
    found = objectness(torch.from_numpy(features).float(), boxes, 130, 77)
    assert np.allclose(found, plainly(features.astype(np.float32).astype(np.float64), boxes, 130, 77), atol=1e-6)


def test_of_boxes_of_one_size_the_thing_itself_is_first(rng):
    features = rng.normal(0, 0.1, (16, 16, 8)) + np.eye(8)[0]
    features[4:9, 6:11] += 3 * np.eye(8)[1]  # a thing at 60..110, 40..90 of 160 x 160 pixels
    boxes = np.array([[x, y, 50, 50] for y in range(0, 111, 10) for x in range(0, 111, 10)], np.int32)
    scores = objectness(torch.from_numpy(features).float(), boxes, 160, 160)
    assert boxes[scores.argmax()].tolist() == [60, 40, 50, 50]
    around = np.array([[60, 40, 50, 50], [85, 40, 50, 50], [60, 65, 50, 50]], np.int32)
    assert objectness(torch.from_numpy(features).float(), around, 160, 160).argmax() == 0


@pytest.mark.parametrize("boxes", [[[0, 0, 64, 48]], [[0, 0, 64, 48], [3, 3, 1, 1]], [[5, 5, 9, 9]] * 3])
def test_few_boxes_and_that_of_the_whole_image_have_finite_scores(rng, boxes):
    features = torch.from_numpy(rng.normal(size=(8, 8, 4))).float()
    assert np.isfinite(objectness(features, np.array(boxes, np.int32), 64, 48)).all()
    assert np.isfinite(objectness(torch.zeros(8, 8, 4), np.array(boxes, np.int32), 64, 48)).all()


def test_the_order_is_the_old_one_the_scores_or_between():
    scores = np.array([0.1, 0.3, 0.2, 0.3])
    assert order_by(scores, 0.0).tolist() == [0, 1, 2, 3]
    assert order_by(scores, 1.0).tolist() == [1, 3, 2, 0]
    assert order_by(scores, 0.5).tolist() == [1, 0, 3, 2]  # ln 2 + ln 1, ln 1 + ln 4, ln 4 + ln 2, ln 3 + ln 3
    assert order_by(np.zeros(5)).tolist() == [0, 1, 2, 3, 4]


def test_a_map_covers_the_image_whatever_its_shape(rng):
    backbone = build_backbone("test_resnet").eval()
    for height, width, places in ((480, 640, (12, 16)), (640, 20, (16, 1)), (60, 40, (16, 11))):
        pixels = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        found = image_map(backbone, pixels, AugmentConfig(), "it")
        assert tuple(found.shape) == (*places, backbone.width)


@pytest.mark.slow
def test_a_finer_map_is_averaged_and_many_boxes_are_scored_as_few(rng):
    backbone = build_backbone("resnet18", small_stem=True).eval()
    pixels = rng.integers(0, 255, (96, 64, 3)).astype(np.uint8)
    found = image_map(backbone, pixels, AugmentConfig(), "it")
    assert tuple(found.shape) == (32, 22, backbone.width)  # of 64 x 44
    features = torch.from_numpy(rng.normal(size=(6, 9, 5)))
    boxes = some_boxes(rng, 1500, 130, 77)  # more than at once
    boxes[700] = [0, 0, 130, 77]  # the whole image: as alike to its surroundings as the others are
    others = np.delete(np.arange(1500), 700)
    plain = plainly(features.numpy(), boxes[others], 130, 77)
    scores = objectness(features, boxes, 130, 77)
    assert np.corrcoef(scores[others], plain)[0, 1] > 0.9999


class _Coarse(nn.Module):
    def forward_features(self, images):
        return images[:, :, ::128, ::128]


def test_features_that_are_too_coarse_or_not_finite_are_said(rng):
    from univip_stream.networks import Backbone

    with pytest.raises(
        UsageError, match=r"of runs/x are too coarse to tell boxes apart: 4 x 4 places .* expected at least 8 x 8"
    ):
        check_backbone(Backbone(_Coarse(), 3), "runs/x")
    broken = build_backbone("test_resnet").eval()
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match="features are not finite"):
        image_map(broken, np.zeros((64, 64, 3), np.uint8), AugmentConfig(), "it")
