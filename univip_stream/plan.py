"""Plans: a method states what is cut out of an image, and the stream carries it out; neither depends on the other.

A plan names groups of pictures (`Cut`), once for a run, so that a batch's memory is known beforehand. For every image it draws
the window and the augmentation of each picture (`Drawn`): a pure function of the image's boxes and size, its number, and its
own random generator.

Letters: B images of a batch, N pictures of each in a cut, S side, P numbers of an augmentation (`augment.DRAW_SIZE`).
"""

import os
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from univip_stream.augment import DRAW_SIZE
from univip_stream.errors import InputError, UsageError
from univip_stream.shapes import Int32
from univip_stream.shards import ShardSet


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A named group of pictures that are cut out of every image."""

    count: int
    """N, the number of pictures per image."""
    size: int
    """S, the side of the pictures in pixels."""
    together: bool = False
    """Layout of a batch: False is (N, B, 3, S, S), N views of B images; True is (B, N, 3, S, S), an image's pictures side by
    side, for one forward pass of B * N."""
    again: str = ""
    """Name of an earlier cut, whose pictures are used again with other augmentations, without cutting them twice."""
    setting: str = ""
    """Name of the setting for the size, for messages."""

    def layout(self, images: int) -> tuple[int, int]:
        """Return the two leading dimensions of a batch's array."""
        return (images, self.count) if self.together else (self.count, images)


@dataclass(frozen=True, kw_only=True)
class Look:
    """Facts about an image that a plan may use."""

    sample: int
    """Number of the sample in the shards."""
    boxes: Int32[np.ndarray, "M 4"]
    """Boxes as x, y, w, h in pixels, best first; there may be none."""
    width: int
    """Width in pixels."""
    height: int
    """Height in pixels."""


@dataclass(kw_only=True)
class Drawn:
    """Windows and augmentations drawn for one image."""

    windows: dict[str, np.ndarray] = field(default_factory=dict)
    """For every cut, int32 (N, 4): x, y, w, h in pixels of the image. A cut with `again` has no entry."""
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    """For every cut, float32 (N, P): results of `augment.draw`."""
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    """For every name in `Plan.facts`, float32 of the shape given there."""
    filled: int = 0
    """Number of the image's regions that are random boxes, because there were too few."""
    elsewhere: dict[tuple[str, int], int] = field(default_factory=dict)
    """(cut, number) -> the sample that this picture is cut from, if it is not the image itself."""
    instead: dict[str, np.ndarray] = field(default_factory=dict)
    """Replacement windows in the image itself, used if a sample of `elsewhere` cannot be read; only of cuts that change."""


class Plan(ABC):
    """The pictures that a method needs of an image. A plan is sent to loader workers, so it must be picklable."""

    cuts: Mapping[str, Cut]
    """Cuts by name. A cut must come after the one that it names in `again`."""
    facts: Mapping[str, tuple[int, ...]] = {}
    """Shapes, by name, of arrays that accompany an image's pictures; in a batch they are (B, ...)."""
    regions: int = 0
    """Number of regions drawn for every image; `Drawn.filled` counts the random ones among them."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation used to resize pictures."""
    fingerprint: str | None = None
    """SHA-256 of a file that the plan draws from beside the shards, or None. A run only continues with the same file."""
    all_shards: bool = False
    """Whether pictures come from all shards, not only from those that are being read."""

    def opened(self, index: ShardSet) -> "Plan":
        """Return the plan, ready to draw for images of these shards; plans read files of their own here.

        What a plan needs of all images, `index.whole()` returns as arrays; with `all_shards` the index is that already.
        """
        return self

    @abstractmethod
    def draw(self, look: Look, rng: np.random.Generator) -> Drawn:
        """Draw for one image. All randomness comes from `rng`, which nothing else uses."""


def drawn_by(plan: Plan, look: Look, rng: np.random.Generator) -> Drawn:
    """Draw for an image and check the result, because the plan may be a user's own.

    Raises:
        UsageError: drawing failed, or the result does not fit the plan's own attributes.

    """
    try:
        drawn = plan.draw(look, rng)
    except InputError:
        raise
    except Exception as error:
        if type(plan).__module__.partition(".")[0] == __name__.partition(".")[0]:
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{type(plan).__name__}.draw failed: {type(error).__name__}: {error} ({os.path.basename(last.filename)}, line "
            f"{last.lineno})"
        ) from error
    _check_drawn(drawn, plan, look)
    return drawn


def _check_drawn(drawn: object, plan: Plan, look: Look) -> None:
    who = f"{type(plan).__name__}.draw gave"
    if not isinstance(drawn, Drawn):
        raise UsageError(f"{who} a {type(drawn).__name__}; expected univip_stream.plan.Drawn(...)")
    for name, cut in plan.cuts.items():
        _check_array(drawn.draws, name, (cut.count, DRAW_SIZE), np.float32, f"{who} as draws")
        if cut.again:
            continue
        _check_array(drawn.windows, name, (cut.count, 4), np.int32, f"{who} as windows")
        x, y, w, h = drawn.windows[name].T
        wrong = (x < 0) | (y < 0) | (w < 1) | (h < 1) | (x + w > look.width) | (y + h > look.height)
        for number in np.flatnonzero(wrong).tolist():
            if (name, number) not in drawn.elsewhere:
                raise UsageError(
                    f"{who} for {name} the window {drawn.windows[name][number].tolist()} (x, y, w, h), not inside the image of "
                    f"{look.width} x {look.height} pixels"
                )
    for name, shape in plan.facts.items():
        _check_array(drawn.facts, name, shape, np.float32, f"{who} as facts")


def check_plan(plan: object, who: str) -> None:
    """Raise UsageError if a method returned something that is not a valid plan."""
    if not isinstance(plan, Plan):
        raise UsageError(f"{who} gave a {type(plan).__name__}; expected a univip_stream.plan.Plan")
    cuts = getattr(plan, "cuts", None)
    if not isinstance(cuts, Mapping) or not cuts or not all(isinstance(cut, Cut) for cut in cuts.values()):
        raise UsageError(f"{who}: cuts is {cuts!r}; expected names with a univip_stream.plan.Cut each, at least one")
    seen: dict[str, Cut] = {}
    for name, cut in cuts.items():
        if cut.count < 1 or not 1 <= cut.size <= _LARGEST:
            raise UsageError(
                f"{who}: the cut {name} has count {cut.count} and size {cut.size}; expected at least 1, up to {_LARGEST} px"
            )
        if cut.again:
            first = seen.get(cut.again)
            if (
                first is None
                or first.again
                or (first.count, first.size, first.together) != (cut.count, cut.size, cut.together)
            ):
                raise UsageError(f"{who}: the cut {name} is {cut.again!r} again; expected a cut above it, of the same form")
        seen[name] = cut
    if both := set(cuts) & set(plan.facts):
        raise UsageError(f"{who}: {', '.join(sorted(both))} names a cut and a fact; expected a name for each")


_LARGEST = 4096


def _check_array(arrays: Mapping[str, object], name: str, shape: tuple[int, ...], kind: type, who: str) -> None:
    found = arrays.get(name)
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != kind:
        description = (
            f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "none" if found is None else "no array"
        )
        raise UsageError(f"{who} of {name} {description}; expected {np.dtype(kind)} {shape}")
