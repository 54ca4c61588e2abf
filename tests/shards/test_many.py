"""Sets of very many shards: what is read of them at the start, and what when its turn comes."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from univip_stream import ShardDataset
from univip_stream.augment import AugmentConfig
from univip_stream.errors import InputError
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.mining import MiningConfig, mine
from univip_stream.mining.job import write_manifest
from univip_stream.mining.output import Output
from univip_stream.shards import expand_shards, open_index, open_shards
from univip_stream.shards.format import files_of, shard_name
from univip_stream.shards.manifest import MadeBy, make_manifest, read_manifest
from univip_stream.shards.verify import verify_folder
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

SHARDS = 600
VIEWS = ViewConfig(scene_size=32, instance_size=16)


def stream(shards, **changes):
    config = StreamConfig(**{"batch_size": 4, "workers": 0, "window": 2} | changes)
    return Stream(shards, UniVIPPlan(VIEWS, AugmentConfig()), config)


@pytest.fixture(scope="module")
def many(drawn_shards, tmp_path_factory):
    """Six hundred shards of four images: links to three, listed as more than four thousand are. Read only."""
    folder = tmp_path_factory.mktemp("many") / "set"
    folder.mkdir()
    known = read_manifest(drawn_shards).shards
    entries = []
    for number in range(SHARDS):
        real = known[number % 3]
        entries.append(replace(real, name=shard_name(number, SHARDS)))
        for link, file in zip(files_of(entries[-1].name), files_of(real.name), strict=True):
            os.symlink(drawn_shards / file, folder / link)
    made_by = read_manifest(drawn_shards)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("univip_stream.shards.manifest.MOST_IN_JSON", 100)
        made_by = MadeBy(parameters=made_by.parameters, fingerprint=made_by.fingerprint)
        write_manifest(Output(folder), make_manifest(entries, made_by))
    return folder


def test_a_long_list_lies_in_a_file_beside_the_manifest_and_says_the_same(many, drawn_shards):
    said = json.loads((many / "manifest.json").read_text())
    assert said["shards"]["count"] == SHARDS
    assert (many / said["shards"]["file"]).stat().st_size == said["shards"]["bytes"]
    manifest = read_manifest(many)
    known = read_manifest(drawn_shards).shards
    assert list(manifest.shards) == [replace(known[at % 3], name=f"{at:03d}.tar") for at in range(SHARDS)]
    assert [manifest.shards[at].name for at in (0, 7, -1)] == ["000.tar", "007.tar", f"{SHARDS - 1}.tar"]
    assert [entry.sha256 for entry in manifest.shards[1:4]] == [known[at % 3].sha256 for at in (1, 2, 3)]
    assert manifest.totals["samples"] == 4 * SHARDS
    index = open_shards(expand_shards(str(many)))
    assert (len(index), index.box_count) == (4 * SHARDS, sum(known[at % 3].boxes for at in range(SHARDS)))
    assert index.tar_sha256[:4] == [known[at % 3].sha256 for at in range(4)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda list_: list_.unlink(), ", which lists the shards of"),
        (lambda list_: list_.write_bytes(list_.read_bytes()[:-1]), "is not the list that"),
        (lambda list_: list_.write_bytes(list_.read_bytes()[:-1] + b"x"), "is not the list that"),
    ],
)
def test_a_list_that_is_not_the_manifests_is_said(many, tmp_path, change, words):
    for path in many.glob("manifest*"):
        shutil.copy(path, tmp_path)
    change(next(tmp_path.glob("manifest-*.parquet")))
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../owned.parquet", "/etc/passwd", "manifest.json", 7])
def test_a_manifest_names_a_list_of_its_own_folder_only(many, tmp_path, name):
    said = json.loads((many / "manifest.json").read_text())
    said["shards"]["file"] = name
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"as the list of its shards|file is '7', expected text"):
        read_manifest(tmp_path)


def test_a_shard_that_is_missing_among_many_is_named(many, tmp_path):
    shutil.copytree(many, tmp_path / "set", symlinks=True)
    (tmp_path / "set" / "321.tar").unlink()
    with pytest.raises(InputError, match=r"321\.tar: no such shard \(of 600"):
        expand_shards(str(tmp_path / "set"))


def test_the_first_batches_open_the_indexes_of_their_windows_only(drawn_shards, tmp_path):
    """All others may be gone; and whoever comes to one of these is told its name, also where bad samples are passed over."""
    shutil.copytree(drawn_shards, tmp_path / "set")
    whole = [batch.keys for batch in islice(stream(str(tmp_path / "set"), window=1), 3)]
    reading = stream(str(tmp_path / "set"), window=1, on_bad_sample="skip")
    last = reading._batches.order.near(8)[0]
    gone = (tmp_path / "set" / f"{int(last[0]):03d}.parquet").rename(tmp_path / "gone")
    batches = iter(reading)
    assert [next(batches).keys for _ in range(2)] == whole[:2]
    with pytest.raises(InputError, match=rf"has no index {int(last[0]):03d}\.parquet beside it"):
        next(batches)
    batches.close()
    with pytest.raises(InputError, match="has no index"):  # few files are looked at before anything is read
        stream(str(tmp_path / "set"))
    gone.rename(tmp_path / "set" / f"{int(last[0]):03d}.parquet")
    assert [batch.keys for batch in islice(stream(str(tmp_path / "set"), window=1), 3)] == whole


def test_an_index_with_other_samples_than_its_manifest_says_is_said(drawn_shards, tmp_path):
    """The order is made of the manifest's counts: one that lies would give other images than were meant."""
    shutil.copytree(drawn_shards, tmp_path / "set")
    said = json.loads((tmp_path / "set" / "manifest.json").read_text())
    said["shards"][1]["samples"] = 3
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"001\.tar has 4 samples, its manifest says 3"):
        list(ShardDataset(str(tmp_path / "set")))
    with pytest.raises(InputError, match=r"001\.tar has 4 samples, its manifest says 3"):
        open_index(expand_shards(str(tmp_path / "set")))
    assert any("has 4 samples, expected 3" in finding.problem for finding in verify_folder(tmp_path / "set"))


def test_memory_and_start_do_not_grow_with_the_number_of_shards(many, drawn_shards):
    """A process that opens 600 shards and reads one window of them takes as much as one that opens three, but for the list."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom univip_stream.stream import ShardDataset\n"
        "def rss():\n    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "before = rss()\ndataset = ShardDataset(sys.argv[1], window=2).epoch(0, 0)\n"
        "samples = iter(dataset)\n[next(samples) for _ in range(8)]\n"
        "print(rss() - before, len(dataset.index._opened.loaded()), 'pandas' in sys.modules)\nsamples.close()\n"
    )
    found = []
    for folder in (drawn_shards, many):
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
        found.append(done.stdout.split())
    assert int(found[1][0]) - int(found[0][0]) < 30 << 20
    assert int(found[1][1]) <= 16
    assert found[1][2] == "False"


def test_a_set_with_a_long_list_is_mined_again_added_to_and_read(drawn_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("univip_stream.shards.manifest.MOST_IN_JSON", 2)
    source = shutil.copytree(drawn_folder, tmp_path / "photos")
    settings = {"sources": (source,), "out": tmp_path / "out", "proposals": "naive", "inline": True}
    mine(MiningConfig(**settings, num_shards=3))
    (first,) = (tmp_path / "out").glob("manifest-*.parquet")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert mine(MiningConfig(**settings, num_shards=3)).mined == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    shutil.copy(source / "scene00.jpg", source / "zz.jpg")
    assert mine(MiningConfig(**settings, add=True, num_shards=1)).mined == 1
    (second,) = (tmp_path / "out").glob("manifest-*.parquet")
    assert first.name != second.name
    assert verify_folder(tmp_path / "out") == []
    assert len({sample.key for sample in ShardDataset(tmp_path / "out").epoch(1, 1)}) == 13
    assert Path(expand_shards(tmp_path / "out")[-1]).name == "003.tar"
