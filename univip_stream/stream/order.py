"""Which image stands at which place of the endless sequence: a pure function of (seed, epoch).

Position p of the sequence lies in epoch p // N at place p % N. In an epoch the shards are permuted, cut into windows of a
few shards, and the samples of each window shuffled: every image exactly once an epoch, and a reader that goes forward
touches few shards at a time. Ranks and workers play no part, so they change nothing.

How well it shuffles, with windows of V samples in k shards: a window is uniformly shuffled, so two samples of one shard come
(V + 1) / 3 places apart on average and at most V - 1; of a sample's neighbours in the sequence, one in k is of its own shard.
Which shards share a window is drawn anew each epoch. COCO in 128 shards with the default window of 16 has V = 14,800. The
last window holds what is left over; a number of shards that the window divides has none that is smaller.

Letter: N samples.
"""

import numpy as np

_ORDER = 0
"""Which stream of random numbers a seed's order comes from; `_VIEWS` is another, so the two never meet."""
_VIEWS = 1


class Order:
    """The endless sequence of samples of an index.

    Args:
        shard_N: int32, the shard of each sample; a shard's samples are neighbours.
        seed: of the whole run.
        window: shards whose samples are shuffled together. Two images of one shard end up within a window's length of each
            other, and neighbours in a batch come from `window` different shards.

    """

    def __init__(self, shard_N: np.ndarray, seed: int, window: int):
        self.count = len(shard_N)
        self.seed = seed
        self.window = window
        edges = np.flatnonzero(np.diff(shard_N)) + 1
        self.bounds = np.concatenate([[0], edges, [self.count]])
        self.shards = shard_N[self.bounds[:-1]]
        self._epochs: dict[int, np.ndarray] = {}
        self._shuffled: dict[int, tuple[list[np.ndarray], np.ndarray]] = {}

    def epoch(self, number: int) -> np.ndarray:
        """int64 N: the samples of an epoch in their order."""
        if number not in self._epochs:
            self._epochs = {known: order for known, order in self._epochs.items() if known == number - 1}
            self._epochs[number] = self._draw(number)
        return self._epochs[number]

    def samples(self, first: int, count: int) -> np.ndarray:
        """int64 count: the samples at positions `first` and on, across the seams of epochs."""
        positions = np.arange(first, first + count)
        epochs, places = positions // self.count, positions % self.count
        return np.concatenate([self.epoch(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def near(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """(shards of the window that a position lies in, shards of the window after it, in their order)."""
        epoch, place = divmod(position, self.count)
        windows, ends = self._windows(epoch)
        at = int(np.searchsorted(ends, place, side="right"))
        following = windows[at + 1] if at + 1 < len(windows) else self._windows(epoch + 1)[0][0]
        return self.shards[windows[at]], self.shards[following]

    def _windows(self, number: int) -> tuple[list[np.ndarray], np.ndarray]:
        """(shards of each window of an epoch, as places in `bounds`; where each window ends)."""
        if number not in self._shuffled:
            self._shuffled = {known: windows for known, windows in self._shuffled.items() if known == number - 1}
            shards = self._permuted(generator(self.seed, _ORDER, number))
            windows = [shards[at : at + self.window] for at in range(0, len(shards), self.window)]
            sizes = [int((self.bounds[window + 1] - self.bounds[window]).sum()) for window in windows]
            self._shuffled[number] = windows, np.cumsum(sizes)
        return self._shuffled[number]

    def _permuted(self, rng: np.random.Generator) -> np.ndarray:
        return rng.permutation(len(self.bounds) - 1)

    def _draw(self, number: int) -> np.ndarray:
        rng = generator(self.seed, _ORDER, number)
        shards = self._permuted(rng)  # first, so that `_windows` draws the same
        runs = [np.arange(self.bounds[shard], self.bounds[shard + 1]) for shard in shards]
        windows = [np.concatenate(runs[at : at + self.window]) for at in range(0, len(runs), self.window)]
        return np.concatenate([rng.permutation(window) for window in windows])


def view_generator(seed: int, position: int) -> np.random.Generator:
    """Where the views and augmentations of the image at a position draw their numbers from."""
    return generator(seed, _VIEWS, position)


def generator(seed: int, stream: int, place: int) -> np.random.Generator:
    """A counter-based generator for one place of one stream: 2^64 numbers that no other place has (Salmon et al., 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, place, 0]))
