"""`univip-stream results`: parse, call, print."""

import json
from pathlib import Path
from typing import Any

import click

from univip_stream.errors import UsageError
from univip_stream.pretrain.ablations import ABLATIONS
from univip_stream.pretrain.paper_tables import table_of
from univip_stream.pretrain.results import PAPER, collect, own_rows

_REASONS = 5
"""Number of differences from the paper's protocol that are printed for a row; the JSON has all."""
_SHORT = {"scene": "S", "scene-instance": "SI", "instance": "I"}


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--paper", is_flag=False, flag_value="ablations", metavar="[N]",
              help="Print the paper's Table N, 1 to 13, with RUNS beside it; without N its ablations, and what `train --ablation` "
              "sets for each.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def results(runs: tuple[Path, ...], paper: str | None, as_json: bool) -> None:
    """Compare RUNS: settings, loss and evaluations, one row per run.

    RUNS are run folders, or folders of runs. Evaluations are the files that `eval ... --out RUN/eval/NAME.json` wrote.
    Terms: S scene-scene, SI scene-instance, I instance-instance. The loss is the mean of the last tenth of the records; compare
    it only between runs with the same terms. If runs were evaluated, the paper's numbers for their recipe follow. With --paper
    N, RUNS may also be files of results, or folders of them, such as those of `eval --subject`; a number that is not by the
    paper's protocol, with its network and on its data, has a star and the reasons below.

    \b
    univip-stream results runs/*
    univip-stream results --paper 2 runs/coco references/random
    """
    if paper is not None and paper != "ablations":
        if not paper.isascii() or not paper.isdigit():
            raise UsageError(f"--paper is {paper!r}; expected the number of a table, 1 to 13 (runs come after it)")
        _print_table(int(paper), runs, as_json)
        return
    if (paper is not None) == bool(runs):
        raise UsageError("expected run folders, or --paper, or --paper N with or without them")
    if paper:
        _print_paper(as_json)
        return
    rows = collect(runs)
    if as_json:
        click.echo(json.dumps(rows))
        return
    protocols = sorted({name for row in rows for name in row["evaluations"]})
    lines = [[*_cells(row), *_scores(row, protocols)] for row in rows]
    for recipe, method in dict.fromkeys((row["recipe"], row["method"]) for row in rows if protocols):
        if (recipe, method) in PAPER:
            blank = ["-"] * (len(_cells(rows[0])) - 3)
            lines.append(["paper", recipe, method, *blank, *_scores({"evaluations": PAPER[recipe, method]}, protocols)])
    own = ["run", "recipe", "method", "backbone", "batch", "lr", "terms", "views", "regions", "K", "tries", "seed", "steps"]
    head = [*own, "loss", "std", *protocols]
    click.echo("\n".join(_table([head, *lines])))


def _print_table(number: int, runs: tuple[Path, ...], as_json: bool) -> None:
    table = table_of(number)
    of_runs = own_rows(table, number, runs)
    if as_json:
        rows = [{"method": r.method, "data": r.data, "epochs": r.epochs, "numbers": r.numbers} for r in table.rows]
        facts = {"table": number, "title": table.title, "columns": [column.name for column in table.columns], "rows": rows}
        click.echo(json.dumps({**facts, "protocol": table.protocol, "runs": of_runs}))
        return
    lines = [["method", "pre-trained on", "epochs", *(column.name for column in table.columns)]]
    for row in table.rows:
        numbers = ["-" if value is None else f"{value:.1f}" for value in row.numbers]
        lines.append([row.method, row.data, "-" if row.epochs is None else str(row.epochs), *numbers])
    for own in of_runs:
        numbers = ["-" if one is None else f"{one['value']:.1f}{'' if one['exact'] else '*'}" for one in own["numbers"]]
        of = f"{own['recipe']}{', ' * bool(own['ablation'])}{own['ablation']}" or "-"
        lines.append([own["name"], of, "yours" if own["epochs"] is None else f"yours, {own['epochs']:.3g}", *numbers])
    click.echo(f"Table {number} of the paper: {table.title}")
    click.echo("\n".join(_table(lines)))
    for own in of_runs:
        differs = [*dict.fromkeys(reason for one in own["numbers"] if one is not None for reason in one["differs"])]
        if differs:
            more = f"; and {len(differs) - _REASONS} more" if len(differs) > _REASONS else ""
            click.echo(f"* {own['name']}, not as in the paper: {'; '.join(differs[:_REASONS])}{more}")
    click.echo(f"protocol: {table.protocol}")
    click.echo("commands for each row: docs/tables.md")


def _print_paper(as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({name: row._asdict() for name, row in ABLATIONS.items()}))
        return
    lines = [
        [name, f"{row.top1}", f"{row.box_ap}", row.says, " ".join(row.settings) or "-"] for name, row in ABLATIONS.items()
    ]
    click.echo("\n".join(_table([["row", "top-1", "box AP", "what", "settings"], *lines])))


def _cells(row: dict[str, Any]) -> list[str]:
    terms = "+".join(_SHORT[name] for name in row["terms"])
    steps = str(row["steps"]) if row["step"] == row["steps"] else f"{row['step']}/{row['steps']}"
    how = [row["recipe"] or None, row["method"], row["backbone"], row["batch"], f"{row['lr']:g}"]
    cells = [row["name"], *how, terms, row["views"], row["regions"], row["K"], row["tries"], row["seed"], steps]
    numbers = [row["loss"], row["feature_std"]]
    return ["-" if cell is None else str(cell) for cell in cells] + ["-" if n is None else f"{n:.3f}" for n in numbers]


def _scores(row: dict[str, Any], protocols: list[str]) -> list[str]:
    return [f"{row['evaluations'][name]:.3f}" if name in row["evaluations"] else "-" for name in protocols]


def _table(lines: list[list[str]]) -> list[str]:
    """Return the lines with every column padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
