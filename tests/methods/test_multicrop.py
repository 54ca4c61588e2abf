"""Multi-crop BYOL: its loss in plain loops, its crops where its settings say, in training as in the equation."""

import math

import numpy as np
import pytest
import torch

from univip_stream.augment import AugmentConfig
from univip_stream.methods import build_method, build_plan
from univip_stream.methods.multicrop import MultiCropConfig
from univip_stream.plan import Look
from univip_stream.views import ViewConfig

B, N = 4, 3


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.slow
@pytest.mark.parametrize("small_views", [0, N])
def test_the_loss_is_its_equation(small_views):
    config = MultiCropConfig(
        name="multicrop", backbone="resnet18", hidden=12, width=6, small_views=small_views, small_size=32
    )
    plan = build_plan(config, ViewConfig(scene_size=64), AugmentConfig())
    torch.manual_seed(0)
    method, twin = (build_method(config, plan).double() for _ in range(2))
    rng = torch.Generator().manual_seed(5)
    for parameter in method.target.parameters():  # so that target and online differ
        parameter.data.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    twin.load_state_dict(method.state_dict())
    batch = {
        name: torch.randn(cut.count, B, 3, cut.size, cut.size, generator=rng, dtype=torch.float64)
        for name, cut in plan.cuts.items()
    }
    result = method(batch)
    views = [view for pictures in batch.values() for view in pictures]
    with torch.no_grad():
        q = [twin.predictor(twin.online(view)).tolist() for view in views]
        t = [twin.target(view).tolist() for view in batch["large"]]
    pairs = [(v, large) for large in range(2) for v in range(len(views)) if v != large]
    assert len(pairs) == 2 * (1 + small_views)
    total = {(v, large): -sum(cosine(a, b) for a, b in zip(q[v], t[large], strict=True)) / B for v, large in pairs}
    assert result["loss"].item() == pytest.approx(sum(total.values()) / len(pairs), abs=1e-6)
    of_small = sum(value for (v, _), value in total.items() if v > 1) / len(pairs)
    assert result["loss_small"].item() == pytest.approx(of_small, abs=1e-6)
    assert result["loss_large"].item() == pytest.approx((result["loss"] - result["loss_small"]).item(), abs=1e-6)
    result["loss"].backward()
    assert all(parameter.grad is not None for parameter in method.online_parameters())
    assert all(parameter.grad is None for parameter in method.target.parameters())


def test_crops_have_the_areas_that_are_set():
    config = MultiCropConfig(name="multicrop")
    plan = build_plan(config, ViewConfig(crop_scale=(0.14, 1.0)), AugmentConfig())
    look = Look(sample=0, boxes=np.zeros((0, 4), np.int32), width=640, height=480)
    rng = np.random.default_rng(0)
    found = [plan.draw(look, rng).windows for _ in range(200)]
    for name, (low, high) in (("large", (0.14, 1.0)), ("small", (0.05, 0.14))):
        windows = np.concatenate([drawn[name] for drawn in found])
        share = windows[:, 2] * windows[:, 3] / (640 * 480)
        assert (share.min(), share.max()) == (pytest.approx(low, rel=0.1), pytest.approx(high, rel=0.1))
        if name == "small":  # uniform; of large ones many shapes do not fit
            assert 0.45 < ((share - low) / (high - low)).mean() < 0.55
