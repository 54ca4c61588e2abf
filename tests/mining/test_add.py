"""Adding to a finished set: old bytes stay, new ones are the same however it went, and everything reads the set at every moment."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from killed import ADDING, run_killed
from servers import BUCKET, s3_server

from univip_stream import storage
from univip_stream.boxes import BoxFilter
from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.mining import MiningConfig, RefilterConfig, mine, refilter
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.manifest import read_manifest
from univip_stream.shards.verify import verify_folder


def config(out, *sources, **changes):
    return MiningConfig(sources=sources, out=out, **({"proposals": "naive", "inline": True, "num_shards": 3} | changes))


def add(out, *sources, **changes):
    return mine(config(out, *sources, add=True, **changes))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(folder):
    """(key, source) of every image, in the order of the manifest."""
    tables = [pq.read_table(folder / entry.name.replace(".tar", ".parquet")) for entry in read_manifest(folder).shards]
    return [(row["key"], row["source"]) for table in tables for row in table.select(["key", "source"]).to_pylist()]


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def photos(drawn_folder, tmp_path):
    """Seven images, mined into three shards, of which a copy is `before`; then five more, named between and after the old."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted(drawn_folder.iterdir())
    for file in files[:7]:
        shutil.copy(file, folder / f"{file.stem}-old.jpg")
    mine(config(tmp_path / "out", folder))
    shutil.copytree(tmp_path / "out", tmp_path / "before")
    for at, file in enumerate(files[7:]):
        shutil.copy(file, folder / f"scene0{at}-new.jpg")
    return folder


@pytest.fixture
def out(photos, tmp_path):
    return tmp_path / "out"


def test_new_images_follow_in_order_and_the_old_bytes_stay(photos, out, tmp_path):
    report = add(out, photos, num_shards=2)
    before, after = contents(tmp_path / "before"), contents(out)
    assert {name: after[name] for name in before if name != "manifest.json"} == {
        name: data for name, data in before.items() if name != "manifest.json"
    }
    assert sorted(after.keys() - before.keys()) == sorted(
        f"{n}.{kind}" for n in ("003", "004") for kind in ("tar", "candidates.parquet", "parquet")
    )
    found = rows(out)
    assert [key for key, _ in found] == [f"{number:09d}" for number in range(12)]
    assert [name for _, name in found] == [
        *(f"photos/scene{at:02d}-old.jpg" for at in range(7)),
        *(f"photos/scene{at:02d}-new.jpg" for at in range(5)),
    ]
    assert report.mined == 5
    assert report.manifest.totals["images"] == 12
    assert verify_folder(out) == []
    first, second = report.manifest.parts
    assert first.parameters == read_manifest(tmp_path / "before").parameters
    assert second.parameters["added_to"] == first.fingerprint
    assert second.shards == ["003.tar", "004.tar"]


@pytest.mark.slow
def test_adding_again_adds_nothing_and_adding_later_adds_a_third_part(photos, out, drawn_folder):
    add(out, photos)
    once = contents(out)
    assert add(out, photos).mined == 0
    assert contents(out) == once
    shutil.copy(drawn_folder / "scene00.jpg", photos / "zz.jpg")
    report = add(out, photos, num_shards=None)
    assert [len(part.shards) for part in report.manifest.parts] == [3, 3, 1]
    assert rows(out)[-1] == ("000000012", "photos/zz.jpg")
    assert len(set(report.manifest.fingerprints.values())) == 3
    assert verify_folder(out) == []
    shutil.copytree(photos, photos.parent / "more")
    added = add(out, photos.parent / "more", num_shards=None).addition
    assert (added.known, added.gone) == (0, [])
    assert read_manifest(out).parameters["sources"] == ["photos", "more"]
    assert read_manifest(out).totals["images"] == 26


@pytest.mark.parametrize("stage", ADDING)
def test_killed_while_adding_the_set_is_the_old_or_the_new_and_run_again_the_bytes_are_the_same(
    stage, photos, out, tmp_path, warm
):
    shutil.copytree(out, tmp_path / "calm")
    add(tmp_path / "calm", photos)
    done = run_killed(warm, stage, photos, out, "add")
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected = tmp_path / ("calm" if stage == "add: after the manifest" else "before")
    assert (out / "manifest.json").read_bytes() == (expected / "manifest.json").read_bytes()
    assert verify_folder(out) == []
    assert open_index(expand_shards(str(out))).fingerprint == open_index(expand_shards(str(expected))).fingerprint
    add(out, photos)
    assert contents(out) == contents(tmp_path / "calm")


def test_on_ray_and_in_an_object_store_it_is_the_same(photos, out, tmp_path):
    shutil.copytree(out, tmp_path / "ray")
    add(out, photos)
    add(tmp_path / "ray", photos, inline=False, workers=2)
    assert contents(tmp_path / "ray") == contents(out)
    with s3_server():
        there = f"s3://{BUCKET}/set"
        for file in (tmp_path / "before").iterdir():
            storage.copy_out(file, f"{there}/{file.name}")
        assert add(there, photos).mined == 5
        assert add(there, photos).mined == 0
        assert read_manifest(there) == read_manifest(out)
        assert call("verify", there).exit_code == 0


def test_what_is_gone_is_said_and_stays(photos, out):
    (photos / "scene03-old.jpg").unlink()
    (photos / "scene01-new.jpg").write_bytes(b"no image")
    arguments = ["mine", "--src", photos, "--add", "--out", out, "--proposals", "naive", "--inline", "--max-failures", "1"]
    plan = call(*arguments, "--dry-run")
    assert "5 new images -> 2 shards" in plan.output
    assert "1 image of the set not in the sources any more, kept: photos/scene03-old.jpg" in plan.output
    assert len(list(out.iterdir())) == 10
    done = call(*arguments, "-q")
    assert done.exit_code == 0, done.output
    assert "added 5 images in 2 shards (003.tar to 004.tar)" in done.output
    assert "kept: photos/scene03-old.jpg" in done.output
    assert "photos/scene01-new.jpg: unreadable" in done.output
    assert f"a run on the set as it was goes on with --shards '{out}/<000..002>.tar'" in done.output
    again = call(*arguments)
    assert "nothing to add" in again.output
    assert "1 of them could not be used" in again.output
    told = json.loads(call(*arguments, "--json").stdout)
    assert (told["mined"], told["known"], told["gone"], told["parts"], told["images"]) == (0, 11, 1, 2, 12)


def test_other_parameters_and_sets_that_are_not_there_are_refused_by_name(photos, out, drawn_folder, tmp_path):
    untouched = contents(out)
    for changes, words in (
        ({"filter": BoxFilter(min_scale=32)}, "min_scale 64 there, 32 here"),
        ({"proposals": "none"}, "proposals 'naive' there, 'none' here"),
        ({"seed": 3}, "seed 0 there, 3 here"),
        ({"max_pixels": 1000}, "max_pixels 100000000 there, 1000 here"),
    ):
        with pytest.raises(InputError, match="made with other parameters") as caught:
            add(out, photos, **changes)
        assert words in str(caught.value)
    refilter(RefilterConfig(shards=out, out=tmp_path / "refiltered", min_scale=32, inline=True))
    with pytest.raises(InputError, match="refiltered_from"):
        add(tmp_path / "refiltered", photos, filter=BoxFilter(min_scale=32))
    with pytest.raises(InputError, match="holds no set to add to"):
        add(tmp_path / "none", photos)
    with pytest.raises(InputError, match="use --add"):
        mine(config(out, photos))
    assert contents(out) == untouched
    (out / "manifest.json").unlink()
    (out / ".mining.json").write_text("{}")
    with pytest.raises(InputError, match="not finished"):
        add(out, photos)
    shutil.copytree(tmp_path / "before", tmp_path / "mine")
    add(tmp_path / "mine", photos)
    with pytest.raises(InputError, match="was added to"):
        mine(config(tmp_path / "mine", photos))


def test_another_image_of_a_known_name_is_not_passed_over(photos, out, drawn_folder, tmp_path):
    other = tmp_path / "other" / "photos"
    other.mkdir(parents=True)
    shutil.copy(drawn_folder / "scene11.jpg", other / "scene00-old.jpg")
    with pytest.raises(InputError, match="in another folder of the same name"):
        add(out, other)
    with pytest.raises(InputError, match="may be photos of the set"):
        add(out, photos, other)


def test_an_unfinished_adding_of_other_images_is_not_overwritten(photos, out, drawn_folder, warm):
    run_killed(warm, "add: before the manifest", photos, out, "add")
    shutil.copy(drawn_folder / "scene00.jpg", photos / "zz.jpg")
    with pytest.raises(InputError, match=r"5 there, 6 here.*003\.tar to 005\.tar"):
        add(out, photos)
    with pytest.raises(InputError, match="has not finished"):
        open_index([*expand_shards(str(out)), str(out / "003.tar")])
    for path in out.iterdir():
        if path.name == ".mining.json" or path.name[:3] in ("003", "004", "005"):
            path.unlink()
    assert add(out, photos).mined == 6


def test_every_command_reads_a_set_of_two_parts(photos, out, tmp_path):
    add(out, photos)
    assert "12 images in 6 shards" in call("inspect", out).output
    done = call("refilter", out, "--min-scale", 32, "--out", tmp_path / "new", "--inline")
    assert done.exit_code == 0, done.output
    assert verify_folder(tmp_path / "new") == []
    assert rows(tmp_path / "new") == rows(out)
    done = call("export", "boxes", out, "--format", "soco", "--out", tmp_path / "soco")
    assert done.exit_code == 0, done.output
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["parts"][1]["shards"] = ["003.tar"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    refused = call("verify", out)
    assert (refused.exit_code, "its parts do not name its shards" in refused.output) == (1, True)


@pytest.mark.slow
def test_a_run_on_the_old_set_is_refused_with_the_new_and_goes_on_with_the_old(photos, out, tmp_path):
    small = ["method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32", "views.instances=0",
             "stream.batch_size=4", "stream.workers=0", "steps=2"]  # fmt: skip
    settings = [word for text in small for word in ("--set", text)]
    arguments = ["train", "--recipe", "cpu-demo", "--out", tmp_path / "run", *settings]
    assert call(*arguments, "--shards", out).exit_code == 0
    add(out, photos)
    refused = call(*arguments, "--shards", out)
    assert refused.exit_code == 1
    assert "7 images there, 12 here; its own are the first of these: --shards with 000.tar to 002.tar" in refused.output
    assert call(*arguments, "--shards", f"{out}/<000..002>.tar").exit_code == 0


def test_shards_have_the_sets_size_and_more_digits_where_needed(photos, out):
    from univip_stream.mining.pipeline import plan_job

    plan = plan_job(config(out, photos, add=True, num_shards=None))
    assert plan.job.counts == [2, 3]
    *entries, last = plan.addition.manifest.shards
    manifest = replace(plan.addition.manifest, shards=(*entries, replace(last, name="999.tar")))
    plan = replace(plan, addition=replace(plan.addition, manifest=manifest))
    assert plan.addition.names(2) == ["1000.tar", "1001.tar"]
    assert np.isclose(plan.addition.shards_for(70), 30)
