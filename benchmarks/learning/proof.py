"""The smallest cell once more, from images to score, beside what is committed."""

import json
import shutil
import sys
from pathlib import Path

import cell as job
from grid import cells


def main(name: str, results: Path, work: Path, commit: str) -> int:
    """Train and judge a cell in a fresh folder; 0 if it is bit for bit what was committed.

    Bits depend on the processor's instructions and on torch: where those differ the scores are compared by eye, and it says so.
    """
    committed = json.loads((results / f"{name}.json").read_text())
    shutil.rmtree(work, ignore_errors=True)
    [cell] = [cell for cell in cells() if cell.name == name]
    if status := job.run(cell, work, None, work / "results", commit):
        return status
    again = json.loads((work / "results" / f"{name}.json").read_text())
    same = True
    for what in ("fingerprint", "shards", "losses_sha256", "weights_sha256", "knn", "linear"):
        equal = committed[what] == again[what]
        same = same and equal
        print(f"{what:15} {'equal' if equal else f'committed {committed[what]}, here {again[what]}'}")
    if same:
        print(f"{name}: bit for bit what commit {committed['commit']} gave")
        return 0
    theirs, ours = ({k: v for k, v in of["machine"].items() if k != "cores"} for of in (committed, again))
    if theirs != ours:
        print(f"another machine or other libraries, so bits may differ: {theirs} there, {ours} here", file=sys.stderr)
    print(f"{name}: not what commit {committed['commit']} gave", file=sys.stderr)
    return 1
