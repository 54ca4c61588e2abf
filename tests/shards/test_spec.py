from dataclasses import replace

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.shards import open_index
from univip_stream.shards.entry import FileFacts, ShardEntry
from univip_stream.shards.manifest import MadeBy, make_manifest, manifest_files
from univip_stream.shards.spec import expand_shards


@pytest.fixture
def folder(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:03d}.tar").touch()
    return tmp_path


def names(shards):
    return [shard.rsplit("/", 1)[1].removesuffix(".tar") for shard in shards]


@pytest.mark.parametrize("spec", ["<000..011>.tar", "{000..011}.tar", "*.tar", "0??.tar", "", "{00,01}[0-9].tar"])
def test_every_way_of_writing_names_the_same_shards(folder, spec):
    assert names(expand_shards(f"{folder}/{spec}")) == [f"{number:03d}" for number in range(12)]


def test_several_specs_keep_their_order_and_each_shard_once(folder):
    specs = [f"{folder}/<008..009>.tar", f"{folder}/000.tar", folder / "008.tar"]
    assert names(expand_shards(specs)) == ["008", "009", "000"]


def test_two_ranges_multiply(tmp_path):
    for part in ("a1", "a2", "b1", "b2"):
        (tmp_path / f"{part}.tar").touch()
    assert names(expand_shards(f"{tmp_path}/{{a,b}}<1..2>.tar")) == ["a1", "a2", "b1", "b2"]


def test_a_manifest_and_its_folder_name_its_shards_alone(folder):
    facts = FileFacts(bytes=0, sha256="")
    entry = ShardEntry(name="003.tar", images=1, samples=1, bytes=0, sha256="", index=facts, totals={"ok": 1})
    manifest = make_manifest([entry, replace(entry, name="001.tar")], MadeBy(fingerprint="", parameters={}))
    (folder / "manifest.json").write_bytes(manifest_files(manifest)["manifest.json"])
    assert names(expand_shards(folder)) == names(expand_shards(folder / "manifest.json")) == ["003", "001"]


def test_a_missing_shard_is_named(folder):
    with pytest.raises(InputError, match=r"012\.tar: no such shard"):
        expand_shards(f"{folder}/<000..012>.tar")


@pytest.mark.parametrize(
    "spec", ["*.tgz", "nothing/*.tar", "<5..1>.tar", "<0..99999999999>.tar", "{0..999}{0..999}{0..9}.tar"]
)
def test_specs_that_mean_nothing_are_said(folder, spec):
    with pytest.raises(InputError):
        expand_shards(f"{folder}/{spec}")


def test_an_empty_folder_is_said(tmp_path):
    with pytest.raises(InputError, match=r"holds no \*\.tar"):
        expand_shards(tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        "pipe:touch {0}/owned",
        "pipe:touch {0}/owned; {0}/000.tar",
        "ftp://x/0.tar",
        "file:{0}/000.tar",
        "{0}/000.tar::{0}/001.tar",
    ],
)
def test_a_spec_runs_nothing(folder, spec, monkeypatch):
    monkeypatch.setenv("WDS_X", "pipe:touch owned")
    with pytest.raises(InputError):
        expand_shards(spec.format(folder))
    assert not (folder / "owned").exists()


def test_a_manifest_of_a_gigabyte_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="1073741824 bytes"):
        expand_shards(tmp_path)


def test_a_set_named_in_part_is_noted_wherever_it_is_read(drawn_shards, run_folder, tmp_path):
    """A range that stops short trains on a third of the images; it is told, by everything that reads shards."""
    part, whole = f"{drawn_shards}/<000..000>.tar", str(drawn_shards)
    note = f"4 of 12 images: 1 of 3 shards of {drawn_shards} named"
    assert open_index(expand_shards(part)).notes == [note]
    assert open_index(expand_shards(whole)).notes == []

    def said(*arguments):
        done = CliRunner().invoke(cli, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    train = ["--recipe", "cpu-demo", "--backbone", "test_resnet", "--batch-size", "4", "--workers", "0", "--steps", "1"]
    train += ["--set", "views.scene_size=32", "--set", "views.instances=0", "--set", "method.hidden=16", "--device", "cpu"]
    assert note in said("train", "--shards", part, "--out", str(tmp_path / "run"), *train)
    embed = ["--workers", "0", "--image-size", "32", "--device", "cpu"]
    assert note in said("embed", str(run_folder), part, "--out", str(tmp_path / "part.parquet"), *embed)
    assert "shards of" not in said("embed", str(run_folder), whole, "--out", str(tmp_path / "whole.parquet"), *embed)
    assert note in said("inspect", part)
