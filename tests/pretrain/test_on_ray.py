"""Ray Train as the launcher: the losses of one process, a killed rank told in words, and the same command continues."""

import os
import re
import shlex
import signal
import uuid
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from test_distributed import TINY, launched, losses, wait_for
from warm import DEVNULL

from univip_stream.cli import cli

pytestmark = pytest.mark.ray
OURS = uuid.uuid4().hex
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "slurm.md"


def command(shards, run, *more):
    # Long enough to be killed on the way.
    texts = [argument for setting in TINY for argument in ("--set", setting)]
    return ["train", "--shards", str(shards), "--out", str(run), "--recipe", "cpu-demo", *texts, "--set", "steps=24", *more]


def ranks():
    """Processes of Ray that train for this test, by the variable that they inherit."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            trains = entry.name.isdigit() and b"RayTrainWorker" in (entry / "cmdline").read_bytes()
            if trains and OURS.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile
    return found


def launcher_of_the_page():
    """The options by which the page says to train on Ray: --launcher and what comes after it."""
    [line] = re.findall(r"^univip-stream train .* (--launcher .*)$", PAGE.read_text(), re.MULTILINE)
    return shlex.split(line)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds a rank's process in /proc")
def test_ranks_on_ray_train_as_one_process_and_a_killed_one_is_told(drawn_shards, tmp_path, warm):
    run = tmp_path / "run"
    words = ["-m", "univip_stream", *command(drawn_shards, run, *launcher_of_the_page())]
    with launched(warm, words, UNIVIP_TEST_RUN=OURS) as job:
        wait_for(job, lambda: (run / "checkpoints" / "step-000000004.pt").exists())
        os.kill(ranks()[0], signal.SIGKILL)
        _, said = job.communicate(timeout=90)
    assert job.returncode == 1
    assert "a batch of 12, 6 on each of 2 ranks;" in said
    assert "it continues from the last checkpoint" in said
    assert "Traceback" not in said
    together = losses(run)

    again = CliRunner().invoke(cli, command(drawn_shards, run))
    assert again.exit_code == 0, again.output
    assert "continues after step" in again.output
    assert len(losses(run)) == 24
    written = tmp_path / "alone" / "metrics.jsonl"
    alone = warm.start(["-m", "univip_stream", *command(drawn_shards, tmp_path / "alone")], stderr=DEVNULL, stdout=DEVNULL)
    wait_for(alone, lambda: written.exists() and written.read_text().count("\n") >= 3)
    alone.kill()
    alone.wait()
    # In float32 the rounding of another order of sums grows about tenfold a step in so small a network, so only the first.
    torch.testing.assert_close(torch.tensor(together[:3]), torch.tensor(losses(tmp_path / "alone")[:3]), atol=5e-5, rtol=0)


@pytest.mark.slow  # Ray
def test_what_ray_cannot_give_is_said(drawn_shards, tmp_path):
    more = CliRunner().invoke(cli, command(drawn_shards, tmp_path / "run", "--launcher", "ray", "--ranks", "999"))
    assert more.exit_code == 1
    assert "999 ranks need 999 CPUs" in more.output
    without = CliRunner().invoke(cli, command(drawn_shards, tmp_path / "run", "--ranks", "2"))
    assert without.exit_code == 2
    assert "--nproc-per-node" in without.output
