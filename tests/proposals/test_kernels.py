"""The kernels against plain transcriptions of what they compute."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from demo_images import draw_scene

from univip_stream.proposals import features, graph, grouping, pixels
from univip_stream.proposals.fast import taps
from univip_stream.proposals.hierarchies import hierarchies


@pytest.fixture
def image(rng):
    return draw_scene("cross", rng, 60, 44)


def weights_of(image, sigma=0.8):
    return pixels.weigh_edges(pixels.smooth(image, taps(sigma)))


def edges_of(right, down):
    """(weight, number, pixel, neighbour) of every edge, lightest first, of equals row by row and those to the right first."""
    height, width = right.shape[0], down.shape[1]
    edges = []
    for y in range(height):
        edges += [(int(right[y, x]), 2 * (y * width + x), y * width + x, y * width + x + 1) for x in range(width - 1)]
        if y < height - 1:
            edges += [(int(down[y, x]), 2 * (y * width + x) + 1, y * width + x, (y + 1) * width + x) for x in range(width)]
    return sorted(edges, key=lambda edge: edge[0])


def named_by_first(labels):
    names = {name: number for number, name in enumerate(dict.fromkeys(labels))}
    return [names[name] for name in labels]


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


@pytest.mark.parametrize("size", [(44, 60), (43, 37), (7, 5), (1, 60), (44, 1), (44, 59)])
def test_the_copys_pixels_are_means_of_the_areas_they_cover(image, size):
    small = pixels.shrink(image, *size)
    # Every source pixel cut into height x width equal parts: the copy's pixels are means of whole parts.
    parts = np.repeat(np.repeat(image, size[0], axis=0), size[1], axis=1).astype(np.float64)
    expected = parts.reshape(size[0], 44, size[1], 60, 3).mean(axis=(1, 3))
    assert np.abs(small - expected).max() <= 0.5 + 1e-9


@pytest.mark.slow
def test_smoothing_is_opencvs_gaussian(image):
    expected = cv2.GaussianBlur(image.astype(np.float32), (7, 7), 0.8)
    assert np.abs(pixels.smooth(image, taps(0.8)).transpose(1, 2, 0) - expected).max() < 1e-3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (5, 5)])
def test_smoothing_keeps_a_flat_image_of_any_size(shape):
    flat = np.full((*shape, 3), 93, np.uint8)
    np.testing.assert_allclose(pixels.smooth(flat, taps(0.8)), 93, rtol=1e-6)


def test_weights_are_euclidean_distances(image):
    colours = pixels.smooth(image, taps(0.8)).astype(np.float64)
    right, down = pixels.weigh_edges(colours.astype(np.float32))
    np.testing.assert_allclose(right / pixels.UNIT, np.sqrt((np.diff(colours, axis=2) ** 2).sum(axis=0)), atol=2e-4)
    np.testing.assert_allclose(down / pixels.UNIT, np.sqrt((np.diff(colours, axis=1) ** 2).sum(axis=0)), atol=2e-4)


@pytest.mark.slow
def test_dropping_the_heaviest_edges_of_squares_keeps_the_spanning_tree(rng):
    for levels in (3, 1000):  # few levels: many ties
        right, down = rng.integers(0, levels, (14, 16), np.int32), rng.integers(0, levels, (13, 17), np.int32)
        everything = edges_of(right, down)
        numbers = set((pixels.edge_keys(right, down, True) & 0xFFFFFFFF).tolist())
        thinner = [edge for edge in everything if edge[1] in numbers]
        assert len(thinner) == len(numbers) < 0.7 * len(everything)
        assert spanning_tree(thinner, 14 * 17) == spanning_tree(everything, 14 * 17)


def test_edges_are_sorted_by_weight_and_equal_ones_keep_their_order(rng):
    right, down = rng.integers(0, 1 << 22, (40, 29), np.int32), rng.integers(0, 99, (39, 30), np.int32)
    keys = graph.sorted_keys(pixels.edge_keys(right, down, False))
    expected = edges_of(right, down)
    assert (keys >> 32).tolist() == [edge[0] for edge in expected]
    assert (keys & 0xFFFFFFFF).tolist() == [edge[1] for edge in expected]


def felzenszwalb(edges, count, k, min_size):
    """Section 3 of the paper with sets of nodes and exact fractions, then the small components."""
    component = {node: {node} for node in range(count)}
    limit = dict.fromkeys(range(count), Fraction(k))
    of = list(range(count))

    def join(a, b):
        if len(component[a]) < len(component[b]):
            a, b = b, a
        for node in component[b]:
            of[node] = a
        component[a] |= component.pop(b)

    left = []
    for weight, _, u, v in edges:
        a, b = of[u], of[v]
        if a == b:
            continue
        if weight <= limit[a] and weight <= limit[b]:
            join(a, b)
            limit[of[u]] = weight + Fraction(k, len(component[of[u]]))
        else:
            left.append((u, v))
    for u, v in left:
        a, b = of[u], of[v]
        if a != b and min(len(component[a]), len(component[b])) < min_size:
            join(a, b)
    return of


@pytest.mark.slow
@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize("shared", [0, 20, 100])
def test_segments_are_those_of_the_paper_whatever_is_shared(image, thin, shared):
    keys = graph.sorted_keys(pixels.edge_keys(*weights_of(image), thin))
    width = 60
    edges = [
        (key >> 32, 0, (key & 0xFFFFFFFF) >> 1, ((key & 0xFFFFFFFF) >> 1) + (width if key & 1 else 1))
        for key in keys.tolist()
    ]
    node, sizes, inners, *left = graph.contract(keys, 44, 60, shared * pixels.UNIT)
    assert sizes.tolist() == np.bincount(node.ravel()).tolist()
    assert shared == 0 or len(sizes) < 44 * 60 / 2
    for k, min_size in ((100, 1), (100, 20), (400, 60)):
        region, regions, pairs = graph.segment(*left, sizes, inners, k * pixels.UNIT, min_size)
        labels = region[node]
        assert labels.ravel().tolist() == named_by_first(felzenszwalb(edges, 44 * 60, k * pixels.UNIT, min_size))
        assert np.bincount(labels.ravel()).min() >= min_size
        assert labels.max() + 1 == regions
        beside = np.concatenate(
            [np.stack([labels[:, 1:], labels[:, :-1]]).reshape(2, -1), np.stack([labels[1:], labels[:-1]]).reshape(2, -1)], 1
        )
        found = {tuple(pair) for pair in pairs.tolist()}
        assert len(found) == len(pairs)
        assert found <= {(min(a, b), max(a, b)) for a, b in beside.T.tolist() if a != b}
        # Thinning leaves a tree over everything, so every region keeps a way to every other one.
        assert len(spanning_tree([(0, 0, *pair) for pair in found], regions)) == regions - 1 or thin


def test_regions_touch_over_one_diagonal_as_in_opencv():
    node = np.array([[0, 1, 1], [2, 2, 3], [4, 2, 3]], np.uint32)
    pairs = graph.touching(node, np.arange(5, dtype=np.uint32), 5)
    # 0-1 touch along the first row only; 0-2 and 2-3 side by side, 0-2 and 1-3 and 2-3 over corners.
    assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (1, 2), (1, 3), (2, 3), (2, 4)]


def test_common_cells_are_the_overlaps_of_segmentations(rng):
    one, two = rng.integers(0, 5, 200).astype(np.uint32), rng.integers(0, 7, 200).astype(np.uint32)
    cell, cells = graph.common_cells(np.zeros(200, np.uint32), 1, one, 5)
    cell, cells = graph.common_cells(cell, cells, two, 7)
    overlaps = list(zip(one.tolist(), two.tolist(), strict=True))
    assert cells == len(set(overlaps)) == len(set(cell.tolist()))
    assert len(set(zip(cell.tolist(), overlaps, strict=True))) == cells


def counted(image, labels):
    """Histograms and boxes of a map of labels."""
    cells = int(labels.max()) + 1
    names = np.arange(cells, dtype=np.uint32)
    return features.cell_histograms(image, features.texture_codes(image), labels.astype(np.uint32), names, cells)


@pytest.mark.slow
def test_histograms_count_every_pixel_once(image, rng):
    labels = np.mgrid[:44, :60][1] // 20
    colour, texture, boxes = counted(image, labels)
    assert boxes.tolist() == [[0, 0, 20, 44], [20, 0, 40, 44], [40, 0, 60, 44]]
    for cell in range(3):
        there = image[labels == cell]
        for c in range(3):
            numbers, _ = np.histogram(there[:, c], bins=25, range=(0, 256))
            assert colour[cell, 25 * c : 25 * c + 25].tolist() == numbers.tolist()
        assert (texture[cell].reshape(12, 20).sum(axis=1) == 2 * len(there)).all()


def test_texture_is_the_scharr_derivative_in_ten_bins(image):
    texture = counted(image, np.zeros((44, 60), int))[1].reshape(3, 4, 20)
    for c in range(3):
        across, along = cv2.Scharr(image[..., c], cv2.CV_64F, 1, 0), cv2.Scharr(image[..., c], cv2.CV_64F, 0, 1)
        for line, slope in enumerate((across, along, across + along, along - across)):
            none_rising, none_falling = texture[c, line, 9], texture[c, line, 19]
            falling, rising = texture[c, line, 8::-1], texture[c, line, 10:19]
            for signed, found in ((slope, (none_rising, *rising)), (-slope, (none_falling, *falling))):
                signed = np.maximum(signed, 0)
                numbers, _ = np.histogram(signed / (signed.max() + 1) * 10, bins=np.arange(11))
                # Where a slope lies on the border of two bins, fixed point may round it the other way.
                assert np.abs(np.array(found) - numbers).sum() <= 0.01 * 44 * 60


def greedy(sizes, boxes, colour, texture, touching, pixels, with_colour):
    """Algorithm 1 of Uijlings et al. in plain Python, similarities as fractions of their counts."""

    def share(counts):
        """Of their sum, in the 24 bits of a float32."""
        return np.floor(counts.astype(np.float32) * np.float32(grouping.SCALE / counts.sum())).astype(np.int64)

    shares = ([share(h) for h in colour], [share(h) for h in texture])
    regions = {r: (sizes[r], boxes[r], colour[r], texture[r], shares[0][r], shares[1][r]) for r in range(len(sizes))}
    found = [tuple(box) for box in boxes]

    def likeness(a, b):
        a, b = regions[a], regions[b]
        value = np.minimum(a[5], b[5]).sum() + (np.minimum(a[4], b[4]).sum() if with_colour else 0)
        x0, y0 = np.minimum(a[1][:2], b[1][:2])
        x1, y1 = np.maximum(a[1][2:], b[1][2:])
        together = a[0] + b[0]
        size, fill = 1 - together / pixels, 1 - ((x1 - x0) * (y1 - y0) - together) / pixels
        return value + round(grouping.SCALE * (size + fill))

    touching = {frozenset(pair) for pair in touching}
    while touching:
        a, b = max((tuple(sorted(pair)) for pair in touching), key=lambda pair: (likeness(*pair), -pair[0], -pair[1]))
        one, two = regions[a], regions[b]
        size, hc, ht = one[0] + two[0], one[2] + two[2], one[3] + two[3]
        box = (*np.minimum(one[1][:2], two[1][:2]), *np.maximum(one[1][2:], two[1][2:]))
        merged = [share(h) for h in (hc, ht)]
        regions[a] = (size, np.array(box), hc, ht, *merged)
        found.append(tuple(int(v) for v in box))
        moved = {frozenset(a if r == b else r for r in pair) for pair in touching}
        touching = {pair for pair in moved if len(pair) == 2}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("with_colour", [True, False])
def test_grouping_is_algorithm_1_in_plain_loops(image, with_colour):
    keys = graph.sorted_keys(pixels.edge_keys(*weights_of(image), False))
    node, sizes, inners, *edges = graph.contract(keys, 44, 60, 10 * pixels.UNIT)
    region, regions, pairs = graph.segment(*edges, sizes, inners, 20 * pixels.UNIT, 30)
    colour, texture, boxes = counted(image, region[node])
    areas = np.bincount(region[node].ravel())
    found = grouping.group(pairs, colour, texture, boxes, 44 * 60, with_colour)
    expected = greedy(areas, boxes, colour, texture, pairs.tolist(), 44 * 60, with_colour)
    assert len(found) == 2 * regions - 1 > 10
    assert [tuple(box) for box in found.tolist()] == [tuple(int(v) for v in box) for box in expected]


def test_counts_of_170_million_pixels_group_like_those_of_few(image):
    """Texture counts each pixel 24 times, so the sum of a region passes 2 ** 31 from 90 million pixels on."""
    keys = graph.sorted_keys(pixels.edge_keys(*weights_of(image), False))
    node, sizes, inners, *edges = graph.contract(keys, 44, 60, 10 * pixels.UNIT)
    region, _, pairs = graph.segment(*edges, sizes, inners, 20 * pixels.UNIT, 30)
    colour, texture, boxes = counted(image, region[node])
    times = np.int32(1 << 16)  # a power of two: shares are the same to the bit
    assert texture.astype(np.int64).sum() * times > 1 << 31 > 44 * 60 * times
    few, many = (grouping.group(pairs, colour * n, texture * n, boxes, 44 * 60, True) for n in (np.int32(1), times))
    np.testing.assert_array_equal(many, few)


def test_pooled_regions_are_sums_of_their_cells(image, rng):
    labels = np.mgrid[:44, :60][0] // 11 * 3 + np.mgrid[:44, :60][1] // 20
    region = rng.integers(0, 4, 12).astype(np.uint32)
    region[:4] = np.arange(4)
    for pooled, direct in zip(grouping.pool(region, 4, *counted(image, labels)), counted(image, region[labels]), strict=True):
        np.testing.assert_array_equal(pooled, direct)


def test_hierarchies_are_the_stages_one_by_one(image):
    """The compiled function against its parts, each segmentation from pixels and with counts of its own."""
    codes = features.texture_codes(image)
    expected = []
    for k, smallest, measures in ((20, 30, (True, False)), (60, 30, (True, False)), (8, 6, (True,))):
        keys = graph.sorted_keys(pixels.edge_keys(*weights_of(image), True))
        node, sizes, inners, *edges = graph.contract(keys, 44, 60, 0)
        region, _, pairs = graph.segment(*edges, sizes, inners, k * pixels.UNIT, smallest)
        for with_colour in measures:
            expected.append(grouping.group(pairs, *counted(image, region[node]), 44 * 60, with_colour))
    scales = np.array([20, 60])
    found = hierarchies(image, codes, taps(0.8), scales, 30, 0, 0, 0, True, False)
    np.testing.assert_array_equal(found, np.concatenate(expected[:4]))
    # With a finer segmentation: those, and its small boxes.
    found = hierarchies(image, codes, taps(0.8), scales, 30, 8, 6, 15, True, False)
    sides = (expected[4][:, 2:] - expected[4][:, :2]).max(axis=1)
    assert 0 < (sides <= 15).sum() < len(sides)
    np.testing.assert_array_equal(found, np.concatenate([*expected[:4], expected[4][sides <= 15]]))
