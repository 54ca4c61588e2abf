"""Part e: BYOL, then UniVIP: ResNet-18, Imagenette at 128 px, kNN on the held-out images while they train.

lightly's own table has BYOL at .705 after 200 epochs (batch 256, SGD .06 x batch / 256, target momentum .99; 54 minutes on an
A6000). The number of epochs is what fits, decided once by a short run of UniVIP, the slower one, and kept in --work: a second
start goes on there.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from part import OutOfTimeError, Part, running
from pictures import imagenette
from processes import started

SETTINGS = [
    "method.backbone=resnet18", "method.hidden=1024", "method.width=256", "views.scene_size=128", "views.instance_size=64",
    "views.min_scale=32", "stream.batch_size=256", "stream.workers=8", "optim.lr=0.06", "optim.weight_decay=0.0005",
    "optim.warmup_epochs=1", "ema=0.99", "checkpoint_every=200", "record_every=20",
]  # fmt: skip
REFERENCE = {"byol at 200 epochs, lightly": 0.705, "images a second of it": 584}
LOOKS = 2
"""kNN so many times a run: each reads all images again, for seconds."""


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
    process, cut = started(command), False
    try:
        status = process.wait(timeout=limit)
    except (subprocess.TimeoutExpired, OutOfTimeError) as error:
        cut = True
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout=12)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        if isinstance(error, OutOfTimeError):
            raise
    rows = list(recorded(run / "metrics.jsonl"))
    if cut and not rows:
        return {"left_out": f"no step was recorded in {limit:.0f} s"}
    if (status not in (0, 75) and not cut) or not rows:
        raise RuntimeError(f"training ended with {status} after {len(rows)} recorded steps")
    seen = [(row["epoch"], row["knn_top1"]) for row in rows if "knn_top1" in row]
    last = rows[-1]
    facts = {name: last[name] for name in ("step", "epoch", "loss", "feature_std", "data_wait")}
    rates = sorted(row["images_per_second"] for row in rows[1:]) or [last["images_per_second"]]
    return {"status": status, **facts, "images_per_second": rates[len(rates) // 2], "knn": seen}


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run's metrics; a line that was cut off with its run is none."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def main(part: Part) -> None:
    made: dict[str, Any] = {}

    def make() -> dict[str, Any]:
        *made["paths"], made["images"], origin = imagenette(part.work, few=part.rehearse)
        return {"images": origin, "count": made["images"], "reference": REFERENCE}

    part.attempt("shards", make)
    if "paths" not in made:
        return
    (shards, voting, judged), images = made["paths"], made["images"]
    plan_path = part.work / "learning-plan.json"

    def plan() -> dict[str, Any]:
        if plan_path.exists():
            return json.loads(plan_path.read_text()) | {"note": "of an earlier start"}
        run, start = part.work / f"probe-{time.time_ns()}", time.monotonic()
        steps, batch = (2, 8) if part.rehearse else (40, 256)
        command = command_of(part, run, shards, "univip", f"steps={steps}", "record_every=10")
        found = trained(part, command, run, 600.0 if part.rehearse else max(20.0, part.left() / 3))
        if "left_out" in found:
            return found | {"epochs": 1}
        rate = found["images_per_second"]
        # What a run takes beside its steps: starting, and going through the labelled images, first to see that all can be read.
        beside = max(0.0, time.monotonic() - start - found["step"] * batch / rate) + (1 + LOOKS) * 3
        each = (part.left() - 15) / 2 - beside
        planned = {
            "images_per_second": rate,
            "beside_s": round(beside, 1),
            "epochs": 1 if part.rehearse else max(1, min(200, int(each * rate / images * 0.9))),
        }
        written = plan_path.with_suffix(".part")
        written.write_text(json.dumps(planned))
        written.replace(plan_path)
        return planned

    planned = part.attempt("plan", plan)
    if "epochs" not in planned:
        return
    for method in ("byol", "univip"):
        # A run of another length is another run: its learning rates are others.
        run = part.work / f"learning-{method}-{planned['epochs']}"
        every = max(1, -(-planned["epochs"] * images // 256 // LOOKS))
        look = [f"knn.train={voting}", f"knn.val={judged}", f"knn.every={every}"]
        command = command_of(part, run, shards, method, *look, f"epochs={planned['epochs']}")
        limit = 600.0 if part.rehearse else max(10.0, (part.left() - 15) / (2 if method == "byol" else 1))
        part.attempt(method, lambda c=command, r=run, most=limit: trained(part, c, r, most), wants=25)  # type: ignore[misc]


if __name__ == "__main__":
    with running() as part:
        main(part)
