"""Boxes in the views, shown by drawn images whose coloured box must lie where the coordinates say."""

import json
from itertools import islice

import cv2
import numpy as np
import pytest
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.boxes import inside
from univip_stream.errors import InputError
from univip_stream.methods import Wants
from univip_stream.mining import MiningConfig, mine
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.inputs import boxes_in_view, extras_on
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.pretrain.update import views_on
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig, draw_views, jitter_boxes

S, T = 64, 32
PLAIN = AugmentConfig(
    jitter_p=0.0, grey_p=0.0, blur_p=(0.0, 0.0), solarize_p=(0.0, 0.0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
"""Flips, and nothing else."""
FLIPS = torch.tensor([False, True])


def red_box(image: np.ndarray) -> np.ndarray:
    """The proposer of these shards: where the image is red."""
    ys, xs = np.nonzero(image[..., 0].astype(int) - image[..., 1] > 128)
    return np.array([[xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]])


@pytest.fixture(scope="module")
def red_shards(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("red"), np.random.default_rng(3)
    for number in range(16):
        image = np.full((240, 320, 3), 40, np.uint8)
        x, y, w, h = (
            int(v) for v in (rng.integers(0, 180), rng.integers(0, 120), rng.integers(70, 140), rng.integers(70, 120))
        )
        image[y : y + h, x : x + w] = 0, 0, 255  # OpenCV's order
        cv2.imwrite(str(folder / f"{number}.png"), image)
    out = tmp_path_factory.mktemp("shards") / "red"
    mine(MiningConfig(sources=(folder,), out=out, num_shards=1, proposals="test_inputs:red_box", inline=True))
    return out


def assert_red_in(image: torch.Tensor, box: list[float]) -> bool:
    """The red pixels are those inside the box, to a pixel at each edge; whether there are any."""
    red = (image[0] - image[1] > 0.5).numpy()
    x1, y1, x2, y2 = box
    if min(x2 - x1, y2 - y1) < 2:
        return False
    ys, xs = np.nonzero(red)
    assert len(xs)
    found = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    assert np.abs(np.array(found) - box).max() <= 1, (found, box)
    return True


@pytest.mark.parametrize("overlap", [True, False])
def test_a_coloured_box_lands_where_its_coordinates_say(red_shards, overlap):
    views = ViewConfig(scene_size=S, third_size=T, instances=1, instance_crops=False, overlap=overlap, crop_scale=(0.2, 0.9))
    stream = Stream(str(red_shards), views, PLAIN, StreamConfig(batch_size=8, workers=0))
    seen = {False: 0, True: 0}
    for batch in islice(stream, 4):
        scenes, instances = views_on(torch.device("cpu"), batch, PLAIN)
        extras = extras_on(torch.device("cpu"), batch, Wants(boxes=True, third=True), PLAIN)
        assert instances is None
        assert extras["boxes"].shape == (3, 8, 1, 4)
        assert extras["third"].shape == (8, 3, T, T)
        for b in (batch.filled == 0).nonzero().flatten().tolist():
            for view, image in enumerate([*scenes[:, b], extras["third"][b]]):
                draws = batch.third_draws[b] if view == 2 else batch.scene_draws[view, b]
                seen[bool(draws[0])] += assert_red_in(image, extras["boxes"][view, b, 0].tolist())
    assert min(seen.values()) > 8  # boxes were seen mirrored and not


def test_boxes_in_view_is_the_plain_sum():
    window = torch.tensor([[10, 20, 100, 50]] * 2, dtype=torch.int32)
    boxes = torch.tensor([[[30.0, 30, 40, 20], [0, 0, 20, 30]]] * 2)
    plain = [[40.0, 40.0, 120.0, 120.0], [0.0, 0.0, 20.0, 40.0]]
    mirrored = [[80.0, 40.0, 160.0, 120.0], [180.0, 0.0, 200.0, 40.0]]
    assert boxes_in_view(boxes, window, FLIPS, 200).tolist() == [plain, mirrored]


def test_the_whole_image_is_the_first_view_when_asked(rng):
    boxes = np.array([[x, y, 70, 70] for x in (0, 80, 160, 240) for y in (0, 80, 160)], np.int32)
    for overlap in (True, False):
        drawn = draw_views(boxes, 320, 240, rng, ViewConfig(whole_first=True, overlap=overlap, instances=1))
        assert drawn.scenes[0].tolist() == [0, 0, 320, 240]
        assert drawn.overlap.tolist() == drawn.scenes[1].tolist()
        assert inside(drawn.instances, drawn.overlap).all() or not overlap


def test_jittered_boxes_move_by_shares_of_their_sides_and_stay_inside(rng):
    config = ViewConfig(box_jitter=0.1, box_jitter_p=0.5)
    boxes = np.array([[100, 50, 60, 40]] * 4000, np.int32)
    jittered = jitter_boxes(boxes, np.array([0, 0, 320, 240], np.int32), rng, config)
    shares = (jittered - boxes) / [60, 40, 60, 40]
    moved = (shares != 0).any(axis=1)
    assert 0.46 < moved.mean() < 0.54
    assert 0.098 < np.abs(shares).max() <= 0.1 + 1e-6
    # Uniform: the deviation of 0.1 is 0.1 / sqrt(3).
    assert shares[moved].std(axis=0) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    tight = jitter_boxes(boxes, np.array([100, 50, 60, 40], np.int32), rng, config)
    assert (tight[:, :2] >= [100, 50]).all()
    assert (tight[:, :2] + tight[:, 2:] <= [160 + 1e-4, 90 + 1e-4]).all()


def test_what_is_drawn_for_some_methods_changes_nothing_for_others(red_shards):
    def first(**changes):
        views = ViewConfig(scene_size=S, instance_size=T, instances=2, **changes)
        return next(iter(Stream(str(red_shards), views, AugmentConfig(), StreamConfig(batch_size=8, workers=0))))

    plain, more, less = first(), first(third_size=T, box_jitter=0.2), first(instance_crops=False)
    for name in ("scenes", "scene_draws", "scene_boxes", "instance_boxes", "filled"):
        assert torch.equal(getattr(plain, name), getattr(more, name)), name
        assert torch.equal(getattr(plain, name), getattr(less, name)), name
    assert torch.equal(plain.instance_draws, more.instance_draws)
    assert less.instances.shape[1] == 0
    assert not torch.equal(more.view_boxes, plain.view_boxes)


def test_third_views_and_jitter_come_the_same_from_workers_into_memory_used_again(red_shards):
    views = ViewConfig(scene_size=S, third_size=T, instances=2, instance_crops=False, box_jitter=0.1, whole_first=True)
    given = []
    for workers in (0, 2):
        config = StreamConfig(batch_size=8, workers=workers)
        stream = Stream(str(red_shards), views, AugmentConfig(), config, reuse=True)
        given.append([(b.third.clone(), b.third_draws, b.view_boxes) for b in islice(stream, 6)])
    for one, other in zip(*given, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_run_from_before_a_setting_existed_continues(red_shards, tmp_path):
    texts = ["method.name=byol", "method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32",
             "stream.batch_size=8", "stream.workers=0", "steps=1", "precision=fp32"]  # fmt: skip
    config = with_settings(recipe("cpu-demo"), texts)
    pretrain(config, str(red_shards), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    facts = json.loads(path.read_text())
    del facts["config"]["views"]["third_size"], facts["config"]["method"]["queue"]
    path.write_text(json.dumps(facts))
    assert pretrain(config, str(red_shards), tmp_path / "run") == {}
    with pytest.raises(InputError, match=r"method\.queue 65536 there, 4 here"):
        pretrain(with_settings(config, ["method.queue=4"]), str(red_shards), tmp_path / "run")
