"""One cell: mine its set if that is not done, train, judge, look, and write one small JSON file.

It can be stopped at any moment: training resumes exactly, and what was used of time before counts.
"""

import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import data
import torch
from grid import ROWS, SETS, Cell
from terms import explain

from univip_stream import __version__
from univip_stream.evaluation.linear import PROTOCOLS, linear
from univip_stream.evaluation.nearest import knn
from univip_stream.evaluation.subject import open_subject
from univip_stream.probe.knn import KnnConfig
from univip_stream.probe.labelled import LabelledSource

_PACKAGE = [sys.executable, "-m", "univip_stream"]
_CURVE = 40
"""Points of a loss curve that are kept."""
STOPPED = 75
"""Exit status of a training that was asked to stop and saved."""


def prepare(name: str, work: Path, imagenette: Path | None, proposals: str | None = None) -> Path:
    """Make and mine a set, once, whoever asks first; return its shards, those of other proposals beside them."""
    images = SETS[name].images
    with held(work / f".{images}.lock", wait=True):
        folder = data.make(images, work, imagenette)
        shards = work / images / ("shards" if proposals is None else f"shards-{proposals}")
        if not (shards / "manifest.json").exists():
            mine = [*_PACKAGE, "mine", "--inline", "--src", str(folder), "--out", str(shards), "--num-shards", "8"]
            mine += ["--min-scale", "64" if images == "drawn" else "32"]
            subprocess.run([*mine, *(["--proposals", proposals] if proposals is not None else [])], check=True)
    if name != images:
        with held(work / f".{name}.lock", wait=True):
            data.make(name, work, imagenette)
    return shards


def run(cell: Cell, work: Path, imagenette: Path | None, results: Path, commit: str, lightly: Path | None = None) -> int:
    """Bring a cell to its end; 0, or the exit status of what failed or was stopped."""
    row = ROWS[cell.row]
    shards = prepare(cell.set, work, imagenette, row.proposals)
    folder = work / "runs" / cell.name
    spent = folder.parent / f"{folder.name}.spent.json"
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(spent.read_text()) if spent.exists() else {"wall_s": 0.0, "cpu_s": 0.0, "sittings": 0}
    if row.by_lightly and lightly is None:
        print(f"{cell.name}: left out, --lightly names no Python that has lightly (by_lightly.py says how)", file=sys.stderr)
        return 0
    first = None if row.after is None else Cell(set=cell.set, row=row.after, seed=cell.seed)
    if first is not None and not (results / f"{first.name}.json").exists():
        print(f"{cell.name}: left out until {first.name} is finished", file=sys.stderr)
        return 0
    command = [
        *_PACKAGE, "train", "--shards", str(shards), "--out", str(folder), "--recipe", "cpu-demo", "--seed", str(cell.seed),
        *(["--method", row.method] if row.method else []), *[word for text in cell.trained for word in ("--set", text)],
        "--set", "record_every=10", "--set", "checkpoint_every=100", "--quiet",
    ]  # fmt: skip
    if row.by_lightly:
        command = [str(lightly), str(Path(__file__).with_name("by_lightly.py")), *_for_lightly(cell, work, folder)]
    began, used = time.time(), _cpu_of_children()
    status = 0
    if first is not None:
        pairs = folder.parent / f"{folder.name}.pairs.parquet"
        status = _pairs(work / "runs" / first.name, shards, pairs)
        command += ["--set", f"views.pairs={pairs}"]
    status = status or _training(command)
    before["wall_s"] += time.time() - began
    before["cpu_s"] += _cpu_of_children() - used
    before["sittings"] += 1
    spent.write_text(json.dumps(before))
    if status:
        return status
    result = _judged(cell, folder, shards, work, imagenette) | {
        "commit": commit,
        "machine": machine(),
        "spent": {name: round(value, 1) for name, value in before.items()},
    }
    target = results / f"{cell.name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
    target.with_suffix(".part").replace(target)
    shutil.rmtree(folder / "features", ignore_errors=True)
    for checkpoint in sorted(folder.glob("checkpoints/*"))[:-1]:
        checkpoint.unlink()
    return 0


def _for_lightly(cell: Cell, work: Path, folder: Path) -> list[str]:
    """The arguments of `by_lightly.py` for a cell: what the same cell of ours is trained with."""
    from univip_stream.pretrain.recipes import recipe
    from univip_stream.pretrain.settings import with_settings

    config = with_settings(recipe("cpu-demo"), cell.trained)
    numbers = (
        config.epochs, config.stream.batch_size, config.optim.lr, config.optim.warmup_epochs, config.ema, config.views.scene_size,
        cell.seed,
    )  # fmt: skip
    return [str(work / SETS[cell.set].images / "images"), str(folder), *map(str, numbers)]


def _pairs(run: Path, shards: Path, out: Path) -> int:
    """Write the pairs of regions that a run finds, unless they are there; the exit status of what failed, else 0."""
    features = out.with_name(f"{out.name}.features.parquet")
    embed = [*_PACKAGE, "embed", str(run), str(shards), "--out", str(features), "--workers", "0", "--quiet"]
    retrieve = [*_PACKAGE, "retrieve", str(run), str(shards), "--features", str(features), "--out", str(out)]
    for command in () if out.exists() else (embed, [*retrieve, "--image-size", "32", "--workers", "0", "--quiet"]):
        if status := _training(command):
            return status
    features.unlink(missing_ok=True)
    return 0


_child: list["subprocess.Popen[bytes]"] = []


def pass_on(number: int) -> None:
    """A signal for the training that is going on; without one there is nothing to save, and this process ends."""
    if not _child:
        sys.exit(STOPPED)
    _child[0].send_signal(number)


def _training(command: list[str]) -> int:
    _child.append(subprocess.Popen(command))
    try:
        return _child[0].wait()
    finally:
        _child.clear()


def _judged(cell: Cell, folder: Path, shards: Path, work: Path, imagenette: Path | None) -> dict[str, Any]:
    votes, asked = (LabelledSource(str(_probe(name, work, imagenette))) for name in SETS[cell.set].probe)
    lightly = ROWS[cell.row].by_lightly
    subject = (
        open_subject(folder / "backbone.safetensors", image_size=64)
        if lightly
        else open_subject(folder, untrained=cell.row == "untrained")
    )
    how: dict[str, Any] = {"cache": folder / "features", "device": torch.device("cpu"), "workers": 0}
    near = knn(subject, votes, asked, KnnConfig(), **how)
    probe = linear(subject, votes, asked, PROTOCOLS["features"], **how)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    facts = _facts(cell, folder, shards)
    losses = [record["loss"] for record in records]
    tenth = max(1, len(losses) // 10)
    return {
        "set": cell.set,
        "row": cell.row,
        "seed": cell.seed,
        "fingerprint": cell.fingerprint,
        "settings": cell.settings,
        **facts,
        "knn": near["top1"],
        "linear": probe["top1"],
        "linear_rate": probe["rate"],
        "chance": near["chance"],
        "judged": near["val_images"],
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        **{name: records[-1][name] for name in ("feature_std", "filled") if name in records[-1]},
        "curve": [[record["step"], round(record["loss"], 4)] for record in records[:: max(1, len(records) // _CURVE)]],
        "explained": {}
        if lightly or cell.row == "untrained"
        else {k: round(v, 4) for k, v in explain(folder, shards).items()},
        "losses_sha256": hashlib.sha256(json.dumps(losses).encode()).hexdigest(),
        "weights_sha256": subject.weights_hash(),
    }


def _facts(cell: Cell, folder: Path, shards: Path) -> dict[str, Any]:
    """How many images there are, which, and how many were seen."""
    if ROWS[cell.row].by_lightly:
        manifest = json.loads((shards / "manifest.json").read_text())
        steps = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        images = sum(shard["samples"] for shard in manifest["shards"])
        batch = int(_for_lightly(cell, shards, folder)[3])
        return {"images": images, "shards": "the pictures themselves", "steps": steps, "images_seen": steps * batch}
    config = json.loads((folder / "config.json").read_text())
    batch = config["config"]["stream"]["batch_size"]
    return {
        "images": config["shards"]["images"],
        "shards": config["shards"]["fingerprint"],
        "steps": config["steps"],
        "images_seen": 0 if cell.row == "untrained" else config["steps"] * batch,
    }


def _probe(name: str, work: Path, imagenette: Path | None) -> Path:
    if not name.startswith("imagenette:"):
        return work / name
    split = name.partition(":")[2]
    return data.photographs(imagenette, split)[0].parents[1]


def machine() -> dict[str, Any]:
    """What bits can depend on, and times."""
    model = "unknown"
    if (info := Path("/proc/cpuinfo")).exists():
        model = next(
            (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": model, "capability": capability, "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
        "python": platform.python_version(), "torch": torch.__version__, "univip-stream": __version__,
    }  # fmt: skip


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file; give False where another process has it and nobody wants to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
