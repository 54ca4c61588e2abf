"""What is cut out of an image: a method states it, the stream carries it out, and neither knows the other.

A plan names groups of pictures (`Cut`), once for a run, so that a batch's memory is known beforehand. For every image it draws
where each picture's window is and the numbers of its augmentation (`Drawn`): a pure function of the image's boxes and size, its
number, and its own random generator.

Letters: B images of a batch, N pictures a cut gives of each, S side, P numbers of an augmentation (`augment.DRAW_SIZE`).
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
    """A group of pictures that every image gives, under one name."""

    count: int
    """N, pictures of each image."""
    size: int
    """S, their side in pixels."""
    together: bool = False
    """False lays a batch out as (N, B, 3, S, S), N views of B images; True as (B, N, 3, S, S), an image's pictures side by side,
    to be seen in one forward pass of B * N."""
    again: str = ""
    """Name of a cut above, whose pictures these are once more, with augmentations of their own: nothing is cut twice."""
    setting: str = ""
    """What a person sets to change the size, for messages."""

    def layout(self, images: int) -> tuple[int, int]:
        """The two leading sides of a batch's array."""
        return (images, self.count) if self.together else (self.count, images)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a plan knows of an image."""

    sample: int
    """Its place in the shards."""
    boxes: Int32[np.ndarray, "M 4"]
    """Its boxes: x, y, w, h in pixels, best first; may be none."""
    width: int
    """In pixels."""
    height: int
    """In pixels."""


@dataclass(kw_only=True)
class Drawn:
    """What was drawn for one image."""

    windows: dict[str, np.ndarray] = field(default_factory=dict)
    """int32 (N, 4) of every cut: x, y, w, h in pixels of the image. None for a cut that is another's `again`."""
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 (N, P) of every cut: `augment.draw`."""
    facts: dict[str, np.ndarray] = field(default_factory=dict)
    """float32, of the shapes of `Plan.facts`."""
    filled: int = 0
    """How many of the image's regions are random boxes, because there were too few."""
    elsewhere: dict[tuple[str, int], int] = field(default_factory=dict)
    """(cut, number) -> the sample that this picture is cut from, where it is not the image itself."""
    instead: dict[str, np.ndarray] = field(default_factory=dict)
    """Windows in the image itself, of the cuts that change, for when a sample of `elsewhere` cannot be read."""


class Plan(ABC):
    """What a method wants to see of an image. It travels to loader workers, so it holds nothing that does not."""

    cuts: Mapping[str, Cut]
    """By name. A cut whose pictures another takes `again` comes before it."""
    facts: Mapping[str, tuple[int, ...]] = {}
    """Numbers that go with an image's pictures, by name: the shape of each; a batch has (B, ...) of them."""
    regions: int = 0
    """Regions that are drawn of every image, of which `Drawn.filled` counts the random ones."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pictures are resized."""
    fingerprint: str | None = None
    """SHA-256 of the file that the plan draws from beside the shards; None for none. A run continues with the same only."""
    all_shards: bool = False
    """Whether pictures come from anywhere in the shards, not only from those that are read at the time."""

    def opened(self, index: ShardSet) -> "Plan":
        """The plan, ready to draw for images of these shards: where files of its own are read.

        What it needs of all images, `index.whole()` has as arrays; with `all_shards` it is that already.
        """
        return self

    @abstractmethod
    def draw(self, look: Look, rng: np.random.Generator) -> Drawn:
        """Draw for one image. All chance comes from `rng`, which nothing else draws from."""


def drawn_by(plan: Plan, look: Look, rng: np.random.Generator) -> Drawn:
    """What a plan draws for an image, looked at, because a plan may be somebody's own.

    Raises:
        UsageError: drawing failed, or gave what is not as the plan says of itself.

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
    """Raise UsageError where what a method gave is no plan that can be carried out."""
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
        said = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else "none" if found is None else "no array"
        raise UsageError(f"{who} of {name} {said}; expected {np.dtype(kind)} {shape}")
