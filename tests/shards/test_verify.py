import json
import shutil

import pytest
from click.testing import CliRunner
from servers import BUCKET, s3_server

from univip_stream import storage
from univip_stream.cli import cli
from univip_stream.shards.verify import verify_folder


@pytest.fixture
def shards(drawn_shards, tmp_path):
    shutil.copytree(drawn_shards, tmp_path / "shards")
    return tmp_path / "shards"


def problems(folder):
    return [f"{finding.shard}: {finding.problem}" for finding in verify_folder(folder)]


def test_whole_shards_have_no_findings(drawn_shards):
    assert problems(drawn_shards) == []


@pytest.mark.slow
def test_a_truncation_at_every_block_is_found(shards):
    path = shards / "001.tar"
    whole = path.read_bytes()
    for size in range(0, len(whole), 512):
        path.write_bytes(whole[:size])
        assert any("001.tar has" in problem for problem in problems(shards)), size


@pytest.mark.slow
def test_a_flipped_bit_anywhere_is_found(shards, rng):
    for name in ("000.tar", "000.parquet"):
        path = shards / name
        whole = path.read_bytes()
        for at in [0, 124, 300, 512, 5000, len(whole) - 1, *rng.integers(0, len(whole), 20).tolist()]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            assert any("SHA-256" in problem for problem in problems(shards)), (name, at)
        path.write_bytes(whole)
    assert problems(shards) == []


def test_missing_and_extra_shards_are_named(shards):
    (shards / "001.tar").rename(shards / "007.tar")
    (shards / "002.parquet").unlink()
    found = problems(shards)
    assert "001.tar: 001.tar is missing" in found
    assert "002.tar: 002.parquet is missing" in found
    assert "007.tar: exists, but the manifest does not name it" in found


def test_shards_that_changed_places_are_found(shards):
    first, second = (shards / "000.tar").read_bytes(), (shards / "001.tar").read_bytes()
    (shards / "000.tar").write_bytes(second)
    (shards / "001.tar").write_bytes(first)
    assert any("is not in the index" in problem for problem in problems(shards))
    assert any("is missing" in problem for problem in problems(shards))


def test_totals_that_do_not_add_up_are_found(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["totals"]["ok"] -= 1
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert any("add up to" in problem for problem in problems(shards))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest.pop("parameters"), "parameters is missing"),
        (lambda manifest: manifest.update(totals=[]), "totals: found list"),
        (lambda manifest: manifest["totals"].update(images="12"), "images is '12', expected a whole number"),
        (lambda manifest: manifest["totals"].update(ok="12"), "totals holds something that is not a number"),
        (lambda manifest: manifest["shards"][1].pop("index"), "shard 1: index is missing"),
        (lambda manifest: manifest["shards"][2].update(bytes=-1), "shard 2: bytes is '-1'"),
        (lambda manifest: manifest["shards"].append(7), "shard 3: found int"),
        (lambda manifest: manifest["shards"][0].update(bytes=1 << 70), "shard 0: bytes is '1180591620717411303424'"),
        (lambda manifest: manifest["shards"][0].update(samples=5), "samples is 5 of 4 images, expected at most all"),
        (lambda manifest: manifest["shards"][0].update(images=1 << 40, samples=1 << 40), "16777216 images a shard"),
        (lambda manifest: manifest["shards"][0].update(name="../x.tar"), "expected a file of its own folder"),
    ],
)
def test_a_manifest_that_was_changed_is_said(shards, change, words):
    manifest = json.loads((shards / "manifest.json").read_text())
    change(manifest)
    (shards / "manifest.json").write_text(json.dumps(manifest))
    for command in (["verify"], ["refilter", "--inline", "--out", str(shards / "new")]):
        done = CliRunner().invoke(cli, [*command, str(shards)])
        assert (done.exit_code, words in done.output) == (1, True), done.output


def test_the_command_says_what_it_found_and_exits_1(shards):
    good = CliRunner().invoke(cli, ["verify", str(shards)])
    assert (good.exit_code, "0 findings" in good.output) == (0, True)
    (shards / "001.tar").unlink()
    bad = CliRunner().invoke(cli, ["verify", str(shards), "--json"])
    assert bad.exit_code == 1
    found = json.loads(bad.stdout)
    assert found["images"] == 12
    assert found["findings"][0]["shard"] == "001.tar"


def test_of_a_shard_that_was_replaced_three_findings_are_printed_and_all_by_json(shards):
    for suffix in ("tar", "parquet"):
        shutil.copy(shards / f"001.{suffix}", shards / f"002.{suffix}")
    lines = CliRunner().invoke(cli, ["verify", str(shards), "-q"]).output.splitlines()
    found = json.loads(CliRunner().invoke(cli, ["verify", str(shards), "--json"]).stdout)["findings"]
    assert [line.startswith(f"{shards}/002.tar: ") for line in lines] == [True] * len(lines[:-1]) + [False]
    assert len(lines) == min(len(found), 4) + 1
    assert lines[-1] == f"12 images in 1 folder: {len(found)} findings in 1 shard"
    (shards / "002.tar").write_bytes((shards / "000.tar").read_bytes())
    lines = CliRunner().invoke(cli, ["verify", str(shards), "-q"]).output.splitlines()
    assert len(lines) == 5
    assert "more findings; --json prints all" in lines[3]


def test_on_ray_and_in_an_object_store_it_finds_the_same(shards, rng):
    path = shards / "002.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:5000] + b"x" + whole[5001:])
    (shards / "001.parquet").unlink()
    here = CliRunner().invoke(cli, ["verify", str(shards), "--json"])
    on_ray = CliRunner().invoke(cli, ["verify", str(shards), "--json", "--workers", "2"])
    assert (here.exit_code, on_ray.exit_code) == (1, 1)
    assert on_ray.stdout == here.stdout
    with s3_server():
        for file in shards.iterdir():
            storage.copy_out(file, f"s3://{BUCKET}/set/{file.name}")
        there = CliRunner().invoke(cli, ["verify", f"s3://{BUCKET}/set", "--json"])
    assert json.loads(there.stdout)["findings"] == [
        finding | {"folder": f"s3://{BUCKET}/set"} for finding in json.loads(here.stdout)["findings"]
    ]


@pytest.mark.parametrize(("name", "words"), [("nowhere", "no such folder of shards"), ("", "no manifest.json")])
def test_a_folder_that_is_none_is_said(tmp_path, name, words):
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / name)])
    assert result.exit_code == 1
    assert words in result.output
