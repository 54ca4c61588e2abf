import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from univip_stream.boxes import BoxFilter, as_boxes, filter_boxes, inside, iou, naive_boxes, validate_boxes
from univip_stream.errors import InputError

box_lists = st.lists(
    st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(1, 300), st.integers(1, 300)), max_size=30
)


def pixels(box, size=700):
    """The box painted on a grid: overlap counted pixel by pixel, an independent way to IoU."""
    grid = np.zeros((size, size), bool)
    x, y, w, h = box
    grid[y : y + h, x : x + w] = True
    return grid


def greedy_by_the_paper(boxes, min_scale, max_aspect, max_iou):
    """Section 3.1 in plain loops over fractions of integers: keep a box unless it overlaps one kept before."""
    kept = []
    for x, y, w, h in boxes:
        if min(w, h) < min_scale or w / h > max_aspect or h / w > max_aspect:
            continue
        covered = False
        for a, b, c, d in kept:
            wide = min(x + w, a + c) - max(x, a)
            high = min(y + h, b + d) - max(y, b)
            shared = max(wide, 0) * max(high, 0)
            covered |= shared / (w * h + c * d - shared) > max_iou
        if not covered:
            kept.append((x, y, w, h))
    return kept


# How long an example takes says how busy the machine is.
whatever_it_takes = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@whatever_it_takes
@given(box_lists, st.sampled_from([1, 32, 64]), st.sampled_from([1.0, 2.5, 3.0]), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_filter_is_the_papers_loop(boxes, min_scale, max_aspect, max_iou):
    found = filter_boxes(boxes, min_scale, max_aspect, max_iou).tolist()
    assert [tuple(box) for box in found] == greedy_by_the_paper(boxes, min_scale, max_aspect, max_iou)


def test_the_filter_is_the_papers_loop_for_many_boxes(rng):
    boxes = np.concatenate([rng.integers(0, 500, (900, 2)), rng.integers(40, 300, (900, 2))], axis=1)
    for max_boxes in (None, 1, 33, 50):
        expected = greedy_by_the_paper(boxes.tolist(), 64, 3.0, 0.5)[:max_boxes]
        assert [tuple(box) for box in filter_boxes(boxes, max_boxes=max_boxes).tolist()] == expected


def test_iou_counts_pixels(rng):
    boxes = np.concatenate([rng.integers(0, 300, (8, 2)), rng.integers(1, 400, (8, 2))], axis=1)
    counted = [[np.sum(pixels(a) & pixels(b)) / np.sum(pixels(a) | pixels(b)) for b in boxes] for a in boxes]
    np.testing.assert_array_equal(iou(boxes, boxes), counted)


def test_a_box_exactly_on_every_limit_is_kept():
    assert len(filter_boxes([[0, 0, 64, 192]])) == 1
    assert len(filter_boxes([[0, 0, 63, 100]])) == 0
    assert len(filter_boxes([[0, 0, 64, 193]])) == 0
    # IoU of 100 x 100 with its left half widened: 100*100 / (200*100) is exactly one half.
    assert len(filter_boxes([[0, 0, 200, 100], [0, 0, 100, 100]])) == 2
    assert len(filter_boxes([[0, 0, 200, 100], [0, 0, 101, 100]])) == 1


def test_large_coordinates_do_not_overflow():
    big = [[0, 0, 32767, 32767], [1, 1, 32766, 32766], [16000, 16000, 16000, 16000]]
    assert filter_boxes(big).tolist() == [big[0], big[2]]


def test_max_boxes_takes_the_first(rng):
    boxes = [[100 * i, 0, 80, 80] for i in range(10)]
    assert filter_boxes(boxes, max_boxes=3).tolist() == boxes[:3]


def test_no_boxes_are_no_boxes():
    assert filter_boxes([]).shape == (0, 4)
    assert filter_boxes(np.empty((0, 4), np.int16)).dtype == np.int32


NO_BOXES = ([1, 2, 3, 4], [[1, 2, 3]], [list("abcd")], [[0.5, 0, 1, 1]], [[np.nan, 0, 1, 1]], [[2**40, 0, 1, 1]])


@pytest.mark.parametrize("bad", NO_BOXES)
def test_what_is_no_box_is_said(bad):
    with pytest.raises(InputError, match="boxes"):
        as_boxes(bad)


def test_inside_is_the_right_way_round():
    region = (10, 10, 100, 100)
    boxes = [[10, 10, 100, 100], [20, 20, 5, 5], [9, 10, 100, 100], [0, 0, 500, 500]]
    assert inside(boxes, region).tolist() == [True, True, False, False]


@whatever_it_takes
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 8), st.integers(0, 2**32))
def test_naive_boxes_always_end_inside_the_region_and_count_right(width, height, count, seed):
    boxes = naive_boxes((5, 7, width, height), count, np.random.default_rng(seed))
    assert boxes.shape == (count, 4)
    assert inside(boxes, (5, 7, width, height)).all()
    validate_boxes(boxes, width + 5, height + 7)


def test_naive_boxes_obey_the_filter_where_there_is_room(rng):
    for _ in range(50):
        boxes = naive_boxes((0, 0, 640, 480), 4, rng)
        assert filter_boxes(boxes).tolist() == boxes.tolist()


def test_naive_boxes_avoid_what_is_there(rng):
    there = [[100, 100, 200, 200]]
    boxes = naive_boxes((0, 0, 640, 480), 4, rng, avoid=there)
    assert iou(boxes, there).max() <= 0.5


def test_boxes_outside_the_image_are_named():
    with pytest.raises(InputError, match=r"box 1 is \[600, 0, 41, 10\]"):
        validate_boxes([[0, 0, 640, 480], [600, 0, 41, 10]], 640, 480)


@pytest.mark.parametrize("numbers", [{"min_scale": 0}, {"max_aspect": 0.5}, {"max_iou": 1.5}, {"max_boxes": 0}])
def test_impossible_filters_are_refused(numbers):
    with pytest.raises(InputError, match=next(iter(numbers))):
        BoxFilter(**numbers)
