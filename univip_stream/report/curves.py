"""Draw the metrics of runs over each other: as an interactive page, or as a picture."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from univip_stream.errors import InputError
from univip_stream.files import written_atomically
from univip_stream.pretrain.results import records_of, run_folders

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6bd6", "#8c6d46")
"""Colours that colour-blind people can tell apart (Okabe and Ito, 2002, without yellow and black, and two more)."""

SUFFIXES = (".html", ".png", ".svg", ".pdf")

POINTS = 1500
"""Maximal number of points of a line; neighbours are averaged if there are more."""

ERROR = "_error"
"""What a metric's name ends in whose values are the standard errors of another's."""

PANELS = {
    "loss": "the sum of the terms; compare only runs with the same",
    "loss_scene": "scene against scene, Eq. 3",
    "loss_scene_instance": "instances together against the scenes, Eq. 6",
    "loss_instance": "instance against instance, Eq. 11",
    "knn_top1": "kNN on labelled images, share that is right",
    "rankme": "RankMe: how many directions the features use",
    "lidar": "LiDAR: how many directions tell images apart, against how views of one differ",
    "alignment": "distance of two views of an image: 0 alike, 2 unrelated",
    "uniformity": "0 all images alike, -4 evenly spread",
    "feature_std": "spread of the features: 0 is collapse, 1 all over the sphere",
    "lr": "learning rate",
    "momentum": "of the target network",
    "images_per_second": "all ranks together",
    "data_wait": "share of the time that waits for data",
    "filled": "share of instances that are random boxes",
    "gpu_memory_bytes": "most so far",
    "memory_bytes": "most so far",
}
"""Known metrics in the order of the panels, with their meaning. Terms of other methods follow the loss."""


class Line(NamedTuple):
    """One metric of one run."""

    run: str
    colour: str
    dashed: bool
    """Whether the line is dashed: if there are more runs than colours, the second round is."""
    steps: list[float]
    values: list[float]
    errors: list[float] | None = None
    """Standard error of each value, where it is recorded: the band around the line."""


class Panel(NamedTuple):
    """One metric of all runs that have it."""

    metric: str
    meaning: str
    lines: list[Line]


def panels_of(paths: Sequence[Path]) -> list[Panel]:
    """Return a panel for each metric, with a line for each run that has it.

    Raises:
        InputError: there is no run, or none that has recorded anything.

    """
    runs = run_folders(paths)
    names = _names(runs)
    recorded = [records_of(run) for run in runs]
    if not any(recorded):
        raise InputError(
            f"nothing is recorded yet in {', '.join(map(str, runs))}; a run writes its first line after `record_every` steps"
        )
    metrics = {name for records in recorded for record in records for name, value in record.items() if _is_number(value)}
    metrics -= {"step", "epoch", *(f"{name}{ERROR}" for name in metrics)}
    panels = []
    for metric in sorted(metrics, key=_place):
        lines = []
        for at, (name, records) in enumerate(zip(names, recorded, strict=True)):
            pairs = [(record["step"], float(record[metric])) for record in records if _is_number(record.get(metric))]
            if pairs:
                steps, values = _thinned(pairs)
                errors = [
                    (record["step"], float(record[metric + ERROR]))
                    for record in records
                    if _is_number(record.get(metric)) and _is_number(record.get(metric + ERROR))
                ]
                band = _thinned(errors)[1] if len(errors) == len(pairs) else None
                lines.append(Line(name, COLOURS[at % len(COLOURS)], at // len(COLOURS) % 2 == 1, steps, values, band))
        panels.append(Panel(metric, PANELS.get(metric, ""), lines))
    return panels


def draw(paths: Sequence[Path], out: Path, *, smooth: float = 0.0) -> list[Panel]:
    """Draw the curves of runs into `out`; its suffix decides the format.

    Args:
        paths: run folders, or folders of runs.

        out: .html, a self-contained page; .png, .svg or .pdf.
        smooth: weight of earlier values in an exponential mean over points, 0 to under 1; the points stay visible behind it.

    Returns:
        The panels that were drawn.

    Raises:
        InputError: as `panels_of`, or another suffix.

    """
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    panels = panels_of(paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".html":
        page = _page(panels, smooth)
        with written_atomically(out) as file:
            file.write(page.encode())
    else:
        _figure(panels, out, smooth)
    return panels


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential mean, corrected for its start at 0 as in Adam (arXiv:1412.6980, section 3)."""
    mean, means = 0.0, []
    for count, value in enumerate(values, 1):
        mean = weight * mean + (1 - weight) * value
        means.append(mean / (1 - weight**count))
    return means


def _page(panels: list[Panel], smooth: float) -> str:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("univip_stream.report"), autoescape=True)
    lines: dict[str, Line] = {line.run: line for panel in panels for line in panel.lines}
    data: dict[str, Any] = {
        "runs": [{"name": line.run, "colour": line.colour, "dashed": line.dashed} for line in lines.values()],
        "panels": [
            {
                "metric": panel.metric,
                "says": panel.meaning,
                "lines": [
                    {"run": line.run, "steps": line.steps, "values": line.values, "errors": line.errors}
                    for line in panel.lines
                ],
            }
            for panel in panels
        ],
        "smooth": smooth,
    }
    return environment.get_template("curves.html").render(data=data)


def _figure(panels: list[Panel], out: Path, smooth: float) -> None:
    # The object interface instead of pyplot: no global state, no display needed.
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, ax in zip(panels, axes, strict=False):
        for line in panel.lines:
            style = {"color": line.colour, "linestyle": "--" if line.dashed else "-"}
            if smooth:
                ax.plot(line.steps, line.values, alpha=0.25, linewidth=0.8, **style)
            if line.errors:
                low, high = ([v + sign * e for v, e in zip(line.values, line.errors, strict=True)] for sign in (-1, 1))
                ax.fill_between(line.steps, low, high, color=line.colour, alpha=0.15, linewidth=0)
            shown = smoothed(line.values, smooth) if smooth else line.values
            ax.plot(line.steps, shown, label=line.run, linewidth=1.4, marker="o" if len(shown) == 1 else None, **style)
        ax.set_title(panel.metric, fontsize=10, loc="left", fontweight="bold")
        ax.set_xlabel("step", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[len(panels) :]:
        ax.axis("off")
    known: dict[str, Any] = {}
    for ax in axes[: len(panels)]:
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            known.setdefault(name, handle)
    figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=4, fontsize=9, frameon=False)
    with written_atomically(out) as file:
        figure.savefig(file, format=out.suffix[1:].lower(), dpi=150)


def _names(runs: Sequence[Path]) -> list[str]:
    """Return the folders' names, or their paths if two have the same name."""
    short = [run.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run) for run in runs]


def _place(metric: str) -> tuple[int, str]:
    order = list(PANELS)
    if metric in PANELS:
        return order.index(metric), ""
    return (order.index("loss_instance") if metric.startswith("loss_") else len(order)), metric


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(pairs: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    group = -(-len(pairs) // POINTS)
    groups = [pairs[at : at + group] for at in range(0, len(pairs), group)]
    return [sum(s for s, _ in g) / len(g) for g in groups], [sum(v for _, v in g) / len(g) for g in groups]


def as_json(panels: list[Panel]) -> str:
    """Return JSON with the last value of each metric of each run."""
    return json.dumps({panel.metric: {line.run: line.values[-1] for line in panel.lines} for panel in panels})
