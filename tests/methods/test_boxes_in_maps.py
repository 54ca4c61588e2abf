"""scrl and soco: RoIAlign and both losses against plain loops in float64, and their variants as published."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import METHODS, ScenePlan, build_method
from univip_stream.methods.contrast import nt_xent
from univip_stream.methods.maps import early_map, last_map, last_stage, pool_boxes
from univip_stream.methods.regression import regression_loss
from univip_stream.methods.soco import SoCoConfig, SoCoPlan, draw_cutouts
from univip_stream.plan import Look
from univip_stream.views import ViewConfig

B, K, S, T = 3, 2, 64, 32

PLAN = ScenePlan(ViewConfig(), AugmentConfig())
"""These methods ask nothing of it."""


def bilinear(plane: Tensor, y: float, x: float) -> float:
    """A map's value between its places; 0 more than a place outside of it."""
    h, w = plane.shape
    if y < -1 or y > h or x < -1 or x > w:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    low_y, low_x = min(int(y), h - 1), min(int(x), w - 1)
    high_y, high_x = min(low_y + 1, h - 1), min(low_x + 1, w - 1)
    dy = y - low_y if low_y < h - 1 else 0.0
    dx = x - low_x if low_x < w - 1 else 0.0
    return float(
        plane[low_y, low_x] * (1 - dy) * (1 - dx) + plane[low_y, high_x] * (1 - dy) * dx
        + plane[high_y, low_x] * dy * (1 - dx) + plane[high_y, high_x] * dy * dx
    )  # fmt: skip


def plain_roi_align(plane: Tensor, box: list[float], side: int, size: int, aligned: bool) -> list[list[float]]:
    """Mask R-CNN's RoIAlign of one channel: every bin the mean of evenly spread samples, one a place of the map or more."""
    scale, shift = plane.shape[-1] / side, 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (v * scale - shift for v in box)
    w, h = x2 - x1, y2 - y1
    if not aligned:
        w, h = max(w, 1.0), max(h, 1.0)
    rows, columns = math.ceil(h / size), math.ceil(w / size)
    out = []
    for i in range(size):
        out.append([])
        for j in range(size):
            samples = [
                bilinear(plane, y1 + h / size * (i + (a + 0.5) / rows), x1 + w / size * (j + (b + 0.5) / columns))
                for a in range(rows)
                for b in range(columns)
            ]
            out[-1].append(sum(samples) / len(samples))
    return out


@pytest.mark.parametrize("aligned", [True, False])
def test_pooled_boxes_are_roi_align_in_plain_loops(aligned):
    rng = torch.Generator().manual_seed(0)
    maps = torch.randn(B, 4, 8, 8, generator=rng, dtype=torch.float64)
    near = torch.rand(B, K, 2, generator=rng, dtype=torch.float64) * 30
    boxes = torch.cat([near, near + 3 + 30 * torch.rand(B, K, 2, generator=rng, dtype=torch.float64)], -1)
    ours = pool_boxes(maps, boxes, S, 3, aligned=aligned)
    for b in range(B):
        for k in range(K):
            for c in range(4):
                plain = plain_roi_align(maps[b, c], boxes[b, k].tolist(), S, 3, aligned)
                torch.testing.assert_close(ours[b * K + k, c], torch.tensor(plain, dtype=torch.float64))


def test_regression_loss_is_byols_equation_2():
    q, z = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (1, 2))
    expected = sum(
        sum((a / math.hypot(*x) - b / math.hypot(*y)) ** 2 for a, b in zip(x, y, strict=True))
        for x, y in zip(q.tolist(), z.tolist(), strict=True)
    )
    assert regression_loss(q, z).item() == pytest.approx(expected / 5, abs=1e-12)


def built(name: str, **settings) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two equal methods in float64 whose targets differ from their online networks."""
    torch.manual_seed(0)
    pair = []
    for _ in range(2):
        method = build_method(
            METHODS[name].Settings(name=name, backbone="resnet18", hidden=12, width=6, **settings), PLAN
        ).double()
        pair.append(method)
        rng = torch.Generator().manual_seed(5)
        method.load_state_dict(pair[0].state_dict())
        if len(pair) == 1:
            for parameter in method.target.parameters():
                parameter.data.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    return pair[0], pair[1]


def views() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    scenes = torch.randn(2, B, 3, S, S, generator=rng, dtype=torch.float64)
    third = torch.randn(B, 3, T, T, generator=rng, dtype=torch.float64)
    near = torch.rand(3, B, K, 2, generator=rng, dtype=torch.float64) * 20
    boxes = torch.cat([near, near + 10 + 20 * torch.rand(3, B, K, 2, generator=rng, dtype=torch.float64)], -1)
    boxes[2] /= 2
    return scenes, third, boxes


def plain_pool(maps: Tensor, boxes: Tensor, side: int, size: int, aligned: bool) -> Tensor:
    rows = [
        [plain_roi_align(plane, box, side, size, aligned) for plane in maps[b]] for b in range(B) for box in boxes[b].tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


def both_ways(q1: Tensor, q2: Tensor, t1: Tensor, t2: Tensor) -> float:
    """2 - 2 cos of every prediction with the other view's target, mean over the boxes, summed over both ways."""
    total = 0.0
    for q, t in ((q1, t2), (q2, t1)):
        for x, y in zip(q.tolist(), t.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(x, y, strict=True))
            total += (2 - 2 * dot / math.hypot(*x) / math.hypot(*y)) / len(q)
    return total


@pytest.mark.slow
def test_scrl_is_its_equation():
    method, twin = built("scrl")
    scenes, _, boxes = views()
    result = method({"scenes": scenes, "boxes": boxes[:2].transpose(0, 1)})
    with torch.no_grad():
        q, t = [], []
        for view in range(2):
            pooled = [
                plain_pool(last_map(net.backbone, scenes[view]), boxes[view], S, 1, False).flatten(1)
                for net in (twin.online, twin.target)
            ]
            q.append(twin.predictor(twin.online.projector(pooled[0])))
            t.append(twin.target.projector(pooled[1]))
    assert result["loss"].item() == pytest.approx(both_ways(*q, *t), abs=1e-9)


@pytest.mark.slow
def test_scrl_with_joint_statistics_is_one_batch_of_both_views():
    """As kakaobrain/scrl runs it: the same boxes of both views through every network at once."""
    method, twin = built("scrl", joint_statistics=True)
    scenes, _, boxes = views()
    result = method({"scenes": scenes, "boxes": boxes[:2].transpose(0, 1)})
    with torch.no_grad():
        images, places = scenes.reshape(2 * B, 3, S, S), [*boxes[0], *boxes[1]]
        pooled = [
            roi_align(last_map(net.backbone, images), places, 1, 1 / 32, aligned=False).flatten(1)
            for net in (twin.online, twin.target)
        ]
        q = twin.predictor(twin.online.projector(pooled[0])).chunk(2)
        t = twin.target.projector(pooled[1]).chunk(2)
    assert result["loss"].item() == pytest.approx(both_ways(*q, *t), abs=1e-9)
    apart, _ = built("scrl")
    assert apart({"scenes": scenes, "boxes": boxes[:2].transpose(0, 1)})["loss"].item() != pytest.approx(
        result["loss"].item()
    )


def test_simclr_with_joint_statistics_is_one_batch_of_both_views():
    settings = METHODS["simclr"].Settings(name="simclr", backbone="test_resnet", hidden=12, width=6, joint_statistics=True)
    torch.manual_seed(0)
    method = build_method(settings, PLAN).double()
    scenes = views()[0]
    before = copy.deepcopy(method.online)
    result = method({"scenes": scenes})
    first, second = before(scenes.reshape(2 * B, 3, S, S)).chunk(2)
    assert result["loss"].item() == pytest.approx(nt_xent(first, second, settings.temperature).item(), abs=1e-12)
    norm = next(part for part in method.online.modules() if isinstance(part, torch.nn.BatchNorm2d))
    assert norm.num_batches_tracked == 1


@pytest.mark.slow
def test_soco_without_a_third_view_is_its_first_term_on_views_with_holes():
    method, twin = built("soco", cutout_p=0.5)
    scenes, _, boxes = views()
    squares = torch.zeros(B, K, 4, dtype=torch.float64)
    squares[0, 0], squares[2, 1] = torch.tensor([3.0, 5, 20, 22]), torch.tensor([40.0, 40, 64, 64])
    result = method({"scenes": scenes.clone(), "boxes": boxes[:2].transpose(0, 1), "cutouts": squares})
    holed = scenes[1].clone()
    holed[0, :, 5:22, 3:20] = 0
    holed[2, :, 40:64, 40:64] = 0
    with torch.no_grad():
        q, t = [], []
        for view, image in enumerate((scenes[0], holed)):
            features = []
            for net in (twin.online, twin.target):
                pooled = roi_align(early_map(net.backbone, image), list(boxes[view]), 14, 1 / 16, aligned=True)
                features.append(net.projector(last_stage(net.backbone, pooled).mean((2, 3))))
            q.append(twin.predictor(features[0]))
            t.append(features[1])
    assert result["loss"].item() == pytest.approx(both_ways(*q, *t), abs=1e-9)
    assert result["loss_sizes"] == 0


def test_cutouts_are_squares_around_a_point_of_their_box():
    boxes = np.array([[10.0, 20, 110, 90], [0, 0, 224, 224]])
    drawn = np.stack([draw_cutouts(boxes, 224, 0.5, (0.1, 0.3), np.random.default_rng(seed)) for seed in range(300)])
    some = drawn[..., 2] > 0
    assert 0.4 < some.mean() < 0.6
    x1, y1, x2, y2 = np.moveaxis(drawn[:, 0][some[:, 0]], -1, 0)
    assert ((x2 - x1) == (y2 - y1))[(x1 > 0) & (y1 > 0)].all()
    share = (x2 - x1) * (y2 - y1) / (100 * 70)
    assert 0.06 < share.min() < share.max() < 0.34
    middle_x, middle_y = (x1 + x2) / 2, (y1 + y2) / 2
    inside = (x1 > 0) & (y1 > 0)
    assert ((middle_x >= 10) & (middle_x <= 111) & (middle_y >= 20) & (middle_y <= 91))[inside].all()
    assert drawn.min() >= 0
    assert drawn.max() <= 224


def test_socos_draws_without_the_variant_are_what_they_were():
    """The variant draws after everything else, and a plan without it draws nothing more."""
    views_of = ViewConfig(third_size=T, scene_size=S, box_jitter=0.1)
    look = Look(sample=0, boxes=np.array([[5, 5, 90, 90]], np.int32), width=200, height=150)
    plain, variant = (
        SoCoPlan(SoCoConfig(name="soco", cutout_p=chance), views_of, AugmentConfig()).draw(look, np.random.default_rng(3))
        for chance in (0.0, 1.0)
    )
    assert "cutouts" not in plain.facts
    assert (plain.windows["scenes"] == variant.windows["scenes"]).all()
    assert (plain.draws["scenes"] == variant.draws["scenes"]).all()
    assert (plain.facts["boxes"][:2] == variant.facts["boxes"][:2]).all()
    two = SoCoPlan(SoCoConfig(name="soco"), ViewConfig(scene_size=S), AugmentConfig()).draw(look, np.random.default_rng(3))
    assert "third" not in two.windows
    assert two.facts["boxes"].shape == (2, 4, 4)


@pytest.mark.slow
def test_soco_is_its_equation():
    method, twin = built("soco")
    scenes, third, boxes = views()
    result = method({"scenes": scenes, "boxes": boxes.transpose(0, 1), "third": third[None]})
    with torch.no_grad():
        q, t = [], []
        for view, image in enumerate((*scenes, third)):
            features = []
            for net in (twin.online, twin.target):
                size = 7 if view == 2 else 14
                pooled = roi_align(early_map(net.backbone, image), list(boxes[view]), size, 1 / 16, aligned=True)
                features.append(net.projector(last_stage(net.backbone, pooled).mean((2, 3))))
            q.append(twin.predictor(features[0]))
            t.append(features[1])
    assert result["loss_places"].item() == pytest.approx(both_ways(q[0], q[1], t[0], t[1]), abs=1e-9)
    assert result["loss_sizes"].item() == pytest.approx(both_ways(q[0], q[2], t[0], t[2]), abs=1e-9)
    assert result["loss"].item() == pytest.approx((result["loss_places"] + result["loss_sizes"]).item(), abs=1e-12)


def test_soco_asks_for_a_resnet():
    with pytest.raises(UsageError, match="soco needs a ResNet"):
        build_method(METHODS["soco"].Settings(name="soco", backbone="convnext_atto", hidden=8, width=4), PLAN)
