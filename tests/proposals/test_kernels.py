"""The kernels against plain transcriptions of what they compute."""

import cv2
import numpy as np
import pytest
from demo_images import draw_scene

from univip_stream.boxes import iou
from univip_stream.proposals import features, graph, grouping, ranking
from univip_stream.proposals.fast import taps


@pytest.fixture
def image(rng):
    return draw_scene("cross", rng, 60, 44)


def edges_of(weights):
    """(weight, number, pixel, neighbour) of every edge that is there."""
    height, width, _ = weights.shape
    return sorted(
        (int(weights[y, x, axis]), 2 * (y * width + x) + axis, y * width + x, y * width + x + (width if axis else 1))
        for y in range(height)
        for x in range(width)
        for axis in range(2)
        if weights[y, x, axis] >= 0
    )


def spanning_tree(edges, count):
    """Kruskal, plainly."""
    parent = list(range(count))

    def root(node):
        while parent[node] != node:
            node = parent[node]
        return node

    tree = []
    for _, number, a, b in edges:
        if root(a) != root(b):
            parent[root(a)] = root(b)
            tree.append(number)
    return tree


def test_smoothing_is_opencvs_gaussian(image):
    found = graph.smooth(image, taps(0.8)) / 2.0**graph.FRACTION_BITS
    expected = cv2.GaussianBlur(image.astype(np.float32), (7, 7), 0.8)
    assert np.abs(found - expected).max() < 0.1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (5, 5)])
def test_smoothing_keeps_a_flat_image_of_any_size(shape):
    flat = np.full((*shape, 3), 93, np.uint8)
    assert (graph.smooth(flat, taps(0.8)) == 93 << graph.FRACTION_BITS).all()


def test_weights_are_euclidean_distances(image):
    colours = graph.smooth(image, taps(0.8))
    weights = graph.weigh_edges(colours)
    for y, x in ((0, 0), (10, 20), (43, 58), (42, 59)):
        for axis, (v, u) in enumerate(((y, x + 1), (y + 1, x))):
            if u < 60 and v < 44:
                distance = np.sqrt(np.sum((colours[y, x].astype(float) - colours[v, u]) ** 2))
                assert weights[y, x, axis] == int(distance * 4)
            else:
                assert weights[y, x, axis] == -1


def test_dropping_the_heaviest_edges_of_squares_keeps_the_spanning_tree(rng):
    for levels in (3, 1000):  # few levels: many ties
        weights = rng.integers(0, levels, (14, 17, 2)).astype(np.int32)
        weights[:, -1, 0] = -1
        weights[-1, :, 1] = -1
        thinner = graph.drop_heaviest_of_squares(weights)
        assert (thinner >= 0).sum() < 0.7 * (weights >= 0).sum()
        assert spanning_tree(edges_of(thinner), 14 * 17) == spanning_tree(edges_of(weights), 14 * 17)


def test_edges_are_sorted_by_weight_and_then_by_number(rng):
    weights = rng.integers(-1, 1 << 17, (40, 30, 2)).astype(np.int32)
    order, sorted_weights = graph.sorted_edges(weights)
    expected = edges_of(weights)
    assert sorted_weights.tolist() == [edge[0] for edge in expected]
    assert order.tolist() == [edge[1] for edge in expected]


def felzenszwalb(edges, count, k, min_size):
    """Section 3 of the paper with sets of nodes, thresholds in integers, then the small components."""
    component = {node: {node} for node in range(count)}
    inner = dict.fromkeys(range(count), 0)
    of = list(range(count))

    def join(a, b, weight):
        if len(component[a]) < len(component[b]):
            a, b = b, a
        for node in component[b]:
            of[node] = a
        component[a] |= component.pop(b)
        inner[a] = weight

    left = []
    limit = dict.fromkeys(range(count), k)
    for weight, _, u, v in edges:
        a, b = of[u], of[v]
        if a == b:
            continue
        if weight <= limit[a] and weight <= limit[b]:
            join(a, b, weight)
            limit[of[u]] = weight + k // len(component[of[u]])
        else:
            left.append((weight, u, v))
    for weight, u, v in left:
        a, b = of[u], of[v]
        if a != b and min(len(component[a]), len(component[b])) < min_size:
            join(a, b, weight)
    return of


@pytest.mark.parametrize(("k", "min_size"), [(20, 1), (100, 20), (400, 60)])
def test_segments_are_those_of_the_paper(image, k, min_size):
    weights = graph.weigh_edges(graph.smooth(image, taps(0.8)))
    order, sorted_weights = graph.sorted_edges(weights)
    labels, sizes, *_ = graph.segment_pixels(order, sorted_weights, 44, 60, k * graph.UNIT, min_size)
    expected = felzenszwalb(edges_of(weights), 44 * 60, k * graph.UNIT, min_size)
    names = {name: number for number, name in enumerate(dict.fromkeys(expected))}
    assert labels.ravel().tolist() == [names[name] for name in expected]
    assert sizes.tolist() == np.bincount(labels.ravel()).tolist()
    assert sizes.min() >= min_size


def test_histograms_count_every_pixel_once(image):
    labels = (np.mgrid[:44, :60][1] // 20).astype(np.int32)
    colour, texture = features.atom_histograms(image, labels, 3, 1)
    for atom in range(3):
        pixels = image[labels == atom]
        for c in range(3):
            counted, _ = np.histogram(pixels[:, c], bins=25, range=(0, 256))
            assert colour[atom, 25 * c : 25 * c + 25].tolist() == counted.tolist()
        assert (texture[atom].reshape(24, 10).sum(axis=1) == len(pixels)).all()


def test_texture_is_the_scharr_derivative_in_ten_bins(image):
    labels = np.zeros((44, 60), np.int32)
    _, texture = features.atom_histograms(image, labels, 1, 1)
    for c in range(3):
        slope = cv2.Scharr(image[..., c], cv2.CV_32F, 1, 0)
        for part, signed in enumerate((np.maximum(slope, 0), np.maximum(-slope, 0))):
            scaled = np.floor(signed * 255 / signed.max())
            counted, _ = np.histogram(scaled * 10 // 256, bins=np.arange(11))
            assert texture[0].reshape(3, 4, 2, 10)[c, 0, part].tolist() == counted.tolist()


def test_atoms_missed_by_the_steps_are_counted_too(image):
    labels = np.zeros((44, 60), np.int32)
    labels[1, 1] = 1
    colour, texture = features.atom_histograms(image, labels, 2, 2)
    assert colour[1].sum() == 3
    assert texture[1].sum() == 24


def greedy(sizes, boxes, colour, texture, touching, pixels, with_colour):
    """Algorithm 1 of Uijlings et al. in plain Python, similarities as fractions of their counts."""
    shares = (
        [np.floor(h / h.sum() * grouping.SCALE) for h in colour],
        [np.floor(h / h.sum() * grouping.SCALE) for h in texture],
    )
    regions = {r: (sizes[r], boxes[r], colour[r], texture[r], shares[0][r], shares[1][r]) for r in range(len(sizes))}
    found = [tuple(box) for box in boxes]

    def likeness(a, b):
        a, b = regions[a], regions[b]
        value = np.minimum(a[5], b[5]).sum() + (np.minimum(a[4], b[4]).sum() if with_colour else 0)
        x0, y0 = np.minimum(a[1][:2], b[1][:2])
        x1, y1 = np.maximum(a[1][2:], b[1][2:])
        together = a[0] + b[0]
        value += grouping.SCALE - grouping.SCALE * together // pixels
        return value + grouping.SCALE - grouping.SCALE * ((x1 - x0) * (y1 - y0) - together) // pixels

    touching = {frozenset(pair) for pair in touching}
    while touching:
        a, b = max((tuple(sorted(pair)) for pair in touching), key=lambda pair: (likeness(*pair), -pair[0], -pair[1]))
        one, two = regions[a], regions[b]
        size, hc, ht = one[0] + two[0], one[2] + two[2], one[3] + two[3]
        box = (*np.minimum(one[1][:2], two[1][:2]), *np.maximum(one[1][2:], two[1][2:]))
        merged = [np.floor(h / h.sum() * grouping.SCALE) for h in (hc, ht)]
        regions[a] = (size, np.array(box), hc, ht, *merged)
        found.append(tuple(int(v) for v in box))
        moved = {frozenset(a if r == b else r for r in pair) for pair in touching}
        touching = {pair for pair in moved if len(pair) == 2}
    return found


@pytest.mark.parametrize("with_colour", [True, False])
def test_grouping_is_algorithm_1_in_plain_loops(image, with_colour):
    order, weights = graph.sorted_edges(graph.weigh_edges(graph.smooth(image, taps(0.8))))
    labels, sizes, _, pairs, pair_weights = graph.segment_pixels(order, weights, 44, 60, 20 * graph.UNIT, 30)
    pairs, _ = graph.first_of_each_pair(pairs, pair_weights, len(sizes))
    colour, texture = features.atom_histograms(image, labels, len(sizes), 1)
    boxes = features.atom_boxes(labels, len(sizes))
    region = np.arange(len(sizes), dtype=np.int32)
    parts = grouping.pool(region, len(sizes), colour, texture, boxes, sizes)
    found = grouping.group(region, len(sizes), pairs, *parts, 44 * 60, with_colour)
    expected = greedy(sizes.astype(int), boxes, colour, texture, pairs.tolist(), 44 * 60, with_colour)
    assert len(found) == 2 * len(sizes) - 1 > 10
    assert [tuple(box) for box in found.tolist()] == [tuple(int(v) for v in box) for box in expected]


def test_pooled_regions_are_sums_of_their_atoms(image, rng):
    labels = (np.mgrid[:44, :60][0] // 11 * 3 + np.mgrid[:44, :60][1] // 20).astype(np.int32)
    colour, texture = features.atom_histograms(image, labels, 12, 1)
    region = rng.integers(0, 4, 12).astype(np.int32)
    region[:4] = np.arange(4)
    sizes = np.bincount(labels.ravel()).astype(np.int32)
    pooled = grouping.pool(region, 4, colour, texture, features.atom_boxes(labels, 12), sizes)
    direct = features.atom_histograms(image, region[labels], 4, 1)
    np.testing.assert_array_equal(pooled[0], direct[0])
    np.testing.assert_array_equal(pooled[1], direct[1])
    np.testing.assert_array_equal(pooled[2], features.atom_boxes(region[labels], 4))
    np.testing.assert_array_equal(pooled[3], np.bincount(region[labels].ravel()))


def test_ranking_counts_boxes_with_enough_overlap(rng):
    corners = rng.integers(0, 60, (300, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 50, (300, 2))], axis=1).astype(np.int32)
    unique = ranking.unique_boxes(boxes, 200)
    assert sorted(map(tuple, unique.tolist())) == sorted(set(map(tuple, boxes.tolist())))
    xywh = np.concatenate([unique[:, :2], unique[:, 2:] - unique[:, :2]], axis=1)
    expected = (iou(xywh, xywh) >= 0.7).sum(axis=1)
    assert ranking.neighbours(unique, 70).tolist() == expected.tolist()
    order = ranking.ranked(boxes, 70)
    votes = dict(zip(map(tuple, unique.tolist()), expected, strict=True))
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in order.tolist()]
    keys = [(-votes[tuple(box)], -area) for box, area in zip(order.tolist(), areas, strict=True)]
    assert keys == sorted(keys)
