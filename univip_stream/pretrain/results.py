"""Results of runs: their settings, their last losses and their evaluations, a row for each run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from univip_stream.errors import InputError, why
from univip_stream.pretrain.load import CONFIG
from univip_stream.pretrain.paper import Table
from univip_stream.pretrain.settings import flat_dict
from univip_stream.record import METRICS

EVALUATIONS = "eval"
"""Folder of a run in which `results` looks for files that `eval ... --out` wrote; it looks in the run folder too."""

TERMS = {"scene": "method.scene", "scene-instance": "method.scene_instance", "instance": "method.instance"}


PAPER: dict[tuple[str, str], dict[str, float]] = {
    ("coco", "univip"): {"linear": 0.602, "detect bbox": 0.408, "detect segm": 0.368},
    ("coco", "byol"): {"linear": 0.578, "detect bbox": 0.395, "detect segm": 0.356},
    ("coco-plus", "univip"): {"linear": 0.630, "detect bbox": 0.411, "detect segm": 0.371},
    ("coco-plus", "byol"): {"linear": 0.596, "detect bbox": 0.400, "detect segm": 0.362},
    ("imagenet-200", "univip"): {"linear": 0.731, "detect bbox": 0.416, "detect segm": 0.376},
    ("imagenet-200", "byol"): {"linear": 0.706, "detect bbox": 0.407, "detect segm": 0.369},
    ("imagenet-300", "univip"): {"linear": 0.742, "detect bbox": 0.422, "detect segm": 0.382},
    ("imagenet-300", "byol"): {"detect bbox": 0.409, "detect segm": 0.370},
}
"""The paper's results for a recipe and method (`paper_tables` has all its tables): ImageNet top-1 of a linear probe (Table 1),
COCO's box and mask AP of Mask R-CNN R50-FPN, 1x (Tables 2 and 4)."""


def collect(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return one row for each run, in the order given; a folder of runs stands for the runs in it, by name.

    A row has name, recipe, method, backbone, batch (images a step), lr (its peak), terms, views (overlap or random), regions,
    K, tries, seed, step, steps, loss (mean of the last tenth of the records; None before the first), feature_std, and top1 or
    AP by protocol in `evaluations`.

    Raises:
        InputError: a folder is not a run and holds none, or the files of a run cannot be read.

    """
    return [_row(run) for run in run_folders(paths)]


def run_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the folders of the runs that paths name; a folder of runs stands for the runs in it, by name.

    Raises:
        InputError: a folder is not a run and holds none.

    """
    runs = []
    for path in paths:
        if (path / CONFIG).is_file():
            runs.append(path)
            continue
        inside = sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
        if not inside:
            raise InputError(f"{path} is no run and holds none; expected folders that `univip-stream train --out` made")
        runs += inside
    return runs


def records_of(run: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded so far, a dictionary for each recorded step.

    Raises:
        InputError: a line is not a JSON object with a step.

    """
    try:
        found = _records(run / METRICS)
        if all(isinstance(record["step"], int) for record in found):
            return found
        wrong = "a step that is no whole number"
    except (ValueError, KeyError, TypeError) as error:
        wrong = why(error)
    raise InputError(f"{run / METRICS} cannot be read ({wrong}); expected an object a line, with its step")


def last_record(run: Path) -> dict[str, Any] | None:
    """Return the last line of a run's metrics; None if there is none yet."""
    records = _records(run / METRICS)
    return records[-1] if records else None


_NUMBERS = ("batch", "lr", "K", "tries", "seed", "step", "steps", "loss", "feature_std")


def _row(run: Path) -> dict[str, Any]:
    try:
        facts = json.loads((run / CONFIG).read_bytes())
        settings, steps = flat_dict(facts["config"]), facts["steps"]
        # What was measured before the first step has no loss.
        records = [record for record in _records(run / METRICS) if record["step"]]
        K = settings["views.instances"]
        on = _terms(settings, K, records)
        last = records[-max(1, len(records) // 10) :]
        row = {
            "name": run.name,
            "recipe": settings["recipe"],
            "method": settings["method.name"],
            "backbone": settings["method.backbone"],
            "batch": settings["stream.batch_size"],
            "lr": settings["optim.lr"],
            "terms": on,
            "views": "overlap" if settings["views.overlap"] else "random",
            "regions": settings["views.regions"] if K else "none",
            "K": K,
            "tries": settings["views.tries"] if settings["views.overlap"] else None,
            "seed": settings["seed"],
            "step": records[-1]["step"] if records else 0,
            "steps": steps,
            "loss": sum(record["loss"] for record in last) / len(last) if last else None,
            "feature_std": records[-1].get("feature_std") if records else None,
            "evaluations": _evaluations(run),
        }
        for name in _NUMBERS:
            if row[name] is not None and (isinstance(row[name], bool) or not isinstance(row[name], int | float)):
                raise ValueError(f"its {name} is {row[name]!r:.40}, and no number")
        return row
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{run} cannot be read as a run ({why(error)})") from error


def _terms(settings: dict[str, Any], K: int, records: list[dict[str, Any]]) -> list[str]:
    """Return the names of the terms of a run's loss."""
    method = settings["method.name"]
    if method not in ("univip", "byol"):
        found = [name.removeprefix("loss_") for name in (records[-1] if records else {}) if name.startswith("loss_")]
        return [name.replace("_", "-") for name in found]
    # BYOL has only the scene's term, whatever the switches are; so has UniVIP without instances.
    scene_only = method == "byol" or K == 0
    return ["scene"] if scene_only else [name for name, key in TERMS.items() if settings[key]]


def _records(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A run that is being written may end in half a line.
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]


def judged(path: Path) -> list[dict[str, Any]]:
    """Read what `eval --out` wrote: for a run, in its folder and in its `eval/`; for another folder, in it; or one file.

    Raises:
        InputError: a file that cannot be read, or a place that holds none.

    """
    try:
        found = _results([path] if path.is_file() else [*path.glob("*.json"), *(path / EVALUATIONS).glob("*.json")])
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read as results ({why(error)}); expected JSON that `eval ... --out` wrote"
        ) from error
    if not found and not (path / CONFIG).is_file():
        raise InputError(f"{path} is no run and holds no result; expected run folders, or JSON that `eval ... --out` wrote")
    return found


def own_rows(table: Table, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of one's own for a table of the paper: name, recipe and, for each column, the number in per cent or None.

    Runs have one row each. Results of networks that are no run's (`eval --subject`) have one row a network.

    Raises:
        InputError: as `judged`.

    """
    rows = []
    for path in _places(paths):
        of_network: dict[str, list[dict[str, Any]]] = {}
        for result in judged(path):
            of_network.setdefault(
                path.name if path.is_dir() and (path / CONFIG).is_file() else str(result.get("run")), []
            ).append(result)
        recipe = _recipe_of(path)
        for name, found in (of_network or {path.name: []}).items():
            numbers = [next((one for one in map(column.of, found) if one is not None), None) for column in table.columns]
            told = [None if one is None else {"value": one[0], "exact": one[1]} for one in numbers]
            rows.append({"name": name, "recipe": recipe, "numbers": told})
    return rows


def _places(paths: Iterable[Path]) -> list[Path]:
    """Runs, folders and files of results; a folder of runs stands for those in it."""
    found = []
    for path in paths:
        inside = [] if (path / CONFIG).is_file() else sorted(config.parent for config in path.glob(f"*/{CONFIG}"))
        found += inside or [path]
    return found


def _recipe_of(path: Path) -> str:
    if not (path / CONFIG).is_file():
        return ""
    row = _row(path)
    return f"{row['recipe']} {row['method']}".strip()


def _results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    found = [json.loads(path.read_bytes()) for path in sorted(paths)]
    return [result for result in found if isinstance(result, dict) and "protocol" in result]


def _evaluations(run: Path) -> dict[str, float]:
    found = {}
    for result in _results([*run.glob("*.json"), *(run / EVALUATIONS).glob("*.json")]):
        if "top1" in result:
            found[str(result["protocol"])] = float(result["top1"])
        for kind in ("bbox", "segm"):
            if kind in result:
                found[f"{result['protocol']} {kind}"] = float(result[kind]["AP"])
    return found
