"""The ranking of boxes: votes, how much a box stands out, and the order, each beside a plain computation of the same."""

from fractions import Fraction

import numpy as np
import pytest

from univip_stream.boxes import filter_boxes, iou
from univip_stream.proposals import ranking
from univip_stream.proposals.prominence import prominence


@pytest.fixture
def corners(rng):
    """Boxes in clusters, some very long, some twice: left, top, right, bottom."""
    low = rng.integers(0, 60, (60, 2))
    boxes = np.concatenate([low, low + rng.integers(4, 50, (60, 2))], axis=1)
    boxes = np.concatenate([boxes, *(boxes + rng.integers(-2, 3, boxes.shape) for _ in range(4)), boxes[:9]])
    boxes[:, :2] = np.maximum(boxes[:, :2], 0)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return boxes.astype(np.int32)


def xywh(corners):
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def test_votes_are_boxes_with_enough_overlap(corners):
    unique = ranking.unique_boxes(corners)
    assert sorted(map(tuple, unique.tolist())) == sorted(set(map(tuple, corners.tolist())))
    expected = (iou(xywh(unique), xywh(unique)) >= 0.7).sum(axis=1)
    assert ranking.neighbours(unique, 70).tolist() == expected.tolist()


@pytest.mark.parametrize("grid", [1, 10, 500])
def test_boxes_that_agree_are_listed_as_pairs_whatever_floats_hold_them(corners, grid, rng):
    """Up to 110 pixels a side short floats are exact, at 500 times that long ones; on a coarse grid many IoUs are just .7."""
    coarse = rng.integers(0, 12, (150, 2))
    boxes = np.concatenate([corners, np.concatenate([coarse, coarse + rng.integers(1, 12, (150, 2))], axis=1)]) * grid
    boxes = ranking.unique_boxes(boxes.astype(np.int32)).astype(np.int64)
    low, high = np.maximum(boxes[:, None, :2], boxes[None, :, :2]), np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    either = areas[:, None] + areas[None] - shared
    assert (10 * shared == 7 * either).any()
    expected = np.argwhere(np.triu(10 * shared >= 7 * either, 1))
    assert ranking.agreements(boxes.astype(np.int32), 70).T.tolist() == expected.tolist()


@pytest.mark.parametrize("place", [0, 900, 20_000, 2_000_000_000 // 4])
def test_boxes_come_once_by_area_and_place_however_large_the_image(corners, place):
    boxes = corners + np.int32(place)
    expected = sorted(set(map(tuple, boxes.tolist())), key=lambda box: ((box[2] - box[0]) * (box[3] - box[1]), box))
    assert list(map(tuple, ranking.unique_boxes(boxes).tolist())) == expected


@pytest.fixture
def lab(rng):
    """Blocks of colours, some of them alike, and a flat half."""
    blocks = rng.integers(0, 4, (12, 6, 3)) * 60 + 40
    lab = np.full((112, 112, 3), 90, np.uint8)
    lab[:108, :54] = np.kron(blocks, np.ones((9, 9, 1)))
    return lab


def test_prominence_is_spread_times_contrast(corners, lab):
    expected = []
    for left, top, right, bottom in corners.tolist():
        across, along = max((right - left) // 8, 1), max((bottom - top) // 8, 1)
        around = np.zeros(lab.shape[:2], bool)
        around[max(top - along, 0) : bottom + along, max(left - across, 0) : right + across] = True
        around[top:bottom, left:right] = False
        inside = lab[top:bottom, left:right].reshape(-1, 3).astype(np.float64)
        spread = np.sqrt(inside.var(axis=0).sum())
        contrast = np.linalg.norm(inside.mean(axis=0) - lab[around].mean(axis=0))
        expected.append(64 * min(max(spread, contrast / 2) / 50, 1) * min(contrast / 20, 1))
    found = prominence(corners, lab)
    assert (found == np.floor(np.array(expected) + 1e-9)).all()
    assert {0, 64} < set(found.tolist())
    # Nothing surrounds the whole image.
    assert prominence(np.array([[0, 0, 112, 112]], np.int32), lab).tolist() == [0]


@pytest.mark.parametrize("step", [1, 16])
def test_the_filter_inside_the_ranking_is_the_papers(step, rng):
    """Corners on a coarse grid give overlaps of exactly a half, sides of exactly 64 and aspects of exactly 3."""
    low = rng.integers(0, 320 // step, (900, 2)) * step
    size = rng.integers(1, 320 // step, (900, 2)) * step
    boxes = np.unique(np.concatenate([low, size], axis=1), axis=0).astype(np.int32)
    order = rng.permutation(len(boxes))
    kept = filter_boxes(boxes[order])
    assert 5 < len(kept) < 200
    found = ranking.kept_by_filter(boxes, order)
    assert {tuple(box) for box in boxes[found].tolist()} == {tuple(box) for box in kept.tolist()}
    assert found.sum() == len(kept)


def test_each_next_box_is_the_one_worth_most_beside_those_before_it(corners, lab):
    unique = ranking.unique_boxes(corners)
    overlap = iou(xywh(unique), xywh(unique))
    w, h = (unique[:, 2:] - unique[:, :2]).T.astype(int)
    votes = [Fraction(int(v)) for v in (overlap >= 0.7).sum(axis=1)]
    by_votes = np.argsort([int(v) for v in votes], kind="stable")[::-1]
    kept = [box in filter_boxes(8 * xywh(unique[by_votes])).tolist() for box in (8 * xywh(unique)).tolist()]
    assert 3 < sum(kept) < len(unique) / 2
    stands_out = [Fraction(int(share), 64) for share in prominence(unique, lab)]
    aspect = [Fraction(1, 4) if max(a, b) > 3 * min(a, b) else Fraction(1) for a, b in zip(w, h, strict=True)]
    worth = [v if k else v * s * a for v, s, a, k in zip(votes, stands_out, aspect, kept, strict=True)]
    shares = np.array([Fraction(1), Fraction(1, 8), Fraction(1, 16), Fraction(1, 64)])
    level = (overlap[:, :, None] >= (0.7, 0.8, 0.9)).sum(axis=2) * ~np.array(kept)
    covered, left, order = np.zeros(len(unique), int), list(range(len(unique))), []
    while left:
        # Among equals the one worth more at first, then the larger, then the later of equal areas.
        best = max(left, key=lambda box: (worth[box] * shares[covered[box]], worth[box], box))
        order.append(best)
        left.remove(best)
        covered = np.maximum(covered, level[best])
    ranked = ranking.ranked(corners, lab, lambda edges: 8 * xywh(edges))
    assert ranked.tolist() == (8 * xywh(unique[order])).tolist() != (8 * xywh(unique[by_votes])).tolist()
    # What the paper's filter keeps is what it kept of the boxes by votes alone, in that order.
    assert filter_boxes(ranked).tolist() == filter_boxes(8 * xywh(unique[by_votes])).tolist()


def test_the_first_boxes_lie_in_different_places():
    """Three places, of which one has most votes: by votes alone, it would have the first places too."""
    spread = [(x, y) for x in range(2) for y in range(2)]
    boxes = [(0 + x, 0 + y, 100, 100) for x in range(4) for y in range(4)]
    boxes += [(200 + x, 0 + y, 260, 80) for x, y in spread] + [(0 + x, 200, 70, 270) for x, _ in spread[1:]]
    board = np.full((300, 300, 3), 20, np.uint8)
    for left, top, right, bottom in ((0, 0, 103, 103), (200, 0, 261, 81), (0, 200, 71, 270)):
        board[top:bottom, left:right] = 220
    ranked = ranking.ranked(np.array(boxes, np.int32), board, xywh)
    assert {(x // 150, y // 150) for x, y, _, _ in ranked[:3].tolist()} == {(0, 0), (1, 0), (0, 1)}
