"""Killed anywhere, a worker killed, a node removed: run again (or wait), and the bytes are those of an undisturbed run."""

import os
import signal
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
from killed import STAGES, run_killed
from warm import PIPE

from univip_stream.mining import MiningConfig, mine
from univip_stream.shards.verify import verify_folder

SECONDS = "UNIVIP_TEST_SECONDS"
"""Variable that says how long `propose_slowly` takes."""
OURS = f"UNIVIP_TEST_RUN={uuid.uuid4().hex}"
"""Told to processes by their environment, so that no other's worker is killed."""


def config(source, out, **changes):
    settings = {"proposals": "naive", "inline": True, "num_shards": 3} | changes
    return MiningConfig(sources=(source,), out=out, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def calm(drawn_folder, tmp_path_factory):
    """What undisturbed runs leave, by proposer."""
    folder = tmp_path_factory.mktemp("calm")
    for proposals in ("naive", "test_kill:propose_slowly"):
        sys.path.insert(0, str(Path(__file__).parent))
        mine(config(drawn_folder, folder / proposals[:5], proposals=proposals))
    return {name: contents(folder / name) for name in ("naive", "test_")}


def propose_slowly(image):
    time.sleep(float(os.environ.get(SECONDS, "0.3")))
    height, width = image.shape[:2]
    return [[0, 0, width // 2, height], [width // 2, 0, width - width // 2, height]]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_any_stage_then_run_again(stage, drawn_folder, calm, tmp_path, warm):
    out = tmp_path / "out"
    done = run_killed(warm, stage, drawn_folder, out)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / "manifest.json").exists() == (stage == "after the manifest")
    mine(config(drawn_folder, out))
    assert contents(out) == calm["naive"]


@pytest.fixture
def command(warm):
    """Starts mining on Ray with a proposer that takes `seconds` an image."""

    def start(source, out, *more, seconds=0.3):
        arguments = ["--src", source, "--out", out, "--num-shards", "3", "--proposals", "test_kill:propose_slowly", *more]
        name, _, value = OURS.partition("=")
        ours = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), SECONDS: str(seconds), name: value}
        return warm.start(["-m", "univip_stream", "mine", *arguments], stderr=PIPE, env=os.environ | ours)

    return start


def mining_workers():
    """Processes of Ray that mine for this test run."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            mines = entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::_mine")
            if mines and OURS.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # gone meanwhile
    return found


def wait_for(condition, seconds=90):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"did not happen in {seconds} s")


@pytest.mark.ray
def test_the_driver_killed_on_ray_then_run_again(command, drawn_folder, calm, tmp_path):
    out = tmp_path / "out"
    process = command(drawn_folder, out)
    wait_for(lambda: list(out.glob("*.parquet")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists()
    again = command(drawn_folder, out)
    assert again.wait(120) == 0, again.communicate()
    again.communicate()
    assert contents(out) == calm["test_"]


@pytest.mark.ray
def test_a_worker_killed_is_replaced(command, drawn_folder, calm, tmp_path):
    out = tmp_path / "out"
    process = command(drawn_folder, out)
    victim = wait_for(mining_workers)[0]
    os.kill(victim, signal.SIGKILL)
    assert process.wait(120) == 0
    process.communicate()
    assert contents(out) == calm["test_"]


@pytest.mark.ray
def test_ctrl_c_says_how_to_go_on(command, drawn_folder, tmp_path):
    for number in (signal.SIGINT, signal.SIGTERM):
        out = tmp_path / number.name
        process = command(drawn_folder, out, "--num-shards", "12", seconds=2)
        wait_for(lambda out=out: list(out.glob("*.parquet")))
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "run the same command again" in said
        assert "Traceback" not in said
    report = mine(config(drawn_folder, out, proposals="test_kill:propose_slowly", num_shards=12))
    assert 0 < report.mined < 12
    assert verify_folder(out) == []


def starting(driver):
    """Whether Ray's first process, of those that `driver` starts, is there."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"gcs_server" in (entry / "cmdline").read_bytes().partition(b"\0")[0]:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(driver):
                    return True
        except OSError:
            continue  # gone meanwhile
    return False


@pytest.mark.ray
def test_a_scheduler_that_stops_it_while_ray_starts_is_answered_too(command, drawn_folder, tmp_path):
    """Ray has a handler of its own for SIGTERM by then, which exits with 15 and no word."""
    out = tmp_path / "out"
    process = command(drawn_folder, out)
    wait_for(lambda: starting(process.pid))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "run the same command again" in said, "Traceback" in said) == (1, True, False), said
    assert not list(out.glob("*.tar"))


@pytest.mark.ray
def test_a_node_removed_while_mining(drawn_folder, calm, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setenv(*OURS.split("="))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        out = tmp_path / "out"

        def remove():
            wait_for(lambda: len(mining_workers()) > 1)
            cluster.remove_node(second, allow_graceful=False)
            removed.set()

        removed = threading.Event()
        threading.Thread(target=remove, daemon=True).start()
        report = mine(config(drawn_folder, out, proposals="test_kill:propose_slowly", inline=False, address=cluster.address))
        assert removed.is_set()
        assert report.mined == 12
        assert contents(out) == calm["test_"]
    finally:
        cluster.shutdown()
