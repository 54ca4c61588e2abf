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
from univip_stream.methods.scenes import BoxPlan, boxes_in_view
from univip_stream.methods.soco import SoCoConfig, SoCoPlan
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.mining import MiningConfig, mine
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.inputs import inputs_on
from univip_stream.pretrain.load import load_method
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig, draw_views, jitter_boxes

S, T = 64, 32
PLAIN = AugmentConfig(
    jitter_p=0.0, grey_p=0.0, blur_p=(0.0, 0.0), solarize_p=(0.0, 0.0), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
)
"""Flips, and nothing else."""


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
    views = ViewConfig(scene_size=S, third_size=T, instances=1, overlap=overlap, crop_scale=(0.2, 0.9))
    stream = Stream(str(red_shards), SoCoPlan(SoCoConfig(), views, PLAIN), StreamConfig(batch_size=8, workers=0))
    seen = {False: 0, True: 0}
    for batch in islice(stream, 4):
        inputs = inputs_on(torch.device("cpu"), batch, PLAIN)
        assert inputs.keys() == {"scenes", "third", "boxes"}
        assert inputs["boxes"].shape == (8, 3, 1, 4)
        assert inputs["third"].shape == (1, 8, 3, T, T)
        for b in (batch.filled == 0).nonzero().flatten().tolist():
            for view, image in enumerate([*inputs["scenes"][:, b], inputs["third"][0, b]]):
                draws = batch.draws["third"][0, b] if view == 2 else batch.draws["scenes"][view, b]
                seen[bool(draws[0])] += assert_red_in(image, inputs["boxes"][b, view, 0].tolist())
    assert min(seen.values()) > 8  # boxes were seen mirrored and not


def test_boxes_in_view_is_the_plain_sum():
    window = np.array([10, 20, 100, 50], np.int32)
    boxes = np.array([[30.0, 30, 40, 20], [0, 0, 20, 30]], np.float32)
    plain = [[40.0, 40.0, 120.0, 120.0], [0.0, 0.0, 20.0, 40.0]]
    mirrored = [[80.0, 40.0, 160.0, 120.0], [180.0, 0.0, 200.0, 40.0]]
    assert boxes_in_view(boxes, window, False, 200).tolist() == plain
    assert boxes_in_view(boxes, window, True, 200).tolist() == mirrored


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
    def first(plan, **changes):
        views = ViewConfig(scene_size=S, instance_size=T, instances=2, third_size=T, **changes)
        return next(iter(Stream(str(red_shards), plan(views, AugmentConfig()), StreamConfig(batch_size=8, workers=0))))

    def soco(*both):
        return SoCoPlan(SoCoConfig(), *both)

    crops, third, jittered = first(UniVIPPlan), first(soco), first(soco, box_jitter=0.2)
    boxes = first(lambda *both: BoxPlan(*both, method="scrl"))
    for what in ("pixels", "draws", "windows"):
        for other in (third, jittered, boxes):
            assert torch.equal(getattr(crops, what)["scenes"], getattr(other, what)["scenes"])
    assert torch.equal(crops.filled, jittered.filled)
    assert (crops.pixels.keys(), boxes.pixels.keys()) == ({"scenes", "instances"}, {"scenes"})
    assert torch.equal(boxes.facts["boxes"], third.facts["boxes"][:, :2])
    assert not torch.equal(jittered.facts["boxes"][:, 0], third.facts["boxes"][:, 0])
    assert torch.equal(jittered.facts["boxes"][:, 1], third.facts["boxes"][:, 1])


@pytest.mark.slow
def test_third_views_and_jitter_come_the_same_from_workers_into_memory_used_again(red_shards):
    views = ViewConfig(scene_size=S, third_size=T, instances=2, box_jitter=0.1, whole_first=True)
    given = []
    for workers in (0, 2):
        config = StreamConfig(batch_size=8, workers=workers)
        stream = Stream(str(red_shards), SoCoPlan(SoCoConfig(), views, AugmentConfig()), config, reuse=True)
        given.append([(b.pixels["third"].clone(), b.draws["third"], b.facts["boxes"]) for b in islice(stream, 6)])
    for one, other in zip(*given, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_run_from_before_a_setting_existed_continues(red_shards, tmp_path):
    texts = ["method.name=byol", "method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32",
             "stream.batch_size=8", "stream.workers=0", "steps=1", "precision=fp32"]  # fmt: skip
    config = with_settings(recipe("cpu-demo"), texts)
    pretrain(config, str(red_shards), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    facts = json.loads(path.read_text())
    del facts["config"]["views"]["third_size"], facts["config"]["method"]["loss_scale"]
    # Once every run had all methods' settings.
    facts["config"]["method"] |= {"queue": 65536, "epsilon": 0.1}
    facts["config"]["views"] |= {"instance_crops": True}
    path.write_text(json.dumps(facts))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000000001.pt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"config": json.dumps(facts["config"])}, checkpoint)
    assert pretrain(config, str(red_shards), tmp_path / "run") == {}
    assert load_method(tmp_path / "run")[1] == config
    with pytest.raises(InputError, match=r"method\.loss_scale 1\.0 there, 2\.0 here"):
        pretrain(with_settings(config, ["method.loss_scale=2"]), str(red_shards), tmp_path / "run")
