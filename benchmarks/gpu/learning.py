"""Part e: BYOL, then UniVIP: ResNet-18, Imagenette at 128 px, kNN on the held-out images while they train.

lightly's own table has BYOL at .705 after 200 epochs (batch 256, SGD .06 x batch / 256, target momentum .99; 54 minutes on an
A6000). The number of epochs is what fits, decided once by a short run's rate and kept in --work: a second start goes on there.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from part import OutOfTimeError, Part, running
from pictures import imagenette

SETTINGS = [
    "method.backbone=resnet18", "method.hidden=1024", "method.width=256", "views.scene_size=128", "views.instance_size=64",
    "views.min_scale=32", "stream.batch_size=256", "stream.workers=8", "optim.lr=0.06", "optim.weight_decay=0.0005",
    "optim.warmup_epochs=1", "ema=0.99", "checkpoint_every=200", "record_every=20",
]  # fmt: skip
REFERENCE = {"byol at 200 epochs, lightly": 0.705, "images a second of it": 584}
IMAGES = 9469


def command_of(part: Part, run: Path, shards: Path, method: str, *more: str) -> list[str]:
    settings = [*SETTINGS, *more]
    if part.rehearse:
        settings += [
            "method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32", "views.instance_size=32",
            "stream.batch_size=8", "stream.workers=0", "record_every=1",
        ]  # fmt: skip
    words = [word for setting in settings for word in ("--set", setting)]
    base = [sys.executable, "-m", "univip_stream", "train", "--shards", str(shards), "--out", str(run), "--recipe", "coco"]
    return [*base, "--method", method, "--device", str(part.device), *words]


def trained(part: Part, command: list[str], run: Path, limit: float) -> dict[str, Any]:
    """Run a training until it is done or its time is over; asked to stop, it saves and can go on."""
    process = subprocess.Popen(command)
    try:
        status = process.wait(timeout=limit)
    except (subprocess.TimeoutExpired, OutOfTimeError) as error:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout=12)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if isinstance(error, OutOfTimeError):
            raise
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    rows = [json.loads(line) for line in lines]
    if status not in (0, 75) or not rows:
        raise RuntimeError(f"training ended with {status} after {len(rows)} recorded steps")
    seen = [(row["epoch"], row["knn_top1"]) for row in rows if "knn_top1" in row]
    last = rows[-1]
    facts = {name: last[name] for name in ("step", "epoch", "loss", "feature_std", "data_wait")}
    rates = sorted(row["images_per_second"] for row in rows[1:]) or [last["images_per_second"]]
    return {"status": status, **facts, "images_per_second": rates[len(rates) // 2], "knn": seen}


def main(part: Part) -> None:
    made: dict[str, Any] = {}

    def make() -> dict[str, Any]:
        made["paths"] = imagenette(part.work, few=part.rehearse)
        return {"images": made["paths"][3], "reference": REFERENCE}

    part.attempt("shards", make)
    if "paths" not in made:
        return
    shards, voting, judged, _ = made["paths"]
    plan_path = part.work / "learning-plan.json"

    def plan() -> dict[str, Any]:
        if plan_path.exists():
            return json.loads(plan_path.read_text()) | {"note": "of an earlier start"}
        found = {}
        for method in ("byol", "univip"):
            run = part.work / f"probe-{method}-{time.time_ns()}"
            steps = 2 if part.rehearse else 60
            command = command_of(part, run, shards, method, f"steps={steps}")
            found[method] = trained(part, command, run, max(10.0, part.left() / 4))["images_per_second"]
        limit = max(part.left() - 25, 1.0) / 2 * 0.85
        epochs = {
            method: 1 if part.rehearse else max(1, min(200, int(limit * rate / IMAGES))) for method, rate in found.items()
        }
        planned = {"images_per_second": found, "epochs": min(epochs.values())}
        plan_path.write_text(json.dumps(planned))
        return planned

    planned = part.attempt("plan", plan)
    if "epochs" not in planned:
        return
    for method in ("byol", "univip"):
        run = part.work / f"learning-{method}"
        every = max(1, planned["epochs"] * IMAGES // 256 // 4)
        look = [f"knn.train={voting}", f"knn.val={judged}", f"knn.every={every}", f"epochs={planned['epochs']}"]
        command = command_of(part, run, shards, method, *look)
        limit = 600.0 if part.rehearse else max(10.0, (part.left() - 15) / (2 if method == "byol" else 1))
        part.attempt(method, lambda c=command, r=run, most=limit: trained(part, c, r, most), wants=25)  # type: ignore[misc]


if __name__ == "__main__":
    with running() as part:
        main(part)
