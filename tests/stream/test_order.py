import tracemalloc

import numpy as np
import pytest

from univip_stream.stream.order import Order, generator, view_generator

COUNTS = [5, 7, 3, 9, 6, 8, 2, 4, 10, 6]
SHARDS = np.repeat(np.arange(10, dtype=np.int32), COUNTS)


@pytest.mark.parametrize("window", [1, 3, 100])
def test_every_sample_comes_exactly_once_an_epoch(window):
    order = Order(COUNTS, seed=3, window=window)
    for epoch in range(4):
        assert sorted(order.epoch(epoch)) == list(range(len(SHARDS)))


def test_epochs_and_seeds_differ_and_the_same_ones_do_not():
    order = Order(COUNTS, seed=3, window=4)
    assert (order.epoch(1) == Order(COUNTS, seed=3, window=4).epoch(1)).all()
    assert (order.epoch(1) != order.epoch(2)).any()
    assert (order.epoch(1) != Order(COUNTS, seed=4, window=4).epoch(1)).any()


def test_the_sequence_runs_over_the_seams_of_epochs():
    order = Order(COUNTS, seed=0, window=2)
    N = len(SHARDS)
    straight = np.concatenate([order.epoch(epoch) for epoch in range(3)])
    for first, count in ((0, 1), (N - 3, 7), (2 * N - 1, N), (5, 2 * N)):
        assert order.samples(first, count).tolist() == straight[first : first + count].tolist()


def test_a_window_bounds_how_many_shards_are_open_at_once():
    order = Order(COUNTS, seed=1, window=2)
    shards = SHARDS[order.epoch(0)]
    last = {shard: np.flatnonzero(shards == shard).max() for shard in range(10)}
    first = {shard: np.flatnonzero(shards == shard).min() for shard in range(10)}
    open_at = [sum(first[s] <= at <= last[s] for s in range(10)) for at in range(len(shards))]
    assert max(open_at) <= 2


def test_the_shuffle_is_as_good_as_its_module_says():
    """Neighbours of one shard end up (V + 1) / 3 apart; one neighbour in k is of the same shard; windows are drawn anew."""
    per_shard, shards, k = 50, 96, 16
    V = per_shard * k
    shard = np.repeat(np.arange(shards, dtype=np.int32), per_shard)
    order = Order([per_shard] * shards, seed=0, window=k)
    place = np.argsort(order.epoch(0))
    distance = np.abs(np.diff(place))[shard[1:] == shard[:-1]]
    assert distance.max() <= V - 1
    assert distance.mean() == pytest.approx((V + 1) / 3, rel=0.03)  # its standard error is 0.01
    following = shard[order.epoch(0)]
    assert (following[1:] == following[:-1]).mean() == pytest.approx(1 / k, rel=0.2)
    together = [
        {frozenset(order.near(at + epoch * order.count)[0].tolist()) for at in range(0, order.count, V)} for epoch in (0, 1)
    ]
    assert not together[0] & together[1]


def test_the_shards_near_a_position_are_those_read_there_and_next():
    order = Order(COUNTS, seed=2, window=3)
    for position in range(2 * len(SHARDS) + 5):
        present, coming = order.near(position)
        assert SHARDS[order.samples(position, 1)[0]] in present
        ahead = SHARDS[order.samples(position, len(SHARDS))]
        entered = int(np.flatnonzero(~np.isin(ahead, present))[0]) if not np.isin(ahead, present).all() else 0
        assert ahead[entered] in coming or entered == 0


def test_one_permutation_is_pinned():
    """A change here changes the data order of every run there is: it needs a reason and a line in the changelog."""
    order = Order([3] * 4, seed=42, window=2)
    assert order.epoch(0).tolist() == PINNED


PINNED = [2, 9, 1, 11, 10, 0, 8, 3, 6, 5, 4, 7]


def drawn_at_once(counts, seed, window, epoch):
    """An epoch as releases drew it that held an array of all samples: all its windows one after the other."""
    counts = np.asarray(counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    rng = generator(seed, 0, epoch)
    there = np.flatnonzero(counts)
    shards = there[rng.permutation(len(there))]
    runs = [np.arange(starts[shard], starts[shard + 1]) for shard in shards]
    return np.concatenate([rng.permutation(np.concatenate(runs[at : at + window])) for at in range(0, len(runs), window)])


def test_the_order_is_that_of_the_releases_before_wherever_one_begins(rng):
    """No array of all samples is drawn any more, and no run may see other batches for it."""
    for _ in range(40):
        counts = rng.integers(0, 30, rng.integers(1, 40))
        counts[0] += 1
        seed, window, N = int(rng.integers(1000)), int(rng.integers(1, 20)), int(counts.sum())
        straight = np.concatenate([drawn_at_once(counts, seed, window, epoch) for epoch in range(4)])
        order = Order(counts, seed, window)
        for first in rng.integers(0, 3 * N, 10).tolist():
            count = int(rng.integers(1, N + 1))
            assert order.samples(first, count).tolist() == straight[first : first + count].tolist()
            assert order.sample(first) == straight[first]


def test_of_a_large_set_each_window_is_drawn_on_its_own(monkeypatch):
    before = Order(COUNTS, seed=3, window=4).epoch(1)
    monkeypatch.setattr("univip_stream.stream.order.MOST_IN_A_ROW", 10)
    order = Order(COUNTS, seed=3, window=4)
    assert (Order([1] * 10, 0, 1).version, order.version) == (1, 2)
    straight = np.concatenate([order.epoch(epoch) for epoch in range(3)])
    assert sorted(order.epoch(1)) == list(range(len(SHARDS)))
    assert (straight[: len(SHARDS)] != straight[len(SHARDS) : 2 * len(SHARDS)]).any()
    assert (before != order.epoch(1)).any()
    for first in (100, 3, 150, 61, 0):
        assert Order(COUNTS, 3, 4).samples(first, 20).tolist() == straight[first : first + 20].tolist()


def test_a_place_in_a_billion_samples_takes_no_array_of_them():
    order = Order(np.full(100_000, 10_000), seed=0, window=16)
    tracemalloc.start()
    for position in (0, 10**9 - 5, 1_370_000_000):
        assert len(set(order.samples(position, 256).tolist())) == 256
        order.near(position)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_places_do_not_share_numbers():
    a, b, c = generator(1, 0, 5).random(1000), generator(1, 0, 6).random(1000), view_generator(1, 5).random(1000)
    assert len(np.unique(np.concatenate([a, b, c]))) == 3000
