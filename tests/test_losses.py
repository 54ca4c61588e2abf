"""The losses against the paper's equations, transcribed in plain loops and float64."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from univip_stream.losses import (
    demand,
    instance_cosines,
    instance_loss,
    scene_instance_loss,
    scene_loss,
    supply,
    transport_cost,
)
from univip_stream.transport import sinkhorn

Vector = Sequence[float]


def dot(x: Vector, y: Vector) -> float:
    return sum(float(p) * float(q) for p, q in zip(x, y, strict=True))


def cosine(x: Vector, y: Vector) -> float:
    return dot(x, y) / (math.sqrt(dot(x, x)) * math.sqrt(dot(y, y)))


def paper_scene(f1: np.ndarray, f2: np.ndarray, g1: np.ndarray, g2: np.ndarray) -> float:
    """Eq. 2 and 3."""
    total = 0.0
    for i in range(len(f1)):
        total += -cosine(f1[i], g2[i]) - cosine(f2[i], g1[i])
    return total / len(f1)


def paper_scene_instance(aggregate: np.ndarray, g1: np.ndarray, g2: np.ndarray) -> float:
    """Eq. 5 and 6."""
    total = 0.0
    for i in range(len(aggregate)):
        total += -cosine(g1[i], aggregate[i]) - cosine(g2[i], aggregate[i])
    return total / len(aggregate)


def paper_weights(instances: np.ndarray, scene_1: np.ndarray, scene_2: np.ndarray) -> list[float]:
    """Eq. 9 and 10."""
    mean = [(p + q) / 2 for p, q in zip(scene_1, scene_2, strict=True)]
    return [max(dot(instance, mean), 0.0) for instance in instances]


def paper_plan(cost: list[list[float]], b: list[float], a: list[float], epsilon: float, iterations: int) -> list[list[float]]:
    """Sinkhorn-Knopp as in the textbook, in the plain domain: scale rows, scale columns, again."""
    K = len(b)
    b = [x / sum(b) for x in b] if sum(b) else [1 / K] * K
    a = [x / sum(a) for x in a] if sum(a) else [1 / K] * K
    kernel = [[math.exp(-c / epsilon) for c in row] for row in cost]
    u, v = [1.0] * K, [1.0] * K
    for _ in range(iterations):
        u = [b[m] / sum(kernel[m][n] * v[n] for n in range(K)) for m in range(K)]
        v = [a[n] / sum(kernel[m][n] * u[m] for m in range(K)) for n in range(K)]
    return [[u[m] * kernel[m][n] * v[n] for n in range(K)] for m in range(K)]


def paper_instance(
    o: np.ndarray,
    t: np.ndarray,
    scenes: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    epsilon: float,
    iterations: int,
    mass: float = 1.0,
) -> float:
    """Eq. 8 to 11, image by image."""
    fo1, fo2, ft1, ft2 = scenes
    total = 0.0
    B, K, _ = o.shape
    for i in range(B):
        cost = [[1 - cosine(o[i, m], t[i, n]) for n in range(K)] for m in range(K)]
        b = paper_weights(o[i], ft1[i], ft2[i])
        a = paper_weights(t[i], fo1[i], fo2[i])
        plan = paper_plan(cost, b, a, epsilon, iterations)
        for m in range(K):
            for n in range(K):
                total -= cosine(o[i, m], t[i, n]) * plan[m][n] * mass
    return total / B


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scenes(B: int, D: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """f_o1, f_o2, f_t1, f_t2."""
    return tuple(drawn(B, D, seed=seed, dtype=dtype) for seed in (10, 11, 12, 13))


def arrays(tensors: Sequence[torch.Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(x.double().numpy() for x in tensors)


@pytest.mark.parametrize(("B", "D"), [(5, 16), (1, 3)])
def test_scene_loss_is_equation_3(B: int, D: int):
    inputs = scenes(B, D)
    assert scene_loss(*inputs).item() == pytest.approx(paper_scene(*arrays(inputs)), abs=1e-6)


def test_scene_loss_crosses_the_views():
    x, y = torch.eye(2)[:1], torch.eye(2)[1:]
    assert scene_loss(x, y, y, x).item() == -2
    assert scene_loss(x, y, x, y).item() == 0


def test_scene_instance_loss_is_equation_6():
    aggregate, _, g1, g2 = scenes(5, 16)
    assert scene_instance_loss(aggregate, g1, g2).item() == pytest.approx(
        paper_scene_instance(*arrays((aggregate, g1, g2))), abs=1e-6
    )


def test_cost_supply_and_demand_are_equations_8_to_10():
    o, t = drawn(3, 4, 8, seed=1), drawn(3, 4, 8, seed=2)
    fo1, fo2, ft1, ft2 = scenes(3, 8)
    cost = transport_cost(instance_cosines(o, t))
    b, a = supply(o, ft1, ft2), demand(t, fo1, fo2)
    for i in range(3):
        for m in range(4):
            for n in range(4):
                assert cost[i, m, n].item() == pytest.approx(1 - cosine(o[i, m], t[i, n]), abs=1e-6)
        np.testing.assert_allclose(b[i], paper_weights(o[i].numpy(), ft1[i].numpy(), ft2[i].numpy()), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(a[i], paper_weights(t[i].numpy(), fo1[i].numpy(), fo2[i].numpy()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("K", [1, 2, 4, 7])
@pytest.mark.parametrize(("epsilon", "iterations", "mass"), [(0.1, 50, 1.0), (0.5, 3, 4.0)])
def test_instance_loss_is_equation_11(K: int, epsilon: float, iterations: int, mass: float):
    o, t, views = drawn(6, K, 16, seed=1), drawn(6, K, 16, seed=2), scenes(6, 16)
    ours = instance_loss(o, t, *views, epsilon=epsilon, iterations=iterations, mass=mass)
    expected = paper_instance(*arrays((o, t)), arrays(views), epsilon, iterations, mass)
    assert ours.item() == pytest.approx(expected, abs=1e-5 * mass)


def test_instance_loss_with_no_relevant_instance_weighs_them_alike():
    o, t = drawn(2, 3, 8, seed=1).abs(), drawn(2, 3, 8, seed=2).abs()
    views = tuple(-x.abs() for x in scenes(2, 8))
    assert supply(o, views[2], views[3]).sum() == 0
    expected = paper_instance(*arrays((o, t)), arrays(views), 0.1, 50)
    assert instance_loss(o, t, *views).item() == pytest.approx(expected, abs=1e-5)


def test_one_instance_gives_its_own_negative_cosine():
    o, t = drawn(4, 1, 8, seed=1), drawn(4, 1, 8, seed=2)
    expected = -sum(cosine(o[i, 0], t[i, 0]) for i in range(4)) / 4
    assert instance_loss(o, t, *scenes(4, 8)).item() == pytest.approx(expected, abs=1e-6)


def test_identical_instances_give_the_least_loss():
    same = drawn(3, 1, 8).expand(3, 4, 8)
    assert instance_loss(same, 2 * same, *scenes(3, 8)).item() == pytest.approx(-1, abs=1e-5)


def test_scale_of_the_features_moves_only_the_marginals():
    o, t, views = drawn(4, 4, 8, seed=1), drawn(4, 4, 8, seed=2), scenes(4, 8)
    # Every weight grows by the same factor, so the shares stay.
    assert instance_loss(3 * o, 5 * t, *views).item() == pytest.approx(instance_loss(o, t, *views).item(), abs=1e-6)
    # One instance alone grows: its share does, and so the loss moves.
    louder = o * torch.tensor([5.0, 1, 1, 1])[:, None]
    assert abs(instance_loss(louder, t, *views) - instance_loss(o, t, *views)) > 1e-3


def test_gradient_reaches_the_predictions_and_no_target():
    o, t, aggregate = drawn(3, 4, 8, seed=1), drawn(3, 4, 8, seed=2), drawn(3, 8, seed=3)
    fo1, fo2, ft1, ft2 = scenes(3, 8)
    everything = [o, t, aggregate, fo1, fo2, ft1, ft2]
    for x in everything:
        x.requires_grad_()
    loss = scene_loss(fo1, fo2, ft1, ft2) + scene_instance_loss(aggregate, ft1, ft2) + instance_loss(o, t, fo1, fo2, ft1, ft2)
    loss.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (o, aggregate, fo1, fo2))
    assert all(x.grad is None for x in (t, ft1, ft2))


def test_gradient_does_not_pass_the_plan():
    o, t, views = drawn(3, 4, 8, seed=1), drawn(3, 4, 8, seed=2), scenes(3, 8)
    fo1 = views[0].requires_grad_()
    o.requires_grad_()
    instance_loss(o, t, *views).backward()
    # The online scenes enter Eq. 11 through the demand of the plan alone.
    assert fo1.grad is None
    cosines = instance_cosines(o, t)
    plan = sinkhorn(transport_cost(cosines), supply(o, *views[2:]), demand(t, *views[:2]))
    (expected,) = torch.autograd.grad(-(plan * cosines).sum() / 3, o)
    torch.testing.assert_close(o.grad, expected)


def test_ten_thousand_draws_have_finite_loss_and_gradient():
    o, t = drawn(10_000, 4, 8, seed=1) * 10, drawn(10_000, 4, 8, seed=2) * 0.01
    o[:100] = 0
    o[100:200, 0] = 0
    t[150:300] = 0
    views = scenes(10_000, 8)
    views[0][250:400] = 0
    views[1][250:400] = 0
    o.requires_grad_()
    views[0].requires_grad_()
    loss = instance_loss(o, t, *views) + scene_loss(*views)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(o.grad).all()
    assert torch.isfinite(views[0].grad).all()


def test_bf16_inputs_under_autocast_are_computed_in_float32():
    o, t, views = drawn(8, 4, 32, seed=1), drawn(8, 4, 32, seed=2), scenes(8, 32)
    o, t, views = o.bfloat16(), t.bfloat16(), tuple(x.bfloat16() for x in views)
    with torch.autocast("cpu", torch.bfloat16):
        losses = [scene_loss(*views), scene_instance_loss(views[0], *views[2:]), instance_loss(o, t, *views)]
    assert all(loss.dtype == torch.float32 for loss in losses)
    exact = [
        paper_scene(*arrays(views)),
        paper_scene_instance(*arrays((views[0], *views[2:]))),
        paper_instance(*arrays((o, t)), arrays(views), 0.1, 50),
    ]
    np.testing.assert_allclose([loss.item() for loss in losses], exact, atol=1e-5)


@pytest.mark.slow
def test_through_the_plan_the_gradient_is_that_of_finite_differences_and_reaches_no_target():
    generator = torch.Generator().manual_seed(6)
    o, t = (torch.randn(2, 3, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    scenes = [torch.randn(2, 8, dtype=torch.float64, generator=generator) for _ in range(4)]
    o.requires_grad_()
    for scene in scenes[:2]:
        scene.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda o, s1, s2: instance_loss(o, t, s1, s2, *scenes[2:], mass=3.0, through_plan=True), (o, *scenes[:2])
    )
    targets = [tensor.clone().requires_grad_() for tensor in (t, *scenes[2:])]
    loss = instance_loss(o, targets[0], *scenes[:2], *targets[1:], through_plan=True)
    assert all(gradient is None for gradient in torch.autograd.grad(loss, targets, allow_unused=True))
    constant = instance_loss(o, t, *scenes, mass=3.0)
    assert torch.equal(constant, instance_loss(o, t, *scenes, mass=3.0, through_plan=True))
    [kept] = torch.autograd.grad(constant, o)
    [passed] = torch.autograd.grad(instance_loss(o, t, *scenes, mass=3.0, through_plan=True), o)
    assert not torch.allclose(kept, passed)
