"""The scripts in pipelines/: they parse, stop before any work where something is missing, and run what they print."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **variables}
    return subprocess.run(
        ["bash", f"pipelines/{script}"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "pipelines").glob("*.sh")))
def test_a_script_parses(script: str):
    subprocess.run(["bash", "-n", f"pipelines/{script}"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("script", "recipe", "folders", "top1"),
    [
        ("coco.sh", "coco", ["train2017"], "60.2"),
        ("coco_plus.sh", "coco-plus", ["train2017", "unlabeled2017"], "63.0"),
        ("imagenet.sh", "imagenet-300", ["train", "val"], "74.2"),
    ],
)
def test_a_dry_run_prints_the_road_of_its_recipe_and_the_papers_number(script, recipe, folders, top1, tmp_path):
    variables = {"COCO": str(tmp_path), "IMAGENET": str(tmp_path), "EPOCHS": "300", "DRY_RUN": "1", "GPUS": "8"}
    missing = run(script, **variables)
    assert missing.returncode == 1
    assert f"error: {tmp_path}/{folders[0]} is not a folder" in missing.stderr
    for folder in folders:
        (tmp_path / folder).mkdir()
    done = run(script, OUT="out/x", **variables)
    assert done.returncode == 0, done.stderr
    for folder in folders:
        assert f"{tmp_path}/{folder}" in done.stdout
    assert (
        "torchrun --standalone --nproc-per-node 8 -m univip_stream train --shards out/x/shards --out out/x/run "
        f"--recipe {recipe}\n" in done.stdout
    )
    assert top1 in done.stdout
    assert not (ROOT / "out" / "x").exists()


SBATCH = """#!/usr/bin/env bash
# What Slurm does with an array and a job that waits for it, as far as slurm_mine.sh asks: run here, one after the other.
set -euo pipefail
echo "sbatch $*" >> "$ASKED"
array=0-0
wrap=""
while [ $# -gt 0 ]; do
    case "$1" in
        --array) array=$2; shift ;;
        --wrap) wrap=$2; shift ;;
    esac
    shift
done
for ((at = ${array%-*}; at <= ${array#*-}; at++)); do
    echo "#!/bin/sh
$wrap" > "$ASKED.script"
    SLURM_ARRAY_TASK_ID=$at sh "$ASKED.script" >&2
done
echo "$(grep -c '^sbatch ' "$ASKED");cluster"
"""


def test_a_slurm_array_mines_the_set_of_one_job(drawn_folder, drawn_shards, tmp_path):
    (tmp_path / "bin").mkdir()
    for name, text in (
        ("sbatch", SBATCH),
        ("univip-stream", f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m univip_stream "$@"\n'),
    ):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def called(*words, **variables):
        path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "ASKED": str(tmp_path / "asked"), **variables}
        words = ["bash", "pipelines/slurm_mine.sh", *map(str, words)]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)

    out = tmp_path / "out put"
    options = ["--src", drawn_folder, "--out", out, "--num-shards", 3, "--proposals", "naive"]
    for wrong in (called(*options), called(*options, PARTS="0"), called("--src", drawn_folder, PARTS="2")):
        assert (wrong.returncode, "expected PARTS=64" in wrong.stderr) == (2, True)
    assert "leave it out" in called(*options, "--part", "1/2", PARTS="2").stderr
    done = called(*options, PARTS="2", SBATCH="--partition cpu --time 4:00:00")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "parts: job 1, tasks 1 to 2; they are joined by job 2. If a task fails, give this command again\n"
    asked = (tmp_path / "asked").read_text()
    assert "--array 1-2 --requeue --partition cpu --time 4:00:00 --wrap" in asked
    assert "--dependency afterok:1 " in asked
    files = sorted(path.name for path in drawn_shards.iterdir())
    assert sorted(path.name for path in out.iterdir()) == files
    assert all((out / name).read_bytes() == (drawn_shards / name).read_bytes() for name in files)
