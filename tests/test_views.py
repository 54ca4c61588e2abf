"""Algorithm 1 against a plain reading of it, and its promises on any image."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from univip_stream.boxes import iou
from univip_stream.errors import UsageError
from univip_stream.views import ViewConfig, Views, draw_views, random_crops

CONFIG = ViewConfig()
NO_BOXES = np.empty((0, 4), np.int32)


def random_boxes(rng: np.random.Generator, count: int, width: int, height: int, least: int = 1) -> np.ndarray:
    """Boxes anywhere in an image, at least so many pixels long where the image allows."""
    w = rng.integers(min(least, width), width + 1, count)
    h = rng.integers(min(least, height), height + 1, count)
    return np.stack([rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h], axis=1).astype(np.int32)


def lies_in(box: np.ndarray, region: np.ndarray) -> bool:
    """Pixel arithmetic in plain integers."""
    x, y, w, h = (int(v) for v in box)
    left, top, width, height = (int(v) for v in region)
    return left <= x and top <= y and x + w <= left + width and y + h <= top + height


def intersection(a: np.ndarray, b: np.ndarray) -> list[int]:
    """Where two boxes overlap; width and height 0 where they do not."""
    left, top = max(a[0], b[0]), max(a[1], b[1])
    w, h = min(a[0] + a[2], b[0] + b[2]) - left, min(a[1] + a[3], b[1] + b[3]) - top
    return [left, top, w, h] if w > 0 and h > 0 else [left, top, 0, 0]


def crop_by_torchvisions_rule(numbers: np.ndarray, place: np.ndarray, width: int, height: int) -> list[int]:
    """RandomResizedCrop.get_params, line by line, with its random numbers given."""
    for share, shape in numbers:
        area = width * height * (0.08 + (1.0 - 0.08) * share)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(place[0] * (width - w + 1)), int(place[1] * (height - h + 1)), w, h]
    w, h = width, height
    if width / height < 3 / 4:
        h = max(1, min(height, round(width / (3 / 4))))
    elif width / height > 4 / 3:
        w = max(1, min(width, round(height * (4 / 3))))
    return [(width - w) // 2, (height - h) // 2, w, h]


def algorithm_1(boxes: np.ndarray, width: int, height: int, seed: int, K: int) -> tuple[list, list, list, int]:
    """UniVIP's Algorithm 1 as loops, its errata mended: (scenes, overlap, boxes inside it, tries)."""
    rng = np.random.default_rng(seed)
    numbers, places = rng.random((40, 10, 2)), rng.random((40, 2))
    best: tuple[tuple[int, int, int], list, list, list] | None = None
    for attempt in range(20):
        first, second = (
            crop_by_torchvisions_rule(numbers[2 * attempt + v], places[2 * attempt + v], width, height) for v in (0, 1)
        )
        overlap = intersection(first, second)
        valid = overlap[2] >= min(64, width) and overlap[3] >= min(64, height)
        held = [box.tolist() for box in boxes if lies_in(box, overlap)]
        if valid and len(held) >= K:
            return [first, second], overlap, held, attempt + 1
        rank = (1, len(held), 0) if valid else (0, 0, overlap[2] * overlap[3])
        if best is None or rank > best[0]:
            best = rank, [first, second], overlap, held
    assert best is not None
    _, scenes, overlap, held = best
    if overlap[2] * overlap[3] == 0:
        scenes, overlap = [scenes[0], scenes[0]], scenes[0]
        held = [box.tolist() for box in boxes if lies_in(box, overlap)]
    return scenes, overlap, held, 20


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (480, 640), (200, 150), (300, 40), (70, 70), (1200, 100), (63, 900)]
)
@pytest.mark.parametrize("count", [0, 3, 6, 40])
def test_views_are_those_of_a_plain_loop_over_the_same_random_numbers(width: int, height: int, count: int) -> None:
    for seed in range(20):
        boxes = random_boxes(np.random.default_rng([1, seed]), count, width, height, 20)
        views = draw_views(boxes, width, height, np.random.default_rng(seed), CONFIG)
        scenes, overlap, held, tries = algorithm_1(boxes, width, height, seed, 4)
        assert (views.scenes.tolist(), views.overlap.tolist(), views.tries) == (scenes, overlap, tries)
        assert views.filled == max(0, 4 - len(held))
        mined = views.instances[: 4 - views.filled].tolist()
        assert sorted(mined) == sorted(held) if views.filled else all(box in held for box in mined)


def test_views_that_never_meet_become_one_window_and_keep_its_boxes() -> None:
    # Crops of a thousandth of the image practically never overlap; whole-image tiling gives some box inside the window.
    config = ViewConfig(crop_scale=(0.001, 0.001), tries=1, instances=4)
    tiles = np.array([[x, y, 4, 4] for x in range(0, 400, 4) for y in range(0, 400, 4)], np.int32)
    apart = 0
    for seed in range(20):
        views = draw_views(tiles, 400, 400, np.random.default_rng(seed), config)
        same = views.scenes[0].tolist() == views.scenes[1].tolist()
        apart += same
        assert same == (views.overlap.tolist() == views.scenes[0].tolist())
        held = sum(lies_in(box, views.overlap) for box in tiles)
        assert views.filled == max(0, 4 - held)
    assert apart >= 15


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    width=st.one_of(st.integers(1, 130), st.integers(1, 2500)),
    height=st.one_of(st.integers(1, 130), st.integers(1, 2500)),
    count=st.integers(0, 12),
    K=st.integers(0, 6),
    tries=st.integers(1, 20),
    min_scale=st.integers(1, 128),
    overlap=st.booleans(),
    regions=st.sampled_from(["mined", "naive"]),
    seed=st.integers(0, 2**32),
)
def test_any_image_gives_two_views_and_exactly_k_instances_inside_their_overlap(
    width: int, height: int, count: int, K: int, tries: int, min_scale: int, overlap: bool, regions: str, seed: int
) -> None:
    boxes = random_boxes(np.random.default_rng([2, seed]), count, width, height)
    config = ViewConfig(instances=K, tries=tries, min_scale=min_scale, overlap=overlap, regions=regions)  # type: ignore[arg-type]
    views = draw_views(boxes, width, height, np.random.default_rng(seed), config)

    image = np.array([0, 0, width, height])
    assert all(lies_in(scene, image) and scene[2] > 0 and scene[3] > 0 for scene in views.scenes)
    common = intersection(*views.scenes.tolist())
    assert views.overlap.tolist() == (common if common[2] else [0, 0, 0, 0])
    assert common[2] > 0 or not overlap
    region = views.overlap if overlap else image
    assert views.instances.shape == (K, 4)
    assert (views.instances[:, 2:] >= 1).all()
    assert all(lies_in(box, region) for box in views.instances)
    assert 1 <= views.tries <= tries

    # The first K - filled are different boxes of the image; none that lay inside was passed over for a random one.
    held = [tuple(box) for box in boxes.tolist() if lies_in(box, region)] if regions == "mined" else []
    mined = [tuple(box) for box in views.instances[: K - views.filled].tolist()]
    assert all(mined.count(box) <= held.count(box) for box in mined)
    assert views.filled == max(0, K - len(held))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (63, 2000), (2000, 63), (1, 3000), (64, 64)])
def test_the_smallest_and_the_longest_images_give_views_too(width: int, height: int) -> None:
    for seed in range(20):
        views = draw_views(NO_BOXES, width, height, np.random.default_rng(seed), CONFIG)
        assert views.filled == 4
        assert views.overlap[2:].min() >= 1


def test_an_overlap_is_at_least_64_pixels_wide_wherever_one_was_drawn() -> None:
    sides = [
        draw_views(NO_BOXES, 640, 480, np.random.default_rng(seed), CONFIG).overlap[2:].min().item() for seed in range(300)
    ]
    assert min(sides) >= 64


def test_one_box_over_another_is_still_two_boxes() -> None:
    boxes = np.tile(np.array([[200, 150, 100, 80]], np.int32), (6, 1))
    views = draw_views(boxes, 640, 480, np.random.default_rng(3), CONFIG)
    assert views.filled == 0
    assert views.instances.tolist() == boxes[:4].tolist()


def test_every_box_inside_the_overlap_is_as_likely_as_another() -> None:
    # All boxes sit in the middle, so that they are inside together.
    boxes = np.array([[300 + i, 220, 40, 40] for i in range(8)], np.int32)
    config = replace(CONFIG, crop_scale=(0.5, 1.0))
    drawn = [draw_views(boxes, 640, 480, np.random.default_rng(seed), config) for seed in range(800)]
    whole = [views for views in drawn if all(lies_in(box, views.overlap) for box in boxes)]
    counts = np.bincount(np.concatenate([views.instances[:, 0] for views in whole]) - 300, minlength=8)
    expected = len(whole) / 2
    assert len(whole) > 500
    assert np.abs(counts - expected).max() < 4 * math.sqrt(expected / 2)


def test_filling_boxes_are_large_not_too_long_and_apart() -> None:
    for seed in range(200):
        views = draw_views(NO_BOXES, 640, 480, np.random.default_rng(seed), CONFIG)
        w, h = views.instances[:, 2], views.instances[:, 3]
        assert min(w.min(), h.min()) >= 64
        assert (np.maximum(w, h) <= 3 * np.minimum(w, h)).all()
        if views.overlap[2:].min() >= 160:
            assert np.triu(iou(views.instances, views.instances), 1).max() <= 0.5


def test_more_tries_fill_fewer_boxes() -> None:
    boxes = random_boxes(np.random.default_rng(0), 12, 640, 480, 64)
    filled = [
        np.mean([draw_views(boxes, 640, 480, np.random.default_rng(s), replace(CONFIG, tries=t)).filled for s in range(200)])
        for t in (1, 5, 20)
    ]
    assert filled[0] > filled[1] > filled[2]


def test_two_random_views_are_the_first_two_and_take_instances_anywhere() -> None:
    boxes = random_boxes(np.random.default_rng(0), 9, 640, 480, 64)
    config = replace(CONFIG, overlap=False)
    rng = np.random.default_rng(5)
    numbers, places = rng.random((2, 10, 2)), rng.random((2, 2))
    views = draw_views(boxes, 640, 480, np.random.default_rng(5), config)
    assert views.scenes.tolist() == [crop_by_torchvisions_rule(numbers[v], places[v], 640, 480) for v in (0, 1)]
    assert views.filled == 0
    seen = {
        tuple(b) for s in range(60) for b in draw_views(boxes, 640, 480, np.random.default_rng(s), config).instances.tolist()
    }
    assert seen == {tuple(box) for box in boxes.tolist()}


def test_naive_regions_ignore_the_shards_boxes() -> None:
    boxes = np.array([[200, 150, 65, 66]] * 9, np.int32)
    views = draw_views(boxes, 640, 480, np.random.default_rng(0), replace(CONFIG, regions="naive"))
    assert views.filled == 4
    assert [200, 150, 65, 66] not in views.instances.tolist()


def test_the_same_generator_gives_the_same_views() -> None:
    def draw() -> Views:
        rng = np.random.Generator(np.random.Philox(key=[7, 11]))
        return draw_views(random_boxes(np.random.default_rng(0), 3, 500, 400, 64), 500, 400, rng, CONFIG)

    first, second = draw(), draw()
    assert first.scenes.tolist() == second.scenes.tolist()
    assert first.instances.tolist() == second.instances.tolist()


@pytest.mark.parametrize(("width", "height"), [(640, 480), (500, 200)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int) -> None:
    count = 6000
    config = ViewConfig(overlap=False, instances=0)
    rng = np.random.default_rng(0)
    ours = np.concatenate([draw_views(NO_BOXES, width, height, rng, config).scenes for _ in range(count // 2)])
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        params = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    theirs = np.array([(left, top, w, h) for top, left, h, w in params])

    def features(crops: np.ndarray) -> list[np.ndarray]:
        x, y, w, h = crops.T.astype(float)
        return [x, y, w, h, w * h, w / h]

    for mine, other in zip(features(ours), features(theirs), strict=True):
        # Kolmogorov and Smirnov's distance; 1.95 is the two-sided 0.1 % point.
        grid = np.union1d(mine, other)
        steps = [np.searchsorted(np.sort(v), grid, side="right") / count for v in (mine, other)]
        assert np.abs(steps[0] - steps[1]).max() < 1.95 * math.sqrt(2 / count)


def test_shapes_that_do_not_fit_are_drawn_again_or_clipped_as_byols_code_does() -> None:
    """byol/utils/dataset.py of deepmind-research, `_decode_and_random_crop`, as a plain loop with numbers of its own."""
    width, height, count = 640, 480, 4000
    rng = np.random.default_rng(5)
    byols = []
    for _ in range(count):
        area = rng.uniform(0.08, 1) * width * height
        shape = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        byols.append((min(round(math.sqrt(area * shape)), width), min(round(math.sqrt(area / shape)), height)))
    ours = {
        clip: random_crops(np.random.default_rng(6), count, width, height, (0.08, 1.0), clip=clip)[:, 2:]
        for clip in (False, True)
    }
    area = {clip: np.prod(sizes, axis=1).mean() / (width * height) for clip, sizes in ours.items()}
    assert area[True] == pytest.approx(0.518, abs=0.015)
    assert area[False] == pytest.approx(0.433, abs=0.015)
    for side in (0, 1):
        for share in (0.1, 0.5, 0.9):
            expected = np.quantile([sizes[side] for sizes in byols], share)
            assert np.quantile(ours[True][:, side], share) == pytest.approx(expected, rel=0.04)
    config = ViewConfig(crop_outside="clip", overlap=False, instances=0)
    views = draw_views(NO_BOXES, width, height, np.random.default_rng(6), config)
    assert views.scenes.tolist() == random_crops(np.random.default_rng(6), 2, 640, 480, (0.08, 1.0), clip=True).tolist()


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"scene_size": 4}, "scene_size"),
        ({"instance_size": 0}, "instance_size"),
        ({"instances": -1}, "instances"),
        ({"tries": 0}, "tries"),
        ({"min_scale": 0}, "min_scale"),
        ({"max_aspect": 0.5}, "max_aspect"),
        ({"max_iou": 1.5}, "max_iou"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale"),
        ({"crop_scale": (0.0, 1.0)}, "crop_scale"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio"),
        ({"regions": "none", "instances": 4}, "instances"),
        ({"max_aspect": math.nan}, "max_aspect"),
        ({"crop_ratio": (0.5, math.inf)}, "crop_ratio"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings_: dict, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        ViewConfig(**settings_)


@pytest.mark.parametrize(
    ("name", "value"), [("instance_augmentations", 3), ("regions", "mine"), ("interpolation", "nearest")]
)
def test_choices_that_do_not_exist_are_named(name: str, value: object) -> None:
    config = ViewConfig()
    object.__setattr__(config, name, value)  # past the tests' own type checker, which users do not have
    with pytest.raises(UsageError, match=name):
        config.__post_init__()


def test_no_regions_are_no_instances() -> None:
    views = draw_views(
        np.array([[0, 0, 90, 90]], np.int32), 100, 100, np.random.default_rng(0), ViewConfig(regions="none", instances=0)
    )
    assert views.instances.shape == (0, 4)
