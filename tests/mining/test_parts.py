"""A job mined in parts by commands that know nothing of each other, and joined: the same bytes, or an error that names the part."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from killed import PARTS, run_killed
from servers import BUCKET, s3_server

from univip_stream import storage
from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.mining import MiningConfig, PartOf, join_parts, mine, mine_part
from univip_stream.mining.output import Output
from univip_stream.mining.part import parse_part
from univip_stream.mining.pipeline import plan_job
from univip_stream.shards.verify import verify_folder


def config(source, out, part=None, **changes):
    settings = {"proposals": "naive", "inline": True, "num_shards": 5} | changes
    return MiningConfig(sources=(source,), out=out, part=None if part is None else parse_part(part), **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def whole(drawn_folder, tmp_path_factory):
    """What one job leaves."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    mine(config(drawn_folder, out))
    return contents(out)


def mined_in(out, source, *parts, **changes):
    return [mine_part(config(source, out, part, **changes)) for part in parts]


def command(*words):
    return CliRunner().invoke(cli, [*map(str, words)])


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_parts_in_any_order_and_joined_are_one_job(of, drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    reports = mined_in(out, drawn_folder, *(f"{number}/{of}" for number in reversed(range(1, of + 1))))
    assert sum(report.mined for report in reports) == 12
    assert not (out / "manifest.json").exists()
    manifest, written, notes = join_parts(out)
    assert (written, notes) == (True, [])
    assert manifest.totals["images"] == 12
    assert contents(out) == whole
    assert verify_folder(out) == []
    assert join_parts(out)[1] is False
    assert contents(out) == whole


def test_parts_at_the_same_time_in_processes_of_their_own(drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "univip_stream",
        "mine",
        "--src",
        drawn_folder,
        "--out",
        out,
        "--proposals",
        "naive",
        "--inline",
    ]
    running = [
        subprocess.Popen(
            [*map(str, words), "--num-shards", "5", "--part", f"{number}/2"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    said = [(*process.communicate(timeout=120), process.returncode) for process in running]
    assert [status for *_, status in said] == [0, 0], said
    assert f"univip-stream join {out}" in said[0][0]
    assert "12 images -> 5 shards" in said[1][1]
    assert "part 2/2: 8 images in 3 shards (002 to 004)" in said[1][1]
    done = command("join", out)
    assert done.exit_code == 0, done.output
    assert contents(out) == whole


def test_what_is_missing_is_named_and_nothing_is_written(drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    done = command("join", out)
    assert done.exit_code == 1
    assert "holds no finished part" in done.output
    mined_in(out, drawn_folder, "2/4", "3/4")
    before = contents(out)
    done = command("join", out)
    assert done.exit_code == 1
    assert "2 parts of 4 are not mined: 1/4 (shard 000), 4/4 (shards 003 to 004)" in done.output
    assert "--array 1,4" in done.output
    assert contents(out) == before
    mined_in(out, drawn_folder, "1/4", "4/4")
    (out / "003.tar").rename(tmp_path / "003.tar")
    done = command("join", out)
    assert done.exit_code == 1
    assert "003.tar is missing; run part 4/4 again" in done.output
    mined_in(out, drawn_folder, "4/4")
    join_parts(out)
    assert contents(out) == whole


def test_a_part_that_is_run_again_does_no_harm(drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "1/2")
    before = contents(out)
    (again,) = mined_in(out, drawn_folder, "1/2")
    assert again.mined == 0
    assert contents(out) == before
    mined_in(out, drawn_folder, "2/2")
    join_parts(out)
    (again,) = mined_in(out, drawn_folder, "1/2")
    assert (again.mined, again.joined) == (0, True)
    assert contents(out) == whole
    assert not (out / ".mining.lock").exists()
    done = command(
        "mine", "--src", drawn_folder, "--out", out, "--proposals", "naive", "--inline", "--num-shards", 5, "--part", "2/2"
    )
    assert done.exit_code == 0
    assert "complete already" in done.stdout


def test_a_part_of_a_joined_set_is_not_mined_beside_its_manifest(drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "1/2", "2/2")
    join_parts(out)
    (out / "001.tar").unlink()
    with pytest.raises(InputError, match=r"001.tar is to be mined again; run the same command without --part"):
        mined_in(out, drawn_folder, "1/2")
    mine(config(drawn_folder, out))
    assert contents(out) == whole


def test_other_settings_are_refused(drawn_folder, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    mined_in(out, drawn_folder, "1/2")
    with pytest.raises(InputError, match="seed 0 there, 1 here"):
        mined_in(out, drawn_folder, "2/2", seed=1)
    with pytest.raises(InputError, match="num_shards 5 there, 6 here"):
        mined_in(out, drawn_folder, "2/2", num_shards=6)
    mined_in(other, drawn_folder, "2/2", seed=1)
    for name in contents(other):  # as if both had begun in the same moment, in a store without locks
        if name != ".mining.json":
            shutil.copy(other / name, out / name)
    before = contents(out)
    with pytest.raises(InputError, match=r"part 2/2 was mined with other settings than part 1/2: seed 1 there, 0 here"):
        join_parts(out)
    assert contents(out) == before


def test_sources_that_change_between_parts_are_noticed(drawn_folder, tmp_path):
    source = shutil.copytree(drawn_folder, tmp_path / "images")
    mined_in(tmp_path / "out", source, "1/2")
    (source / "scene03.jpg").rename(source / "renamed.jpg")
    with pytest.raises(InputError, match="made with other parameters: other images"):
        mined_in(tmp_path / "out", source, "2/2")


def test_parts_of_another_division_fill_the_same_set(drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "1/2")
    reports = mined_in(out, drawn_folder, "3/5", "4/5", "5/5")
    assert [report.mined for report in reports] == [3, 2, 3]
    join_parts(out)
    assert contents(out) == whole


def test_one_job_finishes_what_parts_began(drawn_folder, whole, tmp_path):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "2/2")
    assert mine(config(drawn_folder, out)).mined == 4
    assert contents(out) == whole


def test_failures_count_over_all_parts(drawn_folder, tmp_path):
    source = shutil.copytree(drawn_folder, tmp_path / "images")
    for name in ("scene00.jpg", "scene01.jpg", "scene11.jpg"):
        (source / name).write_bytes(b"no image")
    out = tmp_path / "out"
    with pytest.raises(InputError, match="2 of 2 images could not be used"):
        mined_in(out, source, "1/5", max_failures="1")
    mined_in(out, source, *(f"{number}/5" for number in range(1, 6)), max_failures="2")
    with pytest.raises(InputError, match=r"3 of 12 images could not be used; --max-failures allows 2 of 12"):
        join_parts(out)
    shutil.copy(drawn_folder / "scene11.jpg", source)
    (report,) = mined_in(out, source, "5/5", max_failures="2", retry_failed=True)
    assert report.mined == 3
    join_parts(out)
    mine(config(source, tmp_path / "one", max_failures="2"))
    assert contents(out) == contents(tmp_path / "one")


@pytest.mark.parametrize("stage", PARTS)
def test_a_part_killed_is_missing_until_it_is_run_again(stage, drawn_folder, whole, tmp_path, warm):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "2/2")
    done = run_killed(warm, stage, drawn_folder, out, "1/2")
    assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.raises(InputError, match=r"1 part of 2 is not mined: 1/2"):
        join_parts(out)
    mined_in(out, drawn_folder, "1/2")
    join_parts(out)
    assert contents(out) == whole


def test_who_holds_the_folder(drawn_folder, tmp_path):
    """Parts beside each other, but not one twice, nor beside a whole job, nor beside the command that joins them."""
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "1/2")
    with Output(out).held(PartOf(number=2, of=2).lock):
        mined_in(out, drawn_folder, "1/2")
        with pytest.raises(InputError, match="it mines the same part"):
            mined_in(out, drawn_folder, "2/2")
        for other in (lambda: mine(config(drawn_folder, out)), lambda: join_parts(out)):
            with pytest.raises(InputError, match="another `univip-stream mine` is writing here"):
                other()
    with Output(out).held(), pytest.raises(InputError, match="is writing here"):
        mined_in(out, drawn_folder, "2/2")


def test_a_damaged_file_of_a_part_is_named(drawn_folder, tmp_path):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "1/2", "2/2")
    file = out / ".mining-part-2-of-2.json"
    for data in (b"", b"{}", file.read_bytes()[:99], b"[]", json.dumps(json.loads(file.read_bytes()) | {"part": 9}).encode()):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"part-2-of-2.json is not what a part wrote .* run part 2/2 again"):
            join_parts(out)


def test_programs_of_several_versions_are_told(drawn_folder, tmp_path):
    out = tmp_path / "out"
    mined_in(out, drawn_folder, "1/2", "2/2")
    file = out / ".mining-part-2-of-2.json"
    content = json.loads(file.read_bytes())
    content["created_by"]["pyarrow"] = "1.2.3"
    file.write_text(json.dumps(content))
    done = command("join", out)
    assert done.exit_code == 0
    assert "and 1.2.3: with one version alone the bytes may be others" in done.stdout
    assert json.loads((out / "manifest.json").read_bytes())["created_by"]["pyarrow"].endswith(" and 1.2.3")


def test_in_an_object_store(drawn_folder, whole):
    with s3_server():
        out = f"s3://{BUCKET}/parts"
        mined_in(out, drawn_folder, "1/2")
        with pytest.raises(InputError, match=r"part of 2 is not mined: 2/2"):
            join_parts(out)
        with pytest.raises(InputError, match="seed 0 there, 1 here"):
            mined_in(out, drawn_folder, "2/2", seed=1)
        mined_in(out, drawn_folder, "2/2")
        join_parts(out)
        assert {name: storage.read(f"{out}/{name}") for name, _ in storage.files_below(out)} == whole


def test_notes_are_about_the_images_of_the_part(drawn_folder, tmp_path):
    source = shutil.copytree(drawn_folder, tmp_path / "pictures")
    names = sorted(path.name for path in source.iterdir())
    boxes = [{"id": at, "image_id": at, "category_id": 1, "bbox": [1, 1, 90, 90]} for at in range(len(names))]
    boxes[7]["bbox"] = [5000, 5000, 90, 90]
    images = [{"id": at, "file_name": name} for at, name in enumerate(names)]
    (tmp_path / "boxes.json").write_text(
        json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]})
    )
    settings = {"proposals": "ground-truth", "annotations": (tmp_path / "boxes.json",)}
    first, second = mined_in(tmp_path / "out", source, "1/2", "2/2", **settings)
    assert first.notes == []
    assert second.notes == ["1 box left out: outside their image, such as one of pictures/scene07.jpg"]


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/0", "-1/3", "1/2/3", "1.5/2"])
def test_what_is_no_part_is_wrong_use(text, tmp_path):
    done = command("mine", "--src", tmp_path, "--out", tmp_path / "out", "--part", text)
    assert done.exit_code == 2
    assert "such as 3/64" in done.output


def test_parts_that_cannot_be(drawn_folder, tmp_path):
    with pytest.raises(InputError, match=r"--part 1/6: the set has 5 shards, fewer than parts"):
        mined_in(tmp_path / "out", drawn_folder, "1/6")
    with pytest.raises(UsageError, match="--part and --add do not go together"):
        mined_in(tmp_path / "out", drawn_folder, "1/2", add=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="a web server cannot be written to"):
        join_parts("http://127.0.0.1:1/shards")


def test_the_bound_of_a_host_is_shared_among_parts(drawn_folder, tmp_path):
    web = storage.WebOptions(per_host=8)
    task = plan_job(config(drawn_folder, tmp_path / "out", "1/4", web=web)).job.task(0, False)
    assert task.web.per_host == 2


def test_what_a_part_says_in_json(drawn_folder, tmp_path):
    words = [
        "mine",
        "--src",
        drawn_folder,
        "--out",
        tmp_path / "out",
        "--proposals",
        "naive",
        "--inline",
        "--num-shards",
        "5",
    ]
    done = command(*words, "--part", "2/5", "--json")
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: said[name] for name in ("part", "parts", "shards", "mined", "images")} == {
        "part": 2, "parts": 5, "shards": ["001.tar"], "mined": 2, "images": 2
    }  # fmt: skip
    plan = command(*words, "--part", "3/5", "--dry-run")
    assert "part 3/5: 3 images in 1 shard (002)" in plan.output
