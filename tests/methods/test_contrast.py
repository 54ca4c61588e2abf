"""The contrastive losses against plain loops in float64, and the queue against a list."""

import math

import pytest
import torch

from univip_stream.methods.contrast import Queue, info_nce, nt_xent


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def test_nt_xent_is_equation_1_of_simclr():
    first, second, t = draw(5, 3, seed=1), draw(5, 3, seed=2), 0.3
    # The paper's order: views 2k - 1 and 2k of image k lie beside each other.
    z = [vector for pair in zip(first.tolist(), second.tolist(), strict=True) for vector in pair]

    def l(i: int, j: int) -> float:  # noqa: E743 - the paper's letter
        others = sum(math.exp(cosine(z[i], z[k]) / t) for k in range(len(z)) if k != i)
        return -math.log(math.exp(cosine(z[i], z[j]) / t) / others)

    expected = sum(l(2 * k, 2 * k + 1) + l(2 * k + 1, 2 * k) for k in range(5)) / 10
    assert nt_xent(first, second, t).item() == pytest.approx(expected, abs=1e-12)


def test_info_nce_is_equation_1_of_moco():
    q, k, t = draw(4, 3, seed=1), draw(4, 3, seed=2), 0.2
    queue = torch.nn.functional.normalize(draw(6, 3, seed=3), dim=1)
    expected = 0.0
    for query, key in zip(q.tolist(), k.tolist(), strict=True):
        own = math.exp(cosine(query, key) / t)
        expected -= math.log(own / (own + sum(math.exp(cosine(query, other) / t) for other in queue.tolist()))) / 4
    assert info_nce(q, k, queue, t).item() == pytest.approx(expected, abs=1e-12)


def test_only_queries_get_a_gradient():
    q, k, queue = (draw(4, 3, seed=seed).requires_grad_() for seed in range(3))
    info_nce(q, k, queue, 0.2).backward()
    assert q.grad is not None
    assert k.grad is None
    assert queue.grad is None


def test_losses_stay_float32_under_autocast():
    a, b, c = (draw(8, 16, seed=seed).float() for seed in range(3))
    exact = nt_xent(a, b, 0.1), info_nce(a, b, c, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(a, b, 0.1), exact[0])
        assert torch.equal(info_nce(a, b, c, 0.1), exact[1])


def test_the_queue_holds_the_last_keys_the_oldest_overwritten_first():
    queue = Queue(7, 3).double()
    expected = queue.now().tolist()
    place = 0
    for step in range(5):
        new = torch.nn.functional.normalize(draw(3, 3, seed=step), dim=1)
        queue.push(3 * new)
        for key in new.tolist():
            expected[place % 7] = key
            place += 1
    torch.testing.assert_close(queue.now(), torch.tensor(expected, dtype=torch.float64))
    assert queue.place.item() == place % 7
    queue.push(draw(20, 3))  # more than it holds: the last stay
    last = torch.nn.functional.normalize(draw(20, 3)[-7:], dim=1)
    torch.testing.assert_close(queue.now(), last.roll(place % 7, 0))
