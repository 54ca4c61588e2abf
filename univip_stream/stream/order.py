"""Which image stands at which place of the endless sequence: a pure function of (seed, epoch).

Position p of the sequence lies in epoch p // N at place p % N. In an epoch the shards are permuted, cut into windows of a
few shards, and the samples of each window shuffled: every image exactly once an epoch, and a reader that goes forward
touches few shards at a time. Ranks and workers play no part, so they change nothing.

How well it shuffles, with windows of V samples in k shards: a window is uniformly shuffled, so two samples of one shard come
(V + 1) / 3 places apart on average and at most V - 1; of a sample's neighbours in the sequence, one in k is of its own shard.
Which shards share a window is drawn anew each epoch. COCO in 128 shards with the default window of 16 has V = 14,800. The
last window holds what is left over; a number of shards that the window divides has none that is smaller.

What is held is a number or two a shard and the permutations of a few windows, never one of all samples. Up to `MOST_IN_A_ROW`
samples the windows of an epoch are drawn one after the other from one generator, as they always were, so the middle of an epoch
costs drawing what comes before it: 20 ns a sample, at most half a second. Of a larger set each window has a generator of its own,
and any place costs the same.

Letters: N samples, S shards.
"""

from collections import OrderedDict

import numpy as np

_ORDER = 0
"""Which stream of random numbers a seed's order comes from; `_VIEWS` is another, so the two never meet."""
_VIEWS = 1
MOST_IN_A_ROW = 1 << 24
"""Samples up to which an epoch's windows are drawn one after the other. Changed, it changes the order of larger sets."""
_WINDOWS = 3
"""Permutations of windows that are kept: of the one that is read, of the next, and of one that a stand-in came from."""


class Order:
    """The endless sequence of samples of some shards.

    Args:
        counts_S: samples of each shard, which has them one after the other; shards without any take no part.
        seed: of the whole run.
        window: shards whose samples are shuffled together. Two images of one shard end up within a window's length of each
            other, and neighbours in a batch come from `window` different shards.

    """

    def __init__(self, counts_S: np.ndarray, seed: int, window: int):
        counts_S = np.asarray(counts_S, np.int64)
        self.shards = np.flatnonzero(counts_S)
        self.sizes = counts_S[self.shards]
        self.first = np.concatenate([[0], np.cumsum(counts_S)])[self.shards]
        """The first sample of each of `shards`."""
        self.count = int(self.sizes.sum())
        self.seed = seed
        self.window = window
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._drawn: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    @property
    def version(self) -> int:
        """How windows are drawn: 1 one after the other, 2 each on its own. A run goes on with the one it began with."""
        return order_version(self.count)

    def epoch(self, number: int) -> np.ndarray:
        """int64 N: the samples of an epoch in their order. For sets that fit into memory."""
        windows = len(self._of(number).ends)
        return np.concatenate([self._window(number, at) for at in range(windows)])

    def sample(self, position: int) -> int:
        """The sample at a position."""
        epoch, place = divmod(position, self.count)
        of = self._of(epoch)
        at = of.window_of(place)
        return int(self._window(epoch, at)[place - of.start(at)])

    def samples(self, first: int, count: int) -> np.ndarray:
        """int64 count: the samples at positions `first` and on, across the seams of epochs."""
        parts = [np.empty(0, np.int64)]
        while count > 0:
            epoch, place = divmod(first, self.count)
            of = self._of(epoch)
            at = of.window_of(place)
            found = self._window(epoch, at)[place - of.start(at) :][:count]
            parts.append(found)
            first, count = first + len(found), count - len(found)
        return np.concatenate(parts)

    def near(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards of the window that a position lies in, shards of the window after it, in their order)."""
        epoch, place = divmod(position, self.count)
        of = self._of(epoch)
        at = of.window_of(place)
        following = of.window(at + 1) if at + 1 < len(of.ends) else self._of(epoch + 1).window(0)
        return self.shards[of.window(at)], self.shards[following]

    def is_late(self, position: int) -> bool:
        """Whether a position lies in the second half of its window."""
        epoch, place = divmod(position, self.count)
        of = self._of(epoch)
        at = of.window_of(place)
        return 2 * (place - of.start(at)) >= int(of.lengths[at])

    def _of(self, number: int) -> "_Epoch":
        if number not in self._epochs:
            self._epochs[number] = _Epoch(self, number)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(number)
        return self._epochs[number]

    def _window(self, epoch: int, at: int) -> np.ndarray:
        """int64: the samples of a window in their order."""
        key = (epoch, at)
        if key not in self._drawn:
            of = self._of(epoch)
            chosen = of.window(at)
            sizes = self.sizes[chosen]
            samples = np.repeat(self.first[chosen] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
            self._drawn[key] = samples[of.permutation(at)]
            while len(self._drawn) > _WINDOWS:
                self._drawn.popitem(last=False)
        self._drawn.move_to_end(key)
        return self._drawn[key]


class _Epoch:
    """The shards of one epoch in their order, and where its windows begin."""

    def __init__(self, order: Order, number: int):
        self.seed, self.number, self.one_by_one = order.seed, number, order.version == 1
        self.length = order.window
        self._rng = generator(order.seed, _ORDER, number)
        self.shards = self._rng.permutation(len(order.shards))
        """Places in `order.shards`."""
        firsts = np.arange(0, len(self.shards), self.length)
        self.lengths = np.add.reduceat(order.sizes[self.shards], firsts)
        """Samples of each window."""
        self.ends = np.cumsum(self.lengths)
        self._next = 0
        """The window that `_rng` draws next, where they are drawn one after the other."""

    def window(self, at: int) -> np.ndarray:
        """Places in `order.shards` of a window's shards."""
        return self.shards[at * self.length : (at + 1) * self.length]

    def window_of(self, place: int) -> int:
        """The window that a place of the epoch lies in."""
        return int(np.searchsorted(self.ends, place, side="right"))

    def start(self, at: int) -> int:
        """The place where a window begins."""
        return int(self.ends[at] - self.lengths[at])

    def permutation(self, at: int) -> np.ndarray:
        """Of the samples of a window."""
        if not self.one_by_one:
            return generator(self.seed, _ORDER, self.number, at + 1).permutation(int(self.lengths[at]))
        if at < self._next:
            self._rng = generator(self.seed, _ORDER, self.number)
            self._rng.permutation(len(self.shards))
            self._next = 0
        for _ in range(self._next, at):
            self._rng.permutation(int(self.lengths[self._next]))
            self._next += 1
        self._next += 1
        return self._rng.permutation(int(self.lengths[at]))


def order_version(samples: int) -> int:
    """`Order.version` of a set of so many samples."""
    return 1 if samples <= MOST_IN_A_ROW else 2


def view_generator(seed: int, position: int) -> np.random.Generator:
    """Where the views and augmentations of the image at a position draw their numbers from."""
    return generator(seed, _VIEWS, position)


def generator(seed: int, stream: int, place: int, part: int = 0) -> np.random.Generator:
    """A counter-based generator for one part of one place of one stream: 2^64 numbers that no other has (Salmon et al., 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, part, place, 0]))
