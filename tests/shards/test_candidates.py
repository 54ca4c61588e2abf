"""The file of candidates: whoever wants it is told by name what is wrong with it, and nobody else looks at it."""

import json
import shutil

import pytest
from click.testing import CliRunner
from shard_rows import indexes

from univip_stream import ShardDataset
from univip_stream.boxes import BoxFilter
from univip_stream.cli import cli
from univip_stream.mining import MiningConfig, mine
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.verify import verify_folder


@pytest.fixture
def shards(drawn_shards, tmp_path):
    return shutil.copytree(drawn_shards, tmp_path / "shards")


def other_run(shards, drawn_folder, tmp_path):
    """The same images mined with another filter: candidates of the same boxes, and not of these shards."""
    settings = {"num_shards": 3, "proposals": "naive", "inline": True, "filter": BoxFilter(max_boxes=1)}
    mine(MiningConfig(sources=(drawn_folder,), out=tmp_path / "other", **settings))
    shutil.copy(tmp_path / "other" / "001.candidates.parquet", shards)


def half(shards, *_):
    path = shards / "001.candidates.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(shards, *_):
    path = shards / "001.candidates.parquet"
    data = bytearray(path.read_bytes())
    data[100] ^= 4
    path.write_bytes(data)


WRONG = {
    "missing": (lambda shards, *_: (shards / "001.candidates.parquet").unlink(), "001.candidates.parquet is missing"),
    "half written": (half, "is not a file of candidates; expected one of"),
    "empty": (lambda shards, *_: (shards / "001.candidates.parquet").write_bytes(b""), "has 0 bytes and is not a file of"),
    "another run's": (other_run, "candidates of another run or shard than 001.parquet"),
    "another shard's": (
        lambda shards, *_: shutil.copy(shards / "000.candidates.parquet", shards / "001.candidates.parquet"),
        "candidates of another run or shard than 001.parquet",
    ),
    "flipped": (flipped, "has other bytes than its index says"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_wants_candidates_says_what_is_wrong_and_what_does_not_reads_on(
    kind, shards, drawn_folder, drawn_shards, tmp_path
):
    spoil, words = WRONG[kind]
    spoil(shards, drawn_folder, tmp_path)
    for name, *command in (
        ("refilter", "refilter", shards, "--inline", "--max-boxes", "3"),
        ("export", "export", "boxes", shards, "--format", "soco"),
    ):
        done = CliRunner().invoke(cli, [*map(str, command), "--out", str(tmp_path / name)])
        assert (done.exit_code, words in done.output, "001.candidates.parquet" in done.output) == (1, True, True), done.output
    assert any("001.candidates.parquet" in finding.problem for finding in verify_folder(shards))
    sound = open_index(expand_shards(str(drawn_shards)))
    assert [sample.key for sample in ShardDataset(str(shards))] == sound.key.to_pylist()
    done = CliRunner().invoke(cli, ["inspect", str(shards), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["samples"]) == (0, 12)


@pytest.mark.parametrize("kind", ["missing", "half written"])
def test_mining_again_makes_a_shard_anew_whose_candidates_are_not_whole(kind, shards, drawn_folder, drawn_shards):
    WRONG[kind][0](shards)
    report = mine(MiningConfig(sources=(drawn_folder,), out=shards, num_shards=3, proposals="naive", inline=True))
    assert report.mined == 4
    for path in drawn_shards.iterdir():
        assert (shards / path.name).read_bytes() == path.read_bytes()


def test_the_index_has_no_candidates_and_the_manifest_says_what_the_order_needs(drawn_shards):
    import pyarrow.parquet as pq

    said = json.loads((drawn_shards / "manifest.json").read_text())
    assert said["format"] == "univip-stream/2"
    for path, entry in zip(indexes(drawn_shards), said["shards"], strict=True):
        table = pq.read_table(path)
        assert "candidates" not in table.column_names
        pixels = sum(row["width"] * row["height"] for row in table.to_pylist())
        assert (entry["samples"], entry["pixels"]) == (4, pixels)
        facts = pq.read_metadata(path).metadata
        assert facts[b"candidates_sha256"].decode() == entry["candidates"]["sha256"]
