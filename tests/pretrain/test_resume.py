"""A run that was stopped, killed or damaged: it goes on to the bit, or says why it cannot."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from small_runs import command, losses, records, tiny
from warm import DEVNULL, PIPE

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.rundir import check_run


def test_a_run_stopped_between_and_started_again_is_the_undisturbed_one(undisturbed, drawn_shards, tmp_path):
    run = tmp_path / "resumed"

    class KilledError(Exception):
        pass

    def kill_at(step):
        def progress(at, steps, values):
            if at == step:
                raise KilledError

        return progress

    for step in (2, 5, 7):  # before the first checkpoint, between two, and just before the end
        with pytest.raises(KilledError):
            pretrain(tiny(f"stream.workers={step % 3}"), str(drawn_shards), run, progress=kill_at(step))
    pretrain(tiny(), str(drawn_shards), run)
    assert losses(run) == losses(undisturbed)
    ours, theirs = (safetensors.torch.load_file(folder / "backbone.safetensors") for folder in (run, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def wait_for(what, process, seconds=90):
    until = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < until
        time.sleep(0.02)


def test_killed_by_the_system_then_started_again_is_the_undisturbed_run(undisturbed, drawn_shards, tmp_path, warm):
    run = tmp_path / "killed"
    process = warm.start(command(drawn_shards, run, "steps=8"), stderr=DEVNULL, start_new_session=True)
    wait_for(lambda: (run / "checkpoints" / "step-000000003.pt").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = subprocess.run([sys.executable, *command(drawn_shards, run)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "continues after step" in done.stderr
    assert losses(run) == losses(undisturbed)


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_sigterm_saves_and_leaves_with_its_own_status(send, drawn_shards, tmp_path, warm):
    run = tmp_path / "preempted"
    slow = command(drawn_shards, run, "steps=4000", "checkpoint_every=4000")
    process = warm.start(slow, stderr=PIPE, start_new_session=True)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 2, process)
    send(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "saved; run the same command to continue" in said
    assert len(list((run / "checkpoints").glob("*.pt"))) == 1


def test_two_trainings_do_not_share_a_folder(drawn_shards, tmp_path, warm):
    run = tmp_path / "shared"
    process = warm.start(command(drawn_shards, run, "steps=4000"), stderr=DEVNULL)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 2, process)
    second = warm.run(command(drawn_shards, run, "steps=4000"), timeout=100)
    process.kill()
    process.wait()
    assert second.returncode == 1
    assert "another training writes here" in second.stderr
    # The kernel let go of the lock with the process, though its loader workers may live for some seconds yet.
    third = warm.start(command(drawn_shards, run, "steps=4000"), stderr=PIPE)
    seen = len(records(run))
    wait_for(lambda: len(records(run)) > seen, third)
    third.kill()
    third.communicate()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {"step": 1}, "does not fit this run: 'method' is missing in it"),
        (lambda state: state | {"step": "1"}, "not a checkpoint of a run"),
        (lambda state: state | {"step": -1}, "not a checkpoint of a run"),
        (lambda state: state | {"step": 10**9}, "does not fit this run"),
        (lambda state: state | {"rng": torch.zeros(3)}, "does not fit this run"),
        (lambda state: state | {"method": {k: v.flatten()[:1] for k, v in state["method"].items()}}, "does not fit this run"),
        (lambda state: state | {"optimizer": {}}, "does not fit this run"),
    ],
)
def test_a_checkpoint_that_is_none_of_this_run_is_said(undisturbed, drawn_shards, tmp_path, change, words):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    path = max((run / "checkpoints").glob("*.pt"))
    torch.save(change(torch.load(path, weights_only=True)), path)
    result = CliRunner().invoke(cli, command(drawn_shards, run)[2:])
    assert (result.exit_code, words in result.output) == (1, True), result.output


def test_a_killed_run_leaves_no_workers(drawn_shards, tmp_path, warm):
    run = tmp_path / "killed"
    process = warm.start(command(drawn_shards, run, "steps=4000"), stderr=DEVNULL)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 2, process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert workers
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_dead_loader_worker_ends_the_run_with_words(drawn_shards, tmp_path, warm):
    run = tmp_path / "orphaned"
    process = warm.start(command(drawn_shards, run, "steps=4000"), stderr=PIPE)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 2, process)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: a loader worker died" in said


def test_finished_is_finished(undisturbed, drawn_shards):
    before = losses(undisturbed)
    assert pretrain(tiny(), str(drawn_shards), undisturbed) == {}
    assert losses(undisturbed) == before


def test_a_run_that_was_begun_in_another_order_of_images_is_refused(undisturbed, drawn_shards, monkeypatch):
    """As a run of more than 16 million images of a release that drew their order otherwise would be."""
    monkeypatch.setattr("univip_stream.stream.order.MOST_IN_A_ROW", 5)
    with pytest.raises(InputError, match="images in the order of version 1 there, 2 here"):
        pretrain(tiny(), str(drawn_shards), undisturbed)


def test_other_settings_or_shards_over_the_same_run_are_refused_and_named(undisturbed, drawn_shards, drawn_folder, tmp_path):
    with pytest.raises(InputError, match=r"optim\.lr 0\.05 there, 0\.3 here"):
        pretrain(tiny("optim.lr=0.3"), str(drawn_shards), undisturbed)
    with pytest.raises(InputError, match=r"init_from null there, 'weights\.pth' here"):  # as `--set` and YAML write it
        check_run(undisturbed, tiny("init_from=weights.pth"), str(drawn_shards))
    from univip_stream.mining import MiningConfig, mine

    mine(MiningConfig(sources=(drawn_folder,), out=tmp_path / "other", num_shards=2, proposals="none", inline=True))
    with pytest.raises(InputError, match="other shards"):
        pretrain(tiny(), str(tmp_path / "other"), undisturbed)
    pretrain(tiny("record_every=2", "stream.workers=0"), str(drawn_shards), undisturbed)


def test_a_damaged_checkpoint_is_not_passed_over(undisturbed, drawn_shards, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-000000008.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="To continue from the one of step 6 instead, delete"):
        pretrain(tiny(), str(drawn_shards), tmp_path / "run")
    path.unlink()
    pretrain(tiny(), str(drawn_shards), tmp_path / "run")
    assert losses(tmp_path / "run") == losses(undisturbed)
