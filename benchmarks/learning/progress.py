"""Do measures without labels follow kNN while a run trains? Finished rows once more, with both recorded after each pass.

    python benchmarks/learning/progress.py --work out/learning --only drawn/byol-s0 drawn/K+two-s0

Each is trained anew as its cell was (in `WORK/progress/`, on with what is begun), looked at before the first step and after each
pass: kNN of the probe's images, and `measures.*` of 256 of the images that it learns from. It prints Spearman's correlation
over a run's passes, and writes `results/progress.json`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from grid import ROWS, SETS, cells
from labelfree import spearman

RESULTS = Path(__file__).resolve().parent / "results"
MEASURES = ("rankme", "lidar", "alignment", "uniformity", "feature_std", "loss")


def main() -> None:
    """Train, read, correlate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/learning"), help="where the benchmark's sets are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where progress.json is")
    parser.add_argument("--only", nargs="*", default=[], metavar="CELL", help="cells to train; none prints what is known")
    asked = parser.parse_args()
    out = asked.results / "progress.json"
    known = json.loads(out.read_text()) if out.exists() else {}
    for cell in cells():
        if cell.name in asked.only and cell.name not in known:
            known[cell.name] = _trained(cell, asked.work)
            out.write_text(json.dumps(known, sort_keys=True).replace("], [", "],\n[") + "\n")
    print(table(known))


def _trained(cell, work: Path) -> list[dict[str, float]]:
    made = SETS[cell.set]
    shards, run = work / made.images / "shards", work / "progress" / cell.name
    images = sum(shard["samples"] for shard in json.loads((shards / "manifest.json").read_text())["shards"])
    batch = next(int(text.partition("=")[2]) for text in reversed(cell.settings) if text.startswith("stream.batch_size="))
    epoch = images // batch
    train, val = (work / made.images / "probe" / part for part in ("train", "val"))
    more = [
        f"knn.train={train}", f"knn.val={val}", f"knn.every={epoch}", "measures.images=256", f"measures.every={epoch}",
        "stream.workers=0", "record_every=10",
    ]  # fmt: skip
    method = ROWS[cell.row].method
    subprocess.run(
        [
            sys.executable, "-m", "univip_stream", "train", "--shards", str(shards), "--out", str(run), "--recipe", "cpu-demo",
            "--seed", str(cell.seed), *(["--method", method] if method else []), "--quiet",
            *[word for text in [*cell.trained, *more] for word in ("--set", text)],
        ],
        check=True,
    )  # fmt: skip
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: record[name] for name in ("step", "knn_top1", *MEASURES) if name in record}
        for record in records
        if "rankme" in record
    ]


def table(known: dict) -> str:
    """Spearman with kNN over the passes of each run, by measure, and the mean over runs."""
    lines = [f"{'run':22}" + "".join(f"{name:>13}" for name in MEASURES) + "   kNN"]
    found = []
    for name, looks in sorted(known.items()):
        looks = [look for look in looks if "knn_top1" in look]
        knn = np.array([look["knn_top1"] for look in looks])
        found.append([spearman(np.array([look[measure] for look in looks]), knn) for measure in MEASURES])
        lines.append(f"{name:22}" + "".join(f"{value:>+13.2f}" for value in found[-1]) + f"   {knn[0]:.3f} to {knn[-1]:.3f}")
    if found:
        lines.append(f"{'mean':22}" + "".join(f"{value:>+13.2f}" for value in np.mean(found, axis=0)))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
