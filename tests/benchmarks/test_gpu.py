"""The GPU's ten minutes, rehearsed: the cheapest part runs on a CPU, and what takes too long is stopped with its JSON kept.

The other parts take minutes on two cores: `bash benchmarks/gpu.sh OUT --rehearse` runs them all.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def rehearse(out: Path, parts: str, budget: int) -> tuple[int, dict, str]:
    command = ["bash", "benchmarks/gpu.sh", str(out), "--rehearse", "--parts", parts, "--budget", str(budget)]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--work", str(out / "work")], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert (out / "summary.json").exists(), done.stdout + done.stderr
    return done.returncode, json.loads((out / "summary.json").read_text()), (out / "transcript.txt").read_text()


def test_a_part_runs_and_leaves_its_json_and_its_words(tmp_path):
    status, summary, words = rehearse(tmp_path, "c", 250)
    assert status == 0, words
    assert summary["parts"]["c"]["failed"] == []
    entries = json.loads((tmp_path / "c.json").read_text())["entries"]
    assert entries["step"]["images_per_second"] > 0
    assert entries["share"]["of_step"] > 0
    assert "what augmentation costs of a step" in words


def test_a_part_that_takes_too_long_is_stopped_and_the_next_one_runs(tmp_path):
    status, summary, words = rehearse(tmp_path, "dc", 4)
    assert status == 1
    assert [*summary["parts"]] == ["d", "c"]
    assert "stopped at its limit" in str(summary["parts"]["d"]["status"]), words
    assert summary["parts"]["d"]["seconds"] < 60


def test_the_gpus_tests_are_rehearsed_where_they_are_cheap():
    # They are skipped without a GPU, so that nobody would see them fall behind what they test.
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-k", "begins_as or nothing_waits"], cwd=ROOT, env=os.environ | {"UNIVIP_GPU_TESTS": "cpu"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout


def test_no_gpu_is_said_in_a_sentence_and_no_part_is_lost(tmp_path):
    import pytest
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", str(tmp_path), "--parts", "c"], cwd=ROOT, env=os.environ | {"PYTHON": sys.executable},
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 1
    assert "torch finds no GPU here; --rehearse runs everything in small on the CPU" in done.stdout
    assert "Traceback" not in done.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["parts"]["c"]["status"] == 1
