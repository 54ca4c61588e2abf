"""Sets of version 1: read as before by everything, and turned into version 2 as if they had been mined so."""

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner
from servers import BUCKET, s3_server
from small_runs import losses, tiny
from version_1 import to_version_1

from univip_stream import ShardDataset, storage
from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.mining import MiningConfig, RefilterConfig, mine, refilter, upgrade
from univip_stream.pretrain import pretrain
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.manifest import read_manifest
from univip_stream.shards.verify import verify_folder


def config(source, out, **changes):
    return MiningConfig(sources=(source,), out=out, **{"proposals": "naive", "inline": True, "num_shards": 3} | changes)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture
def old(drawn_shards, tmp_path):
    return to_version_1(shutil.copytree(drawn_shards, tmp_path / "old"))


def call(*words):
    return CliRunner().invoke(cli, list(map(str, words)))


def test_a_set_of_version_1_is_upgraded_to_the_bytes_that_mining_writes(old, drawn_shards):
    tars = {path.name: path.stat().st_mtime_ns for path in old.glob("*.tar")}
    assert "format of" not in call("verify", old).output
    done = call("upgrade", old)
    assert (done.exit_code, "3 shards upgraded; univip-stream/2" in done.output) == (0, True), done.output
    assert contents(old) == contents(drawn_shards)
    assert {path.name: path.stat().st_mtime_ns for path in old.glob("*.tar")} == tars
    assert "nothing to do" in call("upgrade", old).output
    assert contents(old) == contents(drawn_shards)


def test_every_reader_finds_the_same_in_both(old, drawn_shards, tmp_path):
    assert read_manifest(old).format == "univip-stream/1"
    one, two = (open_index(expand_shards(str(folder))) for folder in (old, drawn_shards))
    assert one.fingerprint == two.fingerprint
    assert [one.text("sha256", at) for at in range(12)] == [two.text("sha256", at) for at in range(12)]
    assert (one.boxes == two.boxes).all()
    streams = [[s.key for s in ShardDataset(str(folder)).epoch(5, 1)] for folder in (old, drawn_shards)]
    assert streams[0] == streams[1]
    assert verify_folder(old) == []
    for name, folder in (("a", old), ("b", drawn_shards)):
        refilter(RefilterConfig(shards=folder, out=tmp_path / name, inline=True, min_scale=40, max_boxes=9))
        done = call("export", "boxes", folder, "--format", "soco", "--out", tmp_path / f"{name}-soco")
        assert done.exit_code == 0, done.output
        assert call("inspect", folder, "--json").exit_code == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    for path in (tmp_path / "a-soco").rglob("*.json"):
        assert path.read_bytes() == (tmp_path / "b-soco" / path.relative_to(tmp_path / "a-soco")).read_bytes()


def test_mining_again_leaves_a_finished_set_of_version_1_as_it_is(old, drawn_folder):
    before = contents(old)
    assert mine(config(drawn_folder, old)).mined == 0
    assert contents(old) == before


def test_a_job_that_version_1_began_is_finished_in_version_2(old, drawn_folder, drawn_shards):
    (old / "manifest.json").unlink()
    for name in ("001.tar", "001.parquet"):
        (old / name).unlink()
    assert mine(config(drawn_folder, old)).mined == 4
    assert contents(old) == contents(drawn_shards)


def test_adding_to_a_set_of_version_1_gives_a_set_of_both(old, drawn_folder, tmp_path):
    more = shutil.copytree(drawn_folder, tmp_path / drawn_folder.name)
    shutil.copy(more / "scene00.jpg", more / "zz.jpg")
    before = contents(old)
    report = mine(config(more, old, add=True, num_shards=1))
    assert [entry.format for entry in report.manifest.shards] == [*["univip-stream/1"] * 3, "univip-stream/2"]
    assert {name: contents(old)[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert verify_folder(old) == []
    assert len(list(ShardDataset(str(old)))) == 13
    upgrade(old)
    assert verify_folder(old) == []
    assert {entry.format for entry in read_manifest(old).shards} == {"univip-stream/2"}


@pytest.mark.parametrize("stage", ["before the manifest", "before the indexes"])
def test_killed_while_upgrading_then_run_again(stage, old, drawn_shards):
    """Before the manifest the set is still that of version 1; after it, a reader is told to run the command again."""
    before = open_index(expand_shards(str(old))).fingerprint
    code = (
        "import os, signal, sys\nfrom univip_stream.mining import output, upgrade\nreal = output.Output.write\n"
        "def write(out, name, data):\n"
        "    if name == sys.argv[2]:\n        os.kill(os.getpid(), signal.SIGKILL)\n    real(out, name, data)\n"
        "output.Output.write = write\nupgrade(sys.argv[1])\n"
    )
    at = {"before the manifest": "manifest.json", "before the indexes": "001.parquet"}[stage]
    assert subprocess.run([sys.executable, "-c", code, str(old), at]).returncode == -9
    if stage == "before the manifest":
        assert open_index(expand_shards(str(old))).fingerprint == before
        assert verify_folder(old) == []
    else:
        with pytest.raises(InputError, match="upgrade` on it again"):
            open_index(expand_shards(str(old)))
    upgrade(old)
    left = {name: data for name, data in contents(old).items() if name != ".mining.lock"}
    assert left == contents(drawn_shards)


def test_in_an_object_store(old, drawn_shards):
    with s3_server():
        there = f"s3://{BUCKET}/old"
        for path in old.iterdir():
            storage.copy_out(path, f"{there}/{path.name}")
        assert len(list(islice(ShardDataset(there), 3))) == 3
        upgrade(there)
        for path in drawn_shards.iterdir():
            assert storage.read(f"{there}/{path.name}") == path.read_bytes()
        assert call("verify", there).exit_code == 0


def test_an_index_that_was_changed_is_not_upgraded(old):
    path = old / "001.parquet"
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    done = call("upgrade", old)
    assert (done.exit_code, "001.parquet is not the index that its manifest names" in done.output) == (1, True)
    assert read_manifest(old).format == "univip-stream/1"


def test_two_at_once_leave_a_whole_set(old, drawn_shards):
    command = [sys.executable, "-m", "univip_stream", "upgrade", str(old)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    statuses = sorted(process.returncode for process in both)
    # The second comes while the first works, or after it.
    assert statuses in ([0, 0], [0, 1]), said
    if statuses[1]:
        assert any("another" in error for _, error in said), said
    assert verify_folder(old) == []
    same = ("manifest.json", *(path.name for path in sorted(drawn_shards.glob("*.parquet"))))
    assert [(old / name).read_bytes() for name in same] == [(drawn_shards / name).read_bytes() for name in same]


def killed(step, *_):
    if step == 6:
        raise KeyboardInterrupt


def test_a_run_learns_the_same_from_both(old, drawn_shards, tmp_path):
    """Losses of the same seed, step by step and bit by bit; one run goes on after `upgrade`, in the folder that it began with."""
    runs = [tmp_path / "one", tmp_path / "two"]
    for folder, run in zip((old, drawn_shards), runs, strict=True):
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny("stream.workers=0"), str(folder), run, progress=killed)
    assert losses(runs[0]) == losses(runs[1])
    assert call("upgrade", old).exit_code == 0
    for folder, run in zip((old, drawn_shards), runs, strict=True):
        pretrain(tiny("stream.workers=0"), str(folder), run)
    assert losses(runs[0]) == losses(runs[1])
    assert len(losses(runs[0])) == 8
