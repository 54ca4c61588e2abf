"""scrl and soco: RoIAlign and both losses against plain loops in float64."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import MethodConfig, ScenePlan, build_method
from univip_stream.methods.maps import early_map, last_map, last_stage, pool_boxes
from univip_stream.methods.regression import regression_loss
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


def built(name: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two equal methods in float64 whose targets differ from their online networks."""
    torch.manual_seed(0)
    pair = []
    for _ in range(2):
        method = build_method(MethodConfig(name=name, backbone="resnet18", hidden=12, width=6), PLAN).double()
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
        build_method(MethodConfig(name="soco", backbone="convnext_atto", hidden=8, width=4), PLAN)
