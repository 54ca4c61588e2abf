"""What a table of the paper is made of: networks, columns that find their numbers in results, rows and commands."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple


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


class Found(NamedTuple):
    """A column's number in a result."""

    value: float
    """Per cent."""
    differs: tuple[str, ...]
    """What is not as in the paper's protocol, a sentence each; none if all is."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of numbers, and where a result of `eval` has it."""

    name: str
    """Its head."""
    value: str
    """Place of the number in a result, such as bbox.AP."""
    wanted: dict[str, Any]
    """Places and what must be there for the result to be of this column: a value, or a tuple or range of several."""
    never: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Places and what is there in results of other columns, such as the iterations of another schedule."""
    exact: tuple[dict[str, Any], ...] = ({},)
    """The paper's protocol, network and data: as `wanted`. Of several such, the one that is nearest counts."""

    def of(self, result: dict[str, Any]) -> Found | None:
        """Return the result's number and what of its protocol is not the paper's; None if it is another column's."""
        if any(not _is(_at(result, place), wanted) for place, wanted in self.wanted.items()):
            return None
        if any(_is(_at(result, place), others) for place, others in self.never.items()):
            return None
        value = _at(result, self.value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        differing = [
            tuple(
                f"{place} is {_told(_at(result, place))}, the paper's {_told(own)}"
                for place, own in protocol.items()
                if not _is(_at(result, place), own)
            )
            for protocol in self.exact
        ]
        return Found(100 * value, min(differing, key=len))


def _at(result: Any, place: str) -> Any:
    for key in place.split("."):
        result = result.get(key) if isinstance(result, dict) else None
    return result


def _is(found: Any, wanted: Any) -> bool:
    return found in wanted if isinstance(wanted, tuple | range) else bool(found == wanted)


def _told(value: Any) -> str:
    if isinstance(value, range):
        return f"{value.start} to {value.stop - 1}"
    if isinstance(value, tuple):
        return " or ".join(_told(one) for one in value if one != "")
    if isinstance(value, list):
        return " ".join(map(_told, value))
    return "not recorded" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


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
