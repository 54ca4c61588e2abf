"""Choose the training images that are held out, and the few whose labels are used: seeded draws, class by class."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from univip_stream.errors import InputError, why
from univip_stream.probe.labelled import LabelledSource

HELD_OUT_A_CLASS = 10
"""Held-out images per class: BYOL chooses the rate on 10,000 of ImageNet's (arXiv:2006.07733, appendix C.1), ten per class."""
HELD_OUT_SHARE = 0.2
"""Maximal share of a class that is held out; it limits small classes."""


def hold_out(numbers: np.ndarray, classes: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images into (to learn from, to choose by), each sorted.

    Args:
        numbers: int64 N, numbers of the images.
        classes: int64 N, class of each.
        seed: seed of the draw.

    Raises:
        InputError: every class is too small to hold out an image.

    """
    chosen = np.concatenate(
        [
            _drawn(numbers[classes == label], min(HELD_OUT_A_CLASS, int((classes == label).sum() * HELD_OUT_SHARE)), seed, label)
            for label in np.unique(classes)
        ]
    )  # fmt: skip
    if not len(chosen):
        raise InputError(
            f"the {len(numbers)} training images of {len(np.unique(classes))} classes are too few to hold any out to choose the "
            f"learning rate by; expected a class of at least {round(1 / HELD_OUT_SHARE)}"
        )
    return np.setdiff1d(numbers, chosen), np.sort(chosen)


def fraction_of(source: LabelledSource, share: float, seed: int) -> np.ndarray:
    """Draw `share` of each class, at least one image of each, and return the images' numbers, sorted.

    SimCLR's published lists are class-balanced draws too (arXiv:2002.05709); give them as a file to compare with the papers.
    """
    drawn = []
    for label in range(len(source.classes)):
        of_class = np.flatnonzero(source.numbers == label)
        drawn.append(_drawn(of_class, max(1, round(share * len(of_class))), seed, label))
    return np.sort(np.concatenate(drawn))


def listed(source: LabelledSource, path: Path) -> np.ndarray:
    """Return the numbers of the images that a list names: one file name per line, as in SimCLR's (`n01440764_10026.JPEG`).

    Raises:
        InputError: the list cannot be read, or names images that the source does not have.

    """
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of images: {why(error)}") from error
    place = {key.rpartition("/")[2]: number for number, key in enumerate(source.keys)}
    missing = [name for name in names if name.rpartition("/")[2] not in place]
    if missing or not names:
        raise InputError(
            f"{path} names {len(missing)} of {len(names)} images that {source.name} lacks"
            f"{_example(missing)}; expected file names of its {len(source)} images{_example(source.keys)}"
        )
    return np.unique([place[name.rpartition("/")[2]] for name in names])


def _example(names: Iterable[str]) -> str:
    first = next(iter(names), None)
    return f", such as {first}" if first else ""


def _drawn(numbers: np.ndarray, count: int, seed: int, label: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=[seed, int(label)]))
    return rng.permutation(numbers)[:count]
