"""Results of runs: their settings, their last losses and their evaluations, a row for each run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from univip_stream.errors import InputError, why
from univip_stream.pretrain.ablations import ABLATIONS
from univip_stream.pretrain.load import CONFIG
from univip_stream.pretrain.paper import Column, Table
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.reference import KINDS
from univip_stream.pretrain.settings import flat, flat_dict, with_settings
from univip_stream.record import METRICS

EVALUATIONS = "eval"
"""Folder of a run in which `results` looks for files that `eval ... --out` wrote; it looks in the run folder too."""

_ONCE = 90_000
"""Iterations of the 1x schedule, of which `PAPER` has the numbers."""
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
        found = _results([path] if path.is_file() else _files(path))
    except ValueError as error:
        raise InputError(
            f"{path} cannot be read as results ({why(error)}); expected JSON that `eval ... --out` wrote"
        ) from error
    if not found and not (path / CONFIG).is_file():
        raise InputError(f"{path} is no run and holds no result; expected run folders, or JSON that `eval ... --out` wrote")
    return found


def own_rows(table: Table, number: int, paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Rows of one's own for a table of the paper: name, recipe, ablation, epochs and, for each column, its number or None.

    Runs have one row each. Results of networks that are no run's (`eval --subject`) have one row a network. Where several
    results are of one column, the one counts that is nearest to the paper's protocol.

    Args:
        table: the table.
        number: its number, for the name of an ablation that is in several tables.
        paths: runs, folders of runs or of results, and files of results.

    Returns:
        For each: `name`; `recipe`, with the method; `ablation`, the row of Tables 7 to 9 whose settings the run has, "" for none;
        `epochs` that the run has trained, None where that is not known; `numbers`, each None or `value` in per cent, `exact`,
        and `differs`: what of network, data and protocol is not the paper's.

    Raises:
        InputError: as `judged`.

    """
    rows = []
    for path in _places(paths):
        run = _run_of(path, number)
        of_network: dict[str, list[dict[str, Any]]] = {run["name"]: []} if run else {}
        for result in judged(path):
            subject = str(result.get("run"))
            own = run is not None and subject.partition(":")[0] not in KINDS
            of_network.setdefault(run["name"] if run and own else subject, []).append(
                {**result, "recipe": run["of"] if run and own else ""}
            )
        for name, found in of_network.items():
            told = [nearest(column, found) for column in table.columns]
            facts = {key: run[key] for key in _TOLD} if run and name == run["name"] else _NO_RUN
            if any(told) or facts is not _NO_RUN or not run:
                rows.append({"name": name, **facts, "numbers": told})
    return rows


_TOLD = ("recipe", "ablation", "epochs")
_NO_RUN: dict[str, Any] = {"recipe": "", "ablation": "", "epochs": None}


def nearest(column: Column, found: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return a column's number in the result that is nearest to its protocol; None if no result is of that column."""
    numbers = [one for one in map(column.of, found) if one is not None]
    if not numbers:
        return None
    best = min(numbers, key=lambda one: len(one.differs))
    return {"value": best.value, "exact": not best.differs, "differs": list(best.differs)}


def _places(paths: Iterable[Path]) -> list[Path]:
    """Runs, folders and files of results; a folder of such folders stands for those in it."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir() or (path / CONFIG).is_file():
            found.append(path)
            continue
        inside = [child for child in sorted(path.iterdir()) if child.is_dir() and (child / CONFIG).is_file()]
        if not inside and not _files(path):
            inside = [child for child in sorted(path.iterdir()) if child.is_dir() and _files(child)]
        found += inside or [path]
    return found


def _files(folder: Path) -> list[Path]:
    return [*folder.glob("*.json"), *(folder / EVALUATIONS).glob("*.json")]


def _run_of(path: Path, table: int) -> dict[str, Any] | None:
    """Return what is told of a run beside its numbers; None if it is no run."""
    if not (path / CONFIG).is_file():
        return None
    row = _row(path)
    facts = json.loads((path / CONFIG).read_bytes())
    images = facts.get("shards", {}).get("images")
    names = _ablations_with(flat_dict(facts["config"])) if row["recipe"] == "coco" else []
    return {
        "name": row["name"], "of": row["recipe"], "recipe": f"{row['recipe']} {row['method']}".strip(),
        "ablation": next((name for name in names if name.startswith(str(table))), next(iter(names), "")),
        "epochs": row["step"] * row["batch"] / images if isinstance(images, int) and images else None,
    }  # fmt: skip


def _ablations_with(settings: dict[str, Any]) -> list[str]:
    """Return the names of the ablations that a run of recipe coco is, by the settings in which any of them differs.

    Rows that only their shards tell from others are not named.
    """
    keys = {one.partition("=")[0] for row in ABLATIONS.values() for one in row.settings}
    of_rows = {
        name: flat(with_settings(recipe("coco"), row.settings)) for name, row in ABLATIONS.items() if row.proposals is None
    }
    return [name for name, own in of_rows.items() if all(settings.get(key) == own.get(key) for key in keys)]


def _results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    found = [json.loads(path.read_bytes()) for path in sorted(paths)]
    return [result for result in found if isinstance(result, dict) and "protocol" in result]


def _evaluations(run: Path) -> dict[str, float]:
    found = {}
    for result in _results(_files(run)):
        name = _protocol_of(result)
        for key in ("top1", "mAP"):
            if key in result:
                found[name] = float(result[key])
        for kind in ("bbox", "segm", "voc"):
            if kind in result:
                found[f"{name} {kind}"] = float(result[kind]["AP"])
    return found


def _protocol_of(result: dict[str, Any]) -> str:
    """Name a result's protocol so that unlike ones have no column together: the bare name is what `PAPER` has numbers of."""
    name = str(result["protocol"])
    own = result.get(name)
    how: dict[str, Any] = own if isinstance(own, dict) else {}
    if name == "linear" and how.get("name") in ("orl-last", "features"):
        return f"linear {how['name']}"
    if name == "finetune" and isinstance(result.get("fraction"), int | float):
        return f"finetune {result['fraction']:.3g}"
    if name == "detect" and how:
        model, iterations, voc = how.get("model", "mask-rcnn"), how.get("iterations", _ONCE), "voc" in result
        others = (
            [model] * (model != "mask-rcnn")
            + ["VOC07"] * voc
            + [f"{iterations} iterations"] * (iterations != _ONCE and not voc)
        )
        return " ".join([name, *map(str, others)])
    return name
