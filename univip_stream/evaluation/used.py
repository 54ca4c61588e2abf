"""Which labelled images take part in a protocol, which cannot, and what a reader of the result should know of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from univip_stream.distributed import Place
from univip_stream.errors import InputError
from univip_stream.failures import Failure, as_json, listed, stop_if_too_many
from univip_stream.probe.crops import look_through
from univip_stream.probe.labelled import LabelledSource

_ALIKE = 1e-5
"""Relative difference below which float32 features are the same but for the order of their sums."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """The images of both sources that take part, and those that do not."""

    train: np.ndarray
    """int64: numbers of the images to learn from, sorted."""
    val: np.ndarray
    """int64: numbers of the images to judge by, sorted."""
    failed: dict[str, list[Failure]]
    """By source, `train` and `val`: images that cannot be read."""
    notes: list[str]
    """What a reader of the result should know."""

    def facts(self) -> dict[str, Any]:
        """For the result."""
        return {
            "used": {"train": len(self.train), "val": len(self.val)},
            "failed": {name: as_json(failed) for name, failed in self.failed.items()},
            "notes": self.notes,
        }


def used_images(
    train: LabelledSource,
    val: LabelledSource,
    failed_train: dict[int, Failure],
    failed_val: dict[int, Failure],
    *,
    max_failures: str,
    among: np.ndarray | None = None,
) -> Used:
    """Leave out what cannot be read, where so much is allowed and what is left can still be judged.

    Args:
        train: labelled images to learn from.
        val: labelled images to judge by.
        failed_train: those that cannot be read, by their number.
        failed_val: as `failed_train`.
        max_failures: how many may be, of each source.
        among: numbers of the training images that were meant to be used; None for all.

    Raises:
        InputError: more than allowed; no image left, or a class to judge by with none left to learn from.

    """
    kept = {}
    for name, source, bad, wanted in (
        ("train", train, failed_train, np.arange(len(train)) if among is None else among),
        ("val", val, failed_val, np.arange(len(val))),
    ):
        failed = [bad[number] for number in sorted(bad)]
        stop_if_too_many(failed, seen=len(wanted), images=len(wanted), allowed=max_failures, where=source.name)
        kept[name] = np.setdiff1d(wanted, list(bad))
        if not len(kept[name]):
            raise InputError(
                "\n".join([f"none of the {len(wanted)} images of {source.name} can be read:", *listed(failed, 10)])
            )
    meant = set(train.labels) if among is None else {train.labels[number] for number in among}
    known = {train.labels[number] for number in kept["train"]}
    if gone := sorted({val.labels[number] for number in kept["val"]} & (meant - known)):
        raise InputError(
            f"no image of the classes {', '.join(gone[:5])}{' ...' if len(gone) > 5 else ''} of {train.name} can be read, and "
            f"{val.name} is judged by them; mend those images"
        )
    if len(known) < min(2, len(meant)):
        raise InputError(f"the images of {train.name} that can be read are of one class; expected at least two to tell apart")
    notes = []
    if shared := len(train.places & val.places):
        notes.append(
            f"{shared} of the {len(val)} images of {val.name} are images of {train.name} too: they are known by heart, and the "
            "result says little of images that are not"
        )
    return Used(
        **kept,
        failed={"train": [failed_train[n] for n in sorted(failed_train)], "val": [failed_val[n] for n in sorted(failed_val)]},
        notes=notes,
    )


def collapsed(vectors_ND: np.ndarray) -> list[str]:
    """A note, where all images to learn from have one feature."""
    if np.abs(vectors_ND - vectors_ND[0]).max() > _ALIKE * np.abs(vectors_ND).max():
        return []
    return ["all images to learn from have the same features: the images are the same, or the network has collapsed"]


def unreadable(
    source: LabelledSource, numbers: np.ndarray, *, workers: int, place: Place, say: Callable[[str], None]
) -> dict[int, Failure]:
    """Read images once, before they are trained on epoch after epoch: those that cannot be used, by their number.

    Which images are learnt from and which are held out must be the same in every epoch, on every rank and after a kill, so it
    is settled before the first; that costs one pass of reading.
    """
    say(f"looks through {len(numbers)} images of {source.name} for those that cannot be read")
    return gathered(look_through(source, numbers[place.rank :: place.world_size], workers=workers), place)


def gathered(failed: dict[int, Failure], place: Place) -> dict[int, Failure]:
    """The failures of all ranks, by number."""
    if place.world_size == 1:
        return failed
    everyones: list[Any] = [None] * place.world_size
    dist.all_gather_object(everyones, failed)
    return dict(sorted(item for theirs in everyones for item in theirs.items()))
