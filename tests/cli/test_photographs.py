"""`train --src`: from photographs to a backbone in one command, resumable at every point."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.shards.verify import verify_folder

SMALL = [
    "--backbone", "test_resnet", "--steps", "3", "--set", "method.hidden=32", "--set", "method.width=16",
    "--set", "stream.workers=0", "--set", "precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("src") / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        image = np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((80, 80, 1))).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number}.jpg"), image)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def called(*words):
    return CliRunner().invoke(cli, ["train", *map(str, words)], catch_exceptions=False)


@pytest.fixture
def by_itself(monkeypatch):
    """Mining without Ray, which other tests start: as on a machine with one CPU."""
    monkeypatch.setattr("univip_stream.api.photographs.usable_cpus", lambda: 1)


@pytest.mark.slow
def test_one_command_from_photographs_to_a_backbone_and_again(photographs, tmp_path, by_itself):
    run = tmp_path / "runs" / "first"
    done = called("--src", photographs, "--out", run, *SMALL, "--json")
    assert done.exit_code == 0, done.output
    assert "1 of 2: mining\n13 images -> " in done.stderr
    assert "broken.jpg: unreadable" in done.stderr
    assert "views.scene_size = 64: small scenes" in done.stderr
    assert "method.backbone = test_resnet (yours)" in done.stderr
    assert json.loads(done.stdout)["step"] == 3
    assert verify_folder(run / "shards") == []
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["recipe"], config["steps"], config["views"]["scene_size"]) == ("auto", 3, 64)
    assert (run / "backbone.safetensors").exists()
    # The set of a run that has begun stands, whatever comes to the folder.
    cv2.imwrite(str(photographs / "new.jpg"), np.zeros((240, 320, 3), np.uint8))
    again = called("--src", photographs, "--out", run, *SMALL)
    (photographs / "new.jpg").unlink()
    assert again.exit_code == 0, again.output
    assert "--src is not read again" in again.stderr
    assert "finished before" in again.output
    other = called("--src", photographs, "--out", run, *SMALL, "--set", "optim.lr=0.3")
    assert other.exit_code == 1
    assert "optim.lr" in other.stderr


@pytest.mark.slow
def test_shards_are_kept_where_one_asks_for_them_and_serve_the_next_run(photographs, tmp_path, by_itself):
    for name in ("one", "two"):
        done = called("--src", photographs, "--shards", tmp_path / "set", "--out", tmp_path / name, *SMALL)
        assert done.exit_code == 0, done.output
        assert not (tmp_path / name / "shards").exists()
    assert "13 of them mined before" in done.stderr
    done = called("--shards", tmp_path / "set", "--recipe", "auto", "--out", tmp_path / "three", *SMALL)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_more_broken_photographs_than_are_put_up_with(photographs, tmp_path, by_itself):
    done = called("--src", photographs, "--out", tmp_path / "run", *SMALL, "--max-failures", "0")
    assert done.exit_code == 1
    assert "broken.jpg" in done.stderr
    again = called("--src", photographs, "--out", tmp_path / "run", *SMALL)
    assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_a_budget_is_the_length(photographs, tmp_path, by_itself):
    words = [word for word in SMALL if word not in ("--steps", "3")]
    done = called("--src", photographs, "--out", tmp_path / "run", "--time", "2s", *words)
    assert done.exit_code == 0, done.output
    assert "2 s allow at" in done.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert 0 < config["epochs"] < 800


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "neither --src nor --shards"),
        (["--src", "photos", "--shards", "s3://bucket/set"], "expected one local folder"),
        (["--src", "photos", "--shards", "a", "--shards", "b"], "expected one local folder"),
        (["--src", "photos", "--recipe", "cpu-demo", "--time", "2h"], "--time is for recipe auto"),
        (["--src", "photos", "--time", "soon"], "expected a time such as 2h"),
        (["--src", "photos", "--launcher", "ray"], "recipe auto measures"),
    ],
)
def test_wrong_use(words, says, tmp_path):
    done = called(*words, "--out", tmp_path / "run")
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert not (tmp_path / "run").exists()


def test_several_ranks_neither_mine_nor_choose(photographs, tmp_path, monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    done = called("--src", photographs, "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "each would mine" in done.stderr
    done = called("--shards", photographs, "--recipe", "auto", "--out", tmp_path / "run")
    assert done.exit_code == 2
    assert "several ranks would each choose" in done.stderr


@pytest.mark.ray
def test_stopped_while_mining_it_goes_on(photographs, tmp_path, warm):
    """A scheduler's SIGTERM while Ray mines ends with 75, as in training; the same command then does the rest, also on one CPU."""
    command = [
        sys.executable,
        "-m",
        "univip_stream",
        "train",
        "--src",
        str(photographs),
        "--out",
        str(tmp_path / "run"),
        *SMALL,
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in process.stderr:
        if line.startswith("1 of 2"):
            break
    process.send_signal(signal.SIGTERM)
    told = process.stderr.read()
    process.stderr.close()
    if process.wait(120) == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 75, told
    assert "run the same command to go on" in told
    began = time.monotonic()
    alone = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" if hasattr(os, "sched_setaffinity") else ""
    done = warm.run(["-c", f"{alone}from univip_stream.cli import main; main()", *command[3:]])
    assert done.returncode == 0, (time.monotonic() - began, done.stderr)
    assert verify_folder(tmp_path / "run" / "shards") == []
