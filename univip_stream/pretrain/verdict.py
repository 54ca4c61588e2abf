"""What a run's records say without labels: have the features collapsed, and does the loss still move?

It says no more than that. Among trained runs neither the loss nor RankMe orders methods as kNN with labels does
(docs/results.md), so nothing here claims that a representation is good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLLAPSED = 0.1
"""`feature_std` below this is collapse: 1 is features spread evenly over the sphere, runs that learn have 0.3 and more
(docs/how-to/look.md)."""
BLOCKS = 20
"""Records are averaged in so many blocks, whose means are nearly independent where neighbouring records are not."""
LEAST_BLOCKS = 8
"""Of the end of a run, that a line is laid through: fewer give no deviation to believe."""
DEVIATIONS = 3.2
"""Standard errors by which a slope must differ from 0 to be one. Through eight blocks, with six degrees of freedom, chance alone
passes that once in fifty times."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the records of a run say."""

    spread: float | None
    """Mean `feature_std` of the last tenth of the records; None where it is not recorded."""
    collapsed: bool
    """Whether that is collapse."""
    term: str | None
    """Where it is: the term of the loss that fell most since the beginning."""
    slope: float | None
    """Change of the loss over a tenth of the run at its end, where it still moves; else None."""
    flat_since: int | None
    """Step since which the loss does not move; None where it does, or where too little is recorded."""
    enough: bool
    """Whether enough is recorded to say whether the loss moves."""

    def sentence(self) -> str:
        """Return the verdict in words."""
        parts = []
        if self.collapsed:
            whose = f", and loss_{self.term} fell most" if self.term else ""
            parts.append(f"collapsing: the features' spread is {self.spread:.2f}, where 0 is one point for all images{whose}")
        elif self.spread is not None:
            parts.append(f"no collapse (the features' spread is {self.spread:.2f})")
        if not self.enough:
            parts.append("too little is recorded to say whether the loss moves")
        elif self.flat_since is not None:
            parts.append(f"the loss is flat since step {self.flat_since}")
        elif self.slope is not None:
            parts.append(
                f"the loss still {'falls' if self.slope < 0 else 'rises'}, by {abs(self.slope):.3g} in a tenth of the run"
            )
        return "; ".join(parts)


def judge(records: Sequence[Mapping[str, Any]]) -> Verdict:
    """Read the records of a run, in order, each with `step`; one of before the first step has no loss, and says nothing here."""
    records = [record for record in records if record["step"]]
    losses = np.array([record["loss"] for record in records], float)
    steps = np.array([record["step"] for record in records], float)
    last = max(1, len(records) // 10)
    spreads = [record["feature_std"] for record in records[-last:] if record.get("feature_std") is not None]
    spread = float(np.mean(spreads)) if spreads else None
    collapsed = spread is not None and spread < COLLAPSED
    enough = len(records) >= 2 * BLOCKS
    slope = flat = None
    if enough:
        slope, flat = _movement(steps, losses)
    return Verdict(
        spread=spread, collapsed=collapsed, term=_fallen_most(records, last) if collapsed else None, slope=slope, flat_since=flat,
        enough=enough,
    )  # fmt: skip


def _movement(steps: np.ndarray, losses: np.ndarray) -> tuple[float | None, int | None]:
    """(change over a tenth of the run at its end, step since which there is none): one of them is None."""
    blocks = np.array_split(np.arange(len(losses)), BLOCKS)
    at = np.array([steps[block].mean() for block in blocks])
    mean = np.array([losses[block].mean() for block in blocks])
    slope, error = _line(at[-LEAST_BLOCKS:], mean[-LEAST_BLOCKS:])
    if abs(slope) > DEVIATIONS * error:
        return slope * (steps[-1] - steps[0]) / 10, None
    # Back from the end, as long as blocks lie where those after them do.
    first = BLOCKS - LEAST_BLOCKS
    while first > 0:
        after = mean[first:]
        error = float(after.std(ddof=1)) * np.sqrt(1 + 1 / len(after))
        if abs(mean[first - 1] - after.mean()) > DEVIATIONS * error:
            break
        first -= 1
    return None, int(steps[blocks[first][0]])


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(slope of the least squares' line, its standard error)."""
    x = x - x.mean()
    slope = float((x * (y - y.mean())).sum() / (x**2).sum())
    rest = y - y.mean() - slope * x
    return slope, float(np.sqrt((rest**2).sum() / (len(x) - 2) / (x**2).sum()))


def _fallen_most(records: Sequence[Mapping[str, Any]], last: int) -> str | None:
    names = [name for name in records[0] if name.startswith("loss_")]
    fallen = {
        name: float(
            np.mean([record[name] for record in records[:last]]) - np.mean([record[name] for record in records[-last:]])
        )
        for name in names
        if all(isinstance(record.get(name), int | float) for record in records)
    }
    return max(fallen, key=lambda name: fallen[name]).removeprefix("loss_") if fallen else None
