"""The order of the images in the endless sequence, a pure function of (seed, epoch).

Position p of the sequence is place p % N of epoch p // N. In each epoch the shards are permuted and divided into windows of a
few shards, and the samples of each window are shuffled. So every image comes exactly once an epoch, and a reader that goes
forward needs few shards at a time. The order does not depend on ranks or workers.

How well this shuffles, with windows of V samples in k shards: a window is shuffled uniformly, so two samples of one shard are
(V + 1) / 3 places apart on average and at most V - 1; one in k of a sample's neighbours in the sequence is of its own shard.
It is drawn anew each epoch which shards share a window. COCO in 128 shards with the default window of 16 has V = 14,800. The
last window holds the remaining shards; it is smaller than the others unless the window divides the number of shards.

Memory holds a number or two for each shard and the permutations of a few windows, never a permutation of all samples. For
sets of up to `MOST_IN_A_ROW` samples, the windows of an epoch are drawn one after the other from one generator, as they
always were. To start in the middle of an epoch, the windows before it must be drawn: 20 ns a sample, at most half a second.
In larger sets each window has its own generator, and every place costs the same.

Letters: N samples, S shards.
"""

from collections import OrderedDict

import numpy as np

_ORDER = 0
"""Number of the random stream that the order is drawn from; `_VIEWS` is another, so the two never share numbers."""
_VIEWS = 1
MOST_IN_A_ROW = 1 << 24
"""Samples up to which the windows of an epoch are drawn one after the other. To change it changes the order of larger
sets."""
_WINDOWS = 3
"""Permutations of windows that are kept: of the present window, of the next, and of one that a replacement came from."""


class Order:
    """The endless sequence of samples of some shards.

    Args:
        counts_S: number of samples of each shard; samples are numbered shard after shard. Empty shards are skipped.
        seed: seed of the run.
        window: number of shards whose samples are shuffled together. Two images of one shard end up within a window's length
            of each other, and neighbours in a batch come from `window` different shards.

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
        """How windows are drawn: 1 is one after the other, 2 is each on its own. A run keeps the version it began with."""
        return order_version(self.count)

    def epoch(self, number: int) -> np.ndarray:
        """Return the samples of an epoch in their order, int64 N. For sets that fit into memory."""
        windows = len(self._epoch_of(number).ends)
        return np.concatenate([self._window(number, at) for at in range(windows)])

    def sample(self, position: int) -> int:
        """Return the sample at a position of the sequence."""
        epoch, place = divmod(position, self.count)
        of = self._epoch_of(epoch)
        at = of.window_of(place)
        return int(self._window(epoch, at)[place - of.start(at)])

    def samples(self, first: int, count: int) -> np.ndarray:
        """Return the `count` samples from position `first` on, int64; they may cross the end of an epoch."""
        parts = [np.empty(0, np.int64)]
        while count > 0:
            epoch, place = divmod(first, self.count)
            of = self._epoch_of(epoch)
            at = of.window_of(place)
            found = self._window(epoch, at)[place - of.start(at) :][:count]
            parts.append(found)
            first, count = first + len(found), count - len(found)
        return np.concatenate(parts)

    def positions(self, samples: np.ndarray, epoch: int = 0) -> np.ndarray:
        """Return the positions of samples in an epoch, int64: the reverse of `sample`. Only their windows are drawn."""
        of = self._epoch_of(epoch)
        turn = np.empty(len(of.shards), np.int64)
        turn[of.shards] = np.arange(len(of.shards))
        windows = turn[np.searchsorted(self.first, samples, side="right") - 1] // self.window
        found = np.empty(len(samples), np.int64)
        for at in np.unique(windows).tolist():
            here, drawn = windows == at, self._window(epoch, at)
            ascending = np.argsort(drawn)
            found[here] = of.start(at) + ascending[np.searchsorted(drawn, samples[here], sorter=ascending)]
        return epoch * self.count + found

    def near(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (shards of the window that contains a position, shards of the window after it), each in order."""
        epoch, place = divmod(position, self.count)
        of = self._epoch_of(epoch)
        at = of.window_of(place)
        following = of.window(at + 1) if at + 1 < len(of.ends) else self._epoch_of(epoch + 1).window(0)
        return self.shards[of.window(at)], self.shards[following]

    def is_late(self, position: int) -> bool:
        """Return whether a position is in the second half of its window."""
        epoch, place = divmod(position, self.count)
        of = self._epoch_of(epoch)
        at = of.window_of(place)
        return 2 * (place - of.start(at)) >= int(of.lengths[at])

    def _epoch_of(self, number: int) -> "_Epoch":
        if number not in self._epochs:
            self._epochs[number] = _Epoch(self, number)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(number)
        return self._epochs[number]

    def _window(self, epoch: int, at: int) -> np.ndarray:
        """Return the samples of a window in their order, int64."""
        key = (epoch, at)
        if key not in self._drawn:
            of = self._epoch_of(epoch)
            chosen = of.window(at)
            sizes = self.sizes[chosen]
            samples = np.repeat(self.first[chosen] - (np.cumsum(sizes) - sizes), sizes) + np.arange(sizes.sum())
            self._drawn[key] = samples[of.permutation(at)]
            while len(self._drawn) > _WINDOWS:
                self._drawn.popitem(last=False)
        self._drawn.move_to_end(key)
        return self._drawn[key]


class _Epoch:
    """The order of the shards in one epoch, and the ends of its windows."""

    def __init__(self, order: Order, number: int):
        self.seed, self.number, self.one_by_one = order.seed, number, order.version == 1
        self.length = order.window
        self._rng = generator(order.seed, _ORDER, number)
        self.shards = self._rng.permutation(len(order.shards))
        """Indices into `order.shards`."""
        firsts = np.arange(0, len(self.shards), self.length)
        self.lengths = np.add.reduceat(order.sizes[self.shards], firsts)
        """Number of samples of each window."""
        self.ends = np.cumsum(self.lengths)
        self._next = 0
        """The window that `_rng` draws next, if windows are drawn one after the other."""

    def window(self, at: int) -> np.ndarray:
        """Return the indices of a window's shards into `order.shards`."""
        return self.shards[at * self.length : (at + 1) * self.length]

    def window_of(self, place: int) -> int:
        """Return the window that contains a place of the epoch."""
        return int(np.searchsorted(self.ends, place, side="right"))

    def start(self, at: int) -> int:
        """Return the place at which a window begins."""
        return int(self.ends[at] - self.lengths[at])

    def permutation(self, at: int) -> np.ndarray:
        """Return the permutation of the samples of a window."""
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
    """Return `Order.version` for a set with this number of samples."""
    return 1 if samples <= MOST_IN_A_ROW else 2


def view_generator(seed: int, position: int) -> np.random.Generator:
    """Return the generator that the views and augmentations of the image at a position are drawn from."""
    return generator(seed, _VIEWS, position)


def generator(seed: int, stream: int, place: int, part: int = 0) -> np.random.Generator:
    """Return a counter-based generator for one part of one place of one stream.

    Each has 2^64 numbers that it shares with no other. Source: Salmon et al., 2011.
    """
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, part, place, 0]))
