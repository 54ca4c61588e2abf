"""Ray that is not there, is another, is in use already, or has no home: each is a sentence, or works."""

import os
import pickle
import re
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

from univip_stream.cluster import attached
from univip_stream.errors import InputError
from univip_stream.mining import MiningConfig, mine
from univip_stream.mining.runner import _FileCounter


def mined(arguments, **variables):
    surroundings = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "univip_stream", "mine", "--proposals", "none", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=surroundings | variables)


@pytest.mark.ray
def test_mining_within_a_program_that_uses_ray_uses_its_ray_and_leaves_it(drawn_folder, tmp_path):
    code = f"""
import ray
from univip_stream.mining import MiningConfig, mine
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=100 << 20)
config = MiningConfig(sources=({str(drawn_folder)!r},), out={str(tmp_path / "shards")!r}, proposals="none", num_shards=2)
counted = []
report = mine(config, progress=counted.append)
print(report.manifest.totals["images"], sum(counted), ray.get(ray.remote(lambda: 42).remote()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["12", "12", "42"], done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_reports_every_image_and_leaves_nothing_behind(drawn_folder, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    counted = []
    config = MiningConfig(sources=(drawn_folder,), out=tmp_path / "shards", proposals="none", num_shards=3, workers=2)
    mine(config, progress=counted.append)
    assert sum(counted) == 12
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_count_is_of_whole_lines_and_of_each_once(tmp_path):
    with _FileCounter() as counter:
        elsewhere = pickle.loads(pickle.dumps(counter))
        for images in (3, 40):
            elsewhere.add(images)
        assert counter.take() == 43
        assert counter.take() == 0
        elsewhere.add(5)
        with open(counter._path, "ab") as file:
            file.write(b"7")  # of which a part is there
        assert counter.take() == 5
        with open(counter._path, "ab") as file:
            file.write(b"1\n")
        assert counter.take() == 71
    elsewhere.add(1)  # the driver has gone
    assert not Path(counter._path).exists()


@pytest.mark.ray
def test_a_local_ray_needs_no_home_directory(drawn_folder, tmp_path):
    done = mined(["--src", drawn_folder, "--out", tmp_path / "shards"], HOME="/proc/nohome")
    assert done.returncode == 0, done.stderr
    assert "12 images: 12 no_boxes" in done.stdout


@pytest.mark.ray
def test_a_temporary_folder_too_long_for_sockets_is_named_with_what_to_set(drawn_folder, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    done = mined(["--src", drawn_folder, "--out", tmp_path / "shards"], TMPDIR=str(long))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(
        r"error: a local Ray cannot start here: .*too long for sockets .*TMPDIR, and for Ray RAY_TMPDIR.*--inline",
        done.stderr,
    )


@pytest.mark.ray
def test_a_local_ray_that_cannot_start_says_what_does_without(drawn_folder, tmp_path):
    done = mined(["--src", drawn_folder, "--out", tmp_path / "shards"], RAY_TMPDIR="/proc/nowhere")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search(r"error: a local Ray cannot start here: .*/proc/nowhere.*univip-stream doctor.*--inline", done.stderr)


@pytest.mark.ray
def test_a_cluster_of_another_version_is_told_with_both_versions():
    from ray._private.utils import check_version_info

    def init(**settings):  # what Ray does where the cluster's version is another
        check_version_info({"ray_version": "2.9.0", "python_version": "3.10.1"}, "node 10.0.0.1:6379")

    ended = []
    ray = types.SimpleNamespace(init=init, is_initialized=lambda: False, shutdown=lambda: ended.append(True))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(InputError, match=rf"--address {address}: .*Ray: 2\.9\.0 Python: 3\.10\.1.*install the"),
            attached(ray, address, otherwise="--inline does without"),
        ):
            pass
    assert ended


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nobody.invalid:6379", "127.0.0.1:99999999", "x" * 300 + ":1"])
def test_an_address_where_nobody_answers_is_told_at_once(address):
    ray = types.SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: None)
    with pytest.raises(InputError, match="nobody answers there"), attached(ray, address, otherwise=""):
        pass
