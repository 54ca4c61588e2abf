"""What a table of the paper is made of: networks, columns that find their numbers in results, rows and commands."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that stands in the tables."""

    run: str
    """As `eval` and `export backbone` are told of it: a run folder, or --subject with a reference."""
    train: str | None = None
    """The command that trains it."""
    images: float = 0
    """Images seen in training, in millions."""
    rate: int = 844
    """Images a second on one H200, derived; `paper_tables.RATES` says how."""

    def hours(self) -> float:
        """Return the hours of its training on one H200, derived."""
        return self.images * 1e6 / self.rate / 3600


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers, and where a result of `eval` has it."""

    name: str
    """Its head."""
    value: str
    """Place of the number in a result, such as bbox.AP."""
    wanted: dict[str, Any]
    """Places and what must be there for the result to be of this column."""
    exact: dict[str, Any] = field(default_factory=dict)
    """Places and what must be there for the result to be of the paper's protocol; otherwise it is marked."""

    def of(self, result: dict[str, Any]) -> tuple[float, bool] | None:
        """Return the result's number, per cent, and whether its protocol is the paper's; None if it is another column's."""
        if any(_at(result, place) != wanted for place, wanted in self.wanted.items()):
            return None
        value = _at(result, self.value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        exact = all(_at(result, place) in (own if isinstance(own, tuple) else (own,)) for place, own in self.exact.items())
        return 100 * value, exact


def _at(result: Any, place: str) -> Any:
    for key in place.split("."):
        result = result.get(key) if isinstance(result, dict) else None
    return result


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    method: str
    """As the paper has it."""
    data: str = "-"
    """What it was pre-trained on."""
    epochs: int | None = None
    """Epochs of that."""
    numbers: tuple[float | None, ...]
    """Per cent, in the order of the columns."""
    network: str | None = None
    """A name of `paper_tables.NETWORKS`; None for a row that nothing here makes."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper."""

    title: str
    """What is judged."""
    columns: tuple[Column, ...]
    """Its numbers."""
    rows: tuple[Row, ...]
    """Its rows, in the paper's order."""
    protocol: str
    """How, and whose that is."""
    judge: tuple[str, ...]
    """Commands, with {who} for the network, {out} for where results go, {stem} for weights, and {linear} for the probe's name."""
    hours: str
    """Of judging one network, and on what."""
    tried: str
    """The last try at a small scale here."""
