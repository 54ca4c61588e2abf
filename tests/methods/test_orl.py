"""orl: its three losses against plain loops, and the second view of a region."""

import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.boxes import iou, nearby_box, validate_boxes
from univip_stream.methods import MethodConfig, ScenePlan, build_method
from univip_stream.views import ViewConfig

B = 3


def byol(q: Tensor, z: Tensor) -> float:
    """BYOL's Eq. 2, mean over the images."""
    total = 0.0
    for a, b in zip(q.tolist(), z.tolist(), strict=True):
        total += sum((x / math.hypot(*a) - y / math.hypot(*b)) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(q)


@pytest.mark.slow
@pytest.mark.parametrize("joint_views", [False, True])
def test_orl_is_byol_of_three_pairs_with_a_predictor_each(joint_views):
    config = MethodConfig(name="orl", backbone="resnet18", hidden=12, width=6, joint_views=joint_views)
    torch.manual_seed(0)
    method, twin = (build_method(config, ScenePlan(ViewConfig(), AugmentConfig())).double() for _ in range(2))
    rng = torch.Generator().manual_seed(5)
    for parameter in method.target.parameters():  # so that target and online differ
        parameter.data.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    twin.load_state_dict(method.state_dict())
    scenes = torch.randn(2, B, 3, 64, 64, generator=rng, dtype=torch.float64)
    patches = torch.randn(4, B, 3, 32, 32, generator=rng, dtype=torch.float64)

    result = method({"scenes": scenes, "patches": patches})
    expected = {}
    with torch.no_grad():
        for name, predictor, (one, two) in (
            ("loss_global", twin.predictor, scenes),
            ("loss_intra", twin.intra_predictor, patches[:2]),
            ("loss_inter", twin.inter_predictor, patches[2:]),
        ):
            q1, q2 = predictor(twin.online(one)), predictor(twin.online(two))
            z1, z2 = twin.target(one), twin.target(two)
            expected[name] = byol(q1, z2) + byol(q2, z1)
    for name, value in expected.items():
        assert result[name].item() == pytest.approx(value, abs=1e-9), name
    assert result["loss"].item() == pytest.approx(sum(expected.values()), abs=1e-9)
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.online_parameters())
    assert all(parameter.grad is None for parameter in method.target.parameters())


def plain_nearby(x: int, y: int, w: int, h: int, width: int, height: int, rng: random.Random) -> list[int]:
    """The loop of ORL's `aug_bbox`, one try after the other."""
    for _ in range(200):
        area, aspect = rng.uniform(0.5, 2) * w * h, math.exp(rng.uniform(math.log(0.5), math.log(2)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        centre_x, centre_y = x + w / 2 + rng.uniform(-0.5, 0.5) * w, y + h / 2 + rng.uniform(-0.5, 0.5) * h
        left, top = round(centre_x - wide / 2), round(centre_y - high / 2)
        if left < 0 or top < 0 or left + wide > width or top + high > height:
            continue
        across = max(0, min(left + wide, x + w) - max(left, x))
        down = max(0, min(top + high, y + h) - max(top, y))
        if across * down / (w * h + wide * high - across * down) > 0.5:
            return [left, top, wide, high]
    return [x, y, w, h]


@pytest.mark.parametrize("box", [(200, 100, 120, 90), (0, 30, 200, 64)])
@pytest.mark.slow
def test_nearby_boxes_are_distributed_as_those_of_orls_loop(box, rng):
    plain_rng = random.Random(1)
    plain = np.array([plain_nearby(*box, 320, 240, plain_rng) for _ in range(3000)])
    ours = np.stack([nearby_box(np.array(box, np.int32), 320, 240, rng) for _ in range(3000)])
    validate_boxes(ours, 320, 240)
    assert (iou(ours, [box]) > 0.5).all()
    for column in range(4):
        assert ks_2samp(plain[:, column], ours[:, column]).pvalue > 0.001


def test_a_region_without_room_is_its_own_nearby_box(rng):
    assert nearby_box(np.array([0, 0, 1, 1], np.int32), 1, 1, rng).tolist() == [0, 0, 1, 1]
