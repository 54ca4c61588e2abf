"""Select the labelled images that take part in a protocol, and record those that cannot, with notes for the result's reader."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from univip_stream.distributed import Process
from univip_stream.errors import InputError
from univip_stream.failures import Failure, as_json, listed, stop_if_too_many
from univip_stream.probe.crops import look_through
from univip_stream.probe.labelled import LabelledSource

_SAME_FEATURES = 1e-5
"""Relative difference of float32 features that the order of summation alone can make."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """The images of both sources that take part, and those that do not."""

    train: np.ndarray
    """int64: numbers of the images to learn from, sorted."""
    val: np.ndarray
    """int64: numbers of the images to judge by, sorted."""
    failed: dict[str, list[Failure]]
    """Images that cannot be read, by source: `train` and `val`."""
    notes: list[str]
    """Notes for the reader of the result."""

    def facts(self) -> dict[str, Any]:
        """Return the part of the result that describes the images."""
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
    """Leave out unreadable images, if there are not too many and the rest can still be judged.

    Args:
        train: labelled images to learn from.
        val: labelled images to judge by.
        failed_train: images of `train` that cannot be read, by their number.
        failed_val: images of `val` that cannot be read, by their number.
        max_failures: number or share of unreadable images that is allowed in each source.
        among: numbers of the training images that were meant to be used; None for all.

    Raises:
        InputError: there are more than allowed; no image is left, or none to learn a class from that is judged by.

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
            f"{shared} of the {len(val)} images of {val.name} are images of {train.name} too: the network has seen them with "
            "their labels, and the result says little about new images"
        )
    return Used(
        **kept,
        failed={"train": [failed_train[n] for n in sorted(failed_train)], "val": [failed_val[n] for n in sorted(failed_val)]},
        notes=notes,
    )


def collapsed(vectors_ND: np.ndarray) -> list[str]:
    """Return a note if all images to learn from have the same feature, else an empty list."""
    if np.abs(vectors_ND - vectors_ND[0]).max() > _SAME_FEATURES * np.abs(vectors_ND).max():
        return []
    return ["all images to learn from have the same features: the images are the same, or the network has collapsed"]


def unreadable(
    source: LabelledSource, numbers: np.ndarray, *, workers: int, process: Process, say: Callable[[str], None]
) -> dict[int, Failure]:
    """Read all images once before training, and return those that cannot be used, by their number.

    The images to learn from and the held-out ones must be the same in every epoch, on every rank and after an interruption, so
    they are determined before the first epoch; that costs one pass of reading.
    """
    say(f"checking {len(numbers)} images of {source.name} for those that cannot be read")
    return gathered(look_through(source, numbers[process.rank :: process.world_size], workers=workers), process)


def gathered(failed: dict[int, Failure], process: Process) -> dict[int, Failure]:
    """Return the failures of all ranks, by number."""
    if process.world_size == 1:
        return failed
    everyones: list[Any] = [None] * process.world_size
    dist.all_gather_object(everyones, failed)
    return dict(sorted(item for theirs in everyones for item in theirs.items()))
