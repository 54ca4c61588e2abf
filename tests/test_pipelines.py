"""The scripts in pipelines/: they parse, stop before any work where something is missing, and run what they print."""

import os
import subprocess
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
