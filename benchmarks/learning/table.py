"""From finished cells to tables and plots: means, standard errors over seeds, paired differences."""

import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from grid import ROWS, SEEDS, SETS, Cell, cells

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""Student's t, two-sided 95 %, by the number of pairs: what a mean of so few differences is worth."""
DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "results.md"
METHODS_PAGE = DOCS / "methods.md"
SIDE_BY_SIDE = {
    "(untrained)": "untrained", "byol": "byol", "univip": "K+two", "univip, as printed": "printed", "simclr": "simclr",
    "moco-v2": "moco-v2", "densecl": "densecl", "scrl": "scrl", "soco": "soco", "orl": "orl",
}  # fmt: skip
"""Method -> its row, for the page of the methods."""
ADDS_TO = {
    "scene+si": ("scene",), "scene+ii": ("scene",), "printed": ("scene", "byol, longer", "untrained"), "K": ("printed",),
    "two": ("printed",), "K+two": ("scene", "printed", "K", "two", "byol, longer", "untrained"),
}  # fmt: skip
"""Row -> the rows that it is compared with beside BYOL: those that it adds something to, BYOL for about as long, no training."""
_EXPLAINED = ("gradient_scene", "gradient_scene_instance", "gradient_instance", "own_mass", "own_cosine", "other_cosine")

Result = dict[str, Any]


def main(results: Path, *, write: bool) -> int:
    """Print every set's tables; with `write` put them and the plots into docs/."""
    text = PAGE.read_text() if write else ""
    for name in SETS:
        found = read(results, name)
        tables = [table for table in (scores(found), fewer(found), changed(found), explained(found)) if table]
        lines = [line for table in tables for line in (*table, "")][:-1] if found else ["No cell of this set is finished."]
        print(f"== {name}\n" + "\n".join(lines) + "\n")
        text = _between(text, name, lines) if write else text
    done = [cell for cell in cells() if (results / f"{cell.name}.json").exists()]
    every = [read_cell(results, cell) for cell in done]
    hours = sum(result["spent"]["cpu_s"] for result in every) / 3600
    total = [f"{len(done)} of {len(cells())} declared cells are finished; their training took {hours:.1f} core-hours."]
    print("\n".join(total))
    beside = side_by_side({name: read(results, name) for name in ("drawn", "composed")})
    print("\n== methods\n" + "\n".join(beside))
    if write:
        PAGE.write_text(_between(text, "total", total))
        METHODS_PAGE.write_text(_between(METHODS_PAGE.read_text(), "methods", beside))
        for name in SETS:
            if found := read(results, name):
                plot(found, name, DOCS / "figures" / f"learning-{name}.svg")
        passes = json.loads((results / "progress.json").read_text())
        untrained = json.loads((results / "drawn" / "untrained-s0.json").read_text())["knn"]
        plot_passes(passes, untrained, DOCS / "figures" / "learning-passes.svg")
    return 0


def read(results: Path, name: str) -> dict[str, list[Result]]:
    """Finished cells of a set, by row in the grid's order."""
    found: dict[str, list[Result]] = {}
    for row in [*SETS[name].rows, *SETS[name].later]:
        mine = [Cell(set=name, row=row, seed=seed) for seed in range(SETS[name].seeds.get(row, len(SEEDS)))]
        there = [read_cell(results, cell) for cell in mine if (results / f"{cell.name}.json").exists()]
        if there:
            found[row] = there
    return found


def read_cell(results: Path, cell: Cell) -> Result:
    """A finished cell, which must be of the protocol as it stands."""
    result: Result = json.loads((results / f"{cell.name}.json").read_text())
    if result["fingerprint"] != cell.fingerprint:
        raise SystemExit(f"error: {cell.name} was run by another protocol ({result['fingerprint']}, now {cell.fingerprint})")
    return result


def scores(found: dict[str, list[Result]]) -> list[str]:
    """A row a way to train: kNN and linear probe, and the paired difference against BYOL with its 95 % interval."""
    lines = [
        "| row | what | seeds | kNN | - BYOL | linear | - BYOL | images seen | CPU min | wall min |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = {result["seed"]: result for result in found.get("byol", [])}
    for row, there in found.items():
        pairs = [(result, base[result["seed"]]) for result in there if result["seed"] in base and row != "byol"]
        cpu, wall = (mean(result["spent"][kind] for result in there) / 60 for kind in ("cpu_s", "wall_s"))
        seen = there[0]["images_seen"]
        lines.append(
            f"| `{row}` | {ROWS[row].says} | {len(there)} | {spread([r['knn'] for r in there])} "
            f"| {difference([a['knn'] - b['knn'] for a, b in pairs])} | {spread([r['linear'] for r in there])} "
            f"| {difference([a['linear'] - b['linear'] for a, b in pairs])} | {seen:,} | {cpu:.1f} | {wall:.1f} |"
        )
    return lines


def fewer(found: dict[str, list[Result]]) -> list[str]:
    """What BYOL has over the seeds of rows that have fewer: their difference is to that, not to BYOL's mean in the table."""
    base = {result["seed"]: result for result in found.get("byol", [])}
    of_rows = {tuple(result["seed"] for result in there if result["seed"] in base) for there in found.values()}
    parts = []
    for seeds in sorted(of_rows - {()}, key=len, reverse=True):
        knn, linear = (mean(base[seed][kind] for seed in seeds) for kind in ("knn", "linear"))
        parts.append(f"{knn:.3f} and {linear:.3f} with seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}")
    return [f"Differences are to BYOL's same seeds; it has kNN and linear {'; '.join(parts)}."] if len(parts) > 1 else []


def changed(found: dict[str, list[Result]]) -> list[str]:
    """A row less another that it adds something to or, such as `K+two, plan`, changes one thing of, paired by seed."""
    lines = ["| one row less another | seeds | kNN | linear |", "|---|---|---|---|"]
    for row, there in found.items():
        before, comma, _ = row.partition(", ")
        for other in (before,) if comma else ADDS_TO.get(row, ()):
            base = {result["seed"]: result for result in found.get(other, [])}
            pairs = [(result, base[result["seed"]]) for result in there if result["seed"] in base]
            if pairs:
                knn, linear = (difference([a[kind] - b[kind] for a, b in pairs]) for kind in ("knn", "linear"))
                lines.append(f"| `{row}` less `{other}` | {len(pairs)} | {knn} | {linear} |")
    return lines if len(lines) > 2 else []


def side_by_side(sets: dict[str, dict[str, list[Result]]]) -> list[str]:
    """A row a method that has a finished cell: for each set its seeds, kNN, linear probe and CPU minutes of a training."""
    columns = ("seeds", "kNN", "linear", "CPU min")
    lines = [
        "| method | " + " | ".join(f"{name}: {column}" for name in sets for column in columns) + " |",
        "|---" * (1 + len(columns) * len(sets)) + "|",
    ]
    for method, row in SIDE_BY_SIDE.items():
        cells_of = [_brief(found[row]) if row in found else [""] * len(columns) for found in sets.values()]
        if any(any(texts) for texts in cells_of):
            lines.append(f"| `{method}` | " + " | ".join(text for texts in cells_of for text in texts) + " |")
    return lines


def _brief(there: list[Result]) -> list[str]:
    minutes = mean(result["spent"]["cpu_s"] for result in there) / 60
    return [str(len(there)), *(spread([result[kind] for result in there]) for kind in ("knn", "linear")), f"{minutes:.1f}"]


def explained(found: dict[str, list[Result]]) -> list[str]:
    """What goes with the scores: gradient norms, the plan's own matches, cosines; means over seeds."""
    rows = {row: there for row, there in found.items() if any(result["explained"] for result in there)}
    if not rows:
        return []
    lines = [
        "| row | gradient: scene | scene-instance | instance | own mass | own cosine | others' | std | last loss |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, there in rows.items():
        values = [[result["explained"].get(key) for result in there] for key in _EXPLAINED]
        texts = [
            f"{mean(v for v in column if v is not None):.3f}" if any(c is not None for c in column) else ""
            for column in values
        ]
        std, loss = (mean(result[key] for result in there) for key in ("feature_std", "loss_last_tenth"))
        lines.append(f"| `{row}` | " + " | ".join(texts) + f" | {std:.2f} | {loss:.2f} |")
    return lines


def spread(values: list[float]) -> str:
    """Mean and standard error over seeds."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ± {stdev(values) / math.sqrt(len(values)):.3f}"


def difference(values: list[float]) -> str:
    """Mean of paired differences and its 95 % interval by Student's t."""
    if not values:
        return ""
    if len(values) < 2:
        return f"{values[0]:+.3f}"
    half = T95[len(values)] * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):+.3f} [{mean(values) - half:+.3f}, {mean(values) + half:+.3f}]"


def plot(found: dict[str, list[Result]], name: str, out: Path) -> None:
    """Every seed's kNN as a dot and their mean as a line, a row each."""
    figure, axes = _empty(name, (7, 0.6 + 0.28 * len(found)))
    rows = list(found)[::-1]
    for height, row in enumerate(rows):
        values = [result["knn"] for result in found[row]]
        axes.plot(values, [height] * len(values), "o", color="#33658a", markersize=5, alpha=0.8)
        axes.plot([mean(values)] * 2, [height - 0.3, height + 0.3], color="#f26419", linewidth=2)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel(f"kNN top-1, {name}: a dot a seed, the line their mean")
    _save(figure, axes, out)


def plot_passes(passes: dict[str, list[Result]], untrained: float, out: Path) -> None:
    """kNN after each pass of the runs of `progress.py`, and that of the network that they begin with."""
    figure, axes = _empty("passes", (7, 3.2))
    axes.axhline(untrained, color="#888888", linestyle="--", label="untrained")
    for name, looks in passes.items():
        values = [look["knn_top1"] for look in looks if "knn_top1" in look]
        axes.plot(range(1, len(values) + 1), values, "o-", markersize=4, label=name)
    axes.set_xlabel("passes over the images")
    axes.set_ylabel("kNN top-1")
    axes.legend(loc="center right")
    _save(figure, axes, out)


def _empty(name: str, size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and its axes, whose file hangs on `name` and what is drawn alone."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = name
    return plt.subplots(figsize=size)


def _save(figure: Any, axes: Any, out: Path) -> None:
    import matplotlib.pyplot as plt

    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def _between(text: str, name: str, lines: list[str]) -> str:
    """The page with what stands between a set's two marks replaced."""
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    if not rest or not tail:
        raise SystemExit(f"error: the page has no '{begin}' and '{end}'")
    return f"{head}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}"
