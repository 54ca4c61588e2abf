"""The schedules against their formulas and at their ends."""

import math

import pytest

from univip_stream.schedules import cosine_lr, ema_momentum


def test_warm_up_rises_in_equal_steps_to_the_base():
    rates = [cosine_lr(step, 100, 0.4, warmup_steps=4) for step in range(5)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_cosine_falls_from_base_to_final():
    rates = [cosine_lr(step, 100, 0.4, warmup_steps=10, final=0.1) for step in range(10, 101)]
    assert rates[0] == pytest.approx(0.4)
    assert rates[45] == pytest.approx(0.25)
    assert rates[-1] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_rate_after_the_end_stays_final():
    assert cosine_lr(130, 100, 0.4) == pytest.approx(0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (4, 4), (4, 9), (0, 0)])
def test_short_runs_divide_by_nothing(steps: int, warmup: int):
    assert all(0 <= cosine_lr(step, steps, 1.0, warmup_steps=warmup) <= 1 for step in range(steps + 1))
    assert all(0.9 <= ema_momentum(step, steps, 0.9) <= 1 for step in range(steps + 1))


def test_momentum_is_byols_cosine_from_base_to_one():
    for step in (0, 1, 33, 50, 99, 100):
        expected = 1 - (1 - 0.99) * (math.cos(math.pi * step / 100) + 1) / 2
        assert ema_momentum(step, 100, 0.99) == pytest.approx(expected, abs=1e-12)
    assert ema_momentum(0, 100, 0.99) == pytest.approx(0.99)
    assert ema_momentum(100, 100, 0.99) == 1
