"""densecl against its equations in plain loops."""

import math

import pytest
import torch
from torch import Tensor

from univip_stream.augment import AugmentConfig
from univip_stream.errors import UsageError
from univip_stream.methods import ScenePlan, build_method
from univip_stream.methods.densecl import DenseCLConfig
from univip_stream.methods.maps import last_map
from univip_stream.networks import build_backbone
from univip_stream.views import ViewConfig

PLAN = ScenePlan(ViewConfig(), AugmentConfig())
SMALL = DenseCLConfig(name="densecl", backbone="resnet18", hidden=12, width=6, queue=9, dense_weight=0.3, temperature=0.4)


def cosine(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / math.sqrt(
        sum(x * x for x in a.tolist()) * sum(y * y for y in b.tolist())
    )


def contrast(query: Tensor, positive: Tensor, queue: Tensor, t: float) -> float:
    own = math.exp(cosine(query, positive) / t)
    return -math.log(own / (own + sum(math.exp(cosine(query, key) / t) for key in queue)))


@pytest.mark.slow
def test_densecl_is_its_equations():
    torch.manual_seed(0)
    method = build_method(SMALL, PLAN).double()
    twin = build_method(SMALL, PLAN).double()
    twin.load_state_dict(method.state_dict())
    with torch.no_grad():  # so that target and online differ
        for model in (method, twin):
            rng = torch.Generator().manual_seed(5)
            for parameter in (*model.target.parameters(), *model.dense_target.parameters()):
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    scenes = torch.randn(2, 3, 3, 64, 64, dtype=torch.float64)
    result = method({"scenes": scenes})

    f, g = last_map(twin.online.backbone, scenes[0]), last_map(twin.target.backbone, scenes[1])
    dense_f, dense_g = twin.dense(f), twin.dense_target(g)
    whole, dense, places = 0.0, 0.0, f.shape[2] * f.shape[3]
    for b in range(3):
        query = twin.online.projector(f.mean((2, 3)))[b]
        whole += contrast(query, twin.target.projector(g.mean((2, 3)))[b], twin.queue.keys, 0.4) / 3
        for i in range(places):
            at = [cosine(f[b].flatten(1)[:, i], g[b].flatten(1)[:, j]) for j in range(places)]
            match = at.index(max(at))
            key = dense_g[b].flatten(1)[:, match]
            dense += contrast(dense_f[b].flatten(1)[:, i], key, twin.dense_queue.keys, 0.4) / 3 / places
    assert places == 4
    assert result["loss_global"].item() == pytest.approx(0.7 * whole, abs=1e-7)
    assert result["loss_dense"].item() == pytest.approx(0.3 * dense, abs=1e-7)
    assert result["loss"].item() == pytest.approx(0.7 * whole + 0.3 * dense, abs=1e-7)
    pushed = torch.nn.functional.normalize(dense_g.mean((2, 3)), dim=1)
    torch.testing.assert_close(method.dense_queue.keys[:3], pushed)


@pytest.mark.parametrize("name", ["resnet18", "resnet10t", "convnext_atto"])
def test_the_last_maps_mean_is_the_feature(name):
    backbone = build_backbone(name).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        means = last_map(backbone, images).mean((2, 3))
        if name == "convnext_atto":  # it normalises after the mean
            means = backbone.trunk.head.norm(means[:, :, None, None]).flatten(1)
        torch.testing.assert_close(means, backbone(images))


def test_a_backbone_without_maps_is_refused():
    with pytest.raises(UsageError, match="densecl needs the feature maps of a convolutional backbone"):
        build_method(DenseCLConfig(name="densecl", backbone="vit_tiny_patch16_224", hidden=8, width=4, queue=4), PLAN)
