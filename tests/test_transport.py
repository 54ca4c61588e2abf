"""Sinkhorn against POT, against its marginals, and at the edges where a plain version gives NaN."""

import numpy as np
import ot
import pytest
import torch

from univip_stream.transport import _sinkhorn, _sinkhorn_by_plans, sinkhorn


def problems(
    count: int, m: int, n: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs as cosine distances give them (0 to 2) and positive weights."""
    generator = torch.Generator().manual_seed(0)
    return (
        2 * torch.rand(count, m, n, generator=generator, dtype=dtype),
        torch.rand(count, m, generator=generator, dtype=dtype) + 0.05,
        torch.rand(count, n, generator=generator, dtype=dtype) + 0.05,
    )


@pytest.mark.parametrize(("m", "n"), [(4, 4), (3, 7), (1, 5), (6, 1)])
@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
def test_plan_agrees_with_pot(m: int, n: int, epsilon: float):
    cost, rows, columns = problems(6, m, n, torch.float64)
    plan = sinkhorn(cost, rows, columns, epsilon, iterations=3000)
    for c, b, a, y in zip(cost.numpy(), rows.numpy(), columns.numpy(), plan.numpy(), strict=True):
        expected = ot.sinkhorn(b / b.sum(), a / a.sum(), c, epsilon, method="sinkhorn_log", numItermax=20_000, stopThr=1e-13)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-9)


def test_small_epsilon_costs_what_the_exact_plan_costs():
    cost, rows, columns = problems(10, 4, 4, torch.float64)
    plan = sinkhorn(cost, rows, columns, epsilon=0.01, iterations=5000)
    for c, b, a, y in zip(cost.numpy(), rows.numpy(), columns.numpy(), plan.numpy(), strict=True):
        exact = ot.emd2(b / b.sum(), a / a.sum(), c)
        # The entropy of a plan of 4 x 4 is at most log 16; below the exact cost only because the rows are nearly met.
        assert abs((c * y).sum() - exact) <= 0.01 * np.log(16)


@pytest.mark.parametrize("mass", [1.0, 4.0])
def test_plan_ships_all_supply_and_meets_all_demand(mass: float):
    cost, rows, columns = problems(500, 4, 4)
    plan = sinkhorn(cost, rows, columns, iterations=1000, mass=mass)
    torch.testing.assert_close(plan.sum(-1), mass * rows / rows.sum(-1, keepdim=True), atol=1e-4, rtol=0)
    torch.testing.assert_close(plan.sum(-2), mass * columns / columns.sum(-1, keepdim=True), atol=1e-4, rtol=0)
    assert (plan >= 0).all()


def test_columns_are_met_after_a_single_iteration():
    cost, rows, columns = problems(50, 4, 4)
    plan = sinkhorn(cost, rows, columns, iterations=1)
    torch.testing.assert_close(plan.sum(-2), columns / columns.sum(-1, keepdim=True), atol=1e-6, rtol=0)


def test_marginals_of_zero_alone_become_uniform():
    cost, rows, columns = problems(5, 4, 3)
    silent = sinkhorn(cost, torch.zeros_like(rows), torch.zeros_like(columns))
    assert torch.equal(silent, sinkhorn(cost, torch.ones_like(rows), torch.ones_like(columns)))


def test_a_zero_weight_ships_nothing_and_makes_no_nan():
    cost, rows, columns = problems(5, 4, 4)
    rows[:, 2] = 0
    columns[:, 0] = 0
    plan = sinkhorn(cost, rows, columns)
    assert torch.equal(plan[:, 2], torch.zeros(5, 4))
    assert torch.equal(plan[:, :, 0], torch.zeros(5, 4))
    assert torch.isfinite(plan).all()
    kept = [0, 1, 3]
    smaller = sinkhorn(cost[:, kept][:, :, 1:], rows[:, kept], columns[:, 1:])
    torch.testing.assert_close(plan[:, kept][:, :, 1:], smaller)


def test_ten_thousand_relud_marginals_of_any_scale_give_finite_plans():
    generator = torch.Generator().manual_seed(1)
    cost = 2 * torch.rand(10_000, 4, 4, generator=generator)
    scale = 10 ** torch.empty(10_000, 1).uniform_(-30, 37, generator=generator)
    rows = (torch.randn(10_000, 4, generator=generator).relu() * scale).contiguous()
    columns = torch.randn(10_000, 4, generator=generator).relu()
    assert (rows.amax(-1) == 0).any()
    assert ((rows > 0).sum(-1) == 1).any()
    plan = sinkhorn(cost, rows, columns)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum((-2, -1)), torch.ones(10_000), atol=1e-4, rtol=0)


def test_weights_whose_sum_overflows_are_still_shares():
    cost, rows, columns = problems(3, 4, 4)
    torch.testing.assert_close(sinkhorn(cost, rows * 3e38, columns), sinkhorn(cost, rows, columns))


def test_broken_weights_are_seen_not_hidden():
    cost, rows, columns = problems(2, 4, 4)
    rows[0, 1] = torch.nan
    plan = sinkhorn(cost, rows, columns)
    assert torch.isnan(plan[0]).any()
    assert torch.isfinite(plan[1]).all()


def test_bf16_inputs_are_computed_in_float32_under_autocast_too():
    cost, rows, columns = (x.bfloat16() for x in problems(20, 4, 4))
    expected = sinkhorn(cost.float(), rows.float(), columns.float())
    with torch.autocast("cpu", torch.bfloat16):
        plan = sinkhorn(cost, rows, columns)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, expected)


def test_plan_carries_no_gradient():
    cost, rows, columns = problems(2, 4, 4)
    assert not sinkhorn(cost.requires_grad_(), rows.requires_grad_(), columns.requires_grad_()).requires_grad


def test_a_differentiable_plan_is_the_same_plan_with_the_gradient_of_finite_differences():
    generator = torch.Generator().manual_seed(4)
    cost, rows, columns = (torch.rand(2, *shape, dtype=torch.float64, generator=generator) for shape in ((3, 4), (3,), (4,)))
    rows[0, 1] = 0  # what a relu leaves
    rows[1] = 0
    cost.requires_grad_()
    columns.requires_grad_()
    plan = sinkhorn(cost, rows, columns, mass=2.0, differentiable=True)
    assert torch.equal(plan.detach(), sinkhorn(cost, rows, columns, mass=2.0))
    assert torch.autograd.gradcheck(lambda c, a: sinkhorn(c, rows, a, differentiable=True), (cost, columns))
    rows.requires_grad_()
    gradients = torch.autograd.grad(plan.square().sum(), (cost, columns)) + torch.autograd.grad(
        sinkhorn(cost, rows, columns, differentiable=True).square().sum(), rows
    )
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (3, 7), (1, 5), (6, 1)])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.1, 50), (0.01, 50), (1e-4, 20), (1.0, 2)])
def test_the_form_for_gpus_is_as_near_to_float64_as_that_for_cpus(m: int, n: int, epsilon: float, iterations: int):
    cost, rows, columns = problems(300, m, n)
    rows[torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 0
    columns[torch.rand(columns.shape, generator=torch.Generator().manual_seed(2)) < 0.3] = 0
    true = _sinkhorn(cost.double(), rows.double(), columns.double(), epsilon, iterations, 2.0)
    plans = [solve(cost, rows, columns, epsilon, iterations, 2.0) for solve in (_sinkhorn, _sinkhorn_by_plans)]
    apart = [(plan - true).abs().max() for plan in plans]
    assert apart[1] <= 2 * apart[0] + 1e-6
    assert torch.equal(plans[1] == 0, plans[0] == 0)


def test_the_form_for_gpus_shows_what_is_no_number():
    cost, rows, columns = problems(3, 4, 4)
    rows[0, 1], columns[1, 2] = torch.nan, torch.inf
    plan = _sinkhorn_by_plans(cost, rows, columns, 0.1, 50, 1.0)
    assert plan.isnan().flatten(1).any(1).tolist() == [True, True, False]
