"""Mining on a real Ray, and without: the files it leaves are what is tested."""

import gc
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image
from servers import BUCKET, s3_server
from shard_rows import all_rows, rows_of

from univip_stream import storage
from univip_stream.boxes import filter_boxes, validate_boxes
from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.failures import allowed_failures
from univip_stream.mining import MiningConfig, mine
from univip_stream.mining.pipeline import plan_job
from univip_stream.shards import open_index
from univip_stream.shards.verify import verify_folder

pytestmark = pytest.mark.ray  # the set that most of them look at


def config(source, out, **changes):
    settings = {"proposals": "naive", "inline": True, "num_shards": 3} | changes
    return MiningConfig(sources=(source,), out=out, **settings)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def mined(drawn_folder, tmp_path_factory, kernels):
    """Twelve drawn scenes mined on a local Ray, by the command a user types."""
    out = tmp_path_factory.mktemp("mined") / "shards"
    command = ["mine", "--src", str(drawn_folder), "--out", str(out), "--num-shards", "3"]
    done = subprocess.run([sys.executable, "-m", "univip_stream", *command], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return out, done


def test_mine_writes_tars_indexes_and_manifest_and_says_so(mined):
    out, done = mined
    assert sorted(contents(out)) == sorted(
        [f"{n:03d}.{kind}" for n in range(3) for kind in ("tar", "candidates.parquet", "parquet")] + ["manifest.json"]
    )
    assert "images/s" in done.stderr
    assert "took" in done.stderr
    assert f"'{out}/<000..002>.tar' --out runs/first --recipe cpu-demo --batch-size 12\n" in done.stdout


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_plain_webdataset_reads_every_sample_and_its_boxes_obey_the_filter(mined, drawn_folder):
    out, _ = mined
    samples = list(webdataset.WebDataset(f"{out}/{{000..002}}.tar", shardshuffle=False))
    gc.collect()  # webdataset leaves its files to the garbage collector
    assert len(samples) == 12
    for sample, source in zip(samples, sorted(drawn_folder.iterdir()), strict=True):
        image = Image.open(io.BytesIO(sample["jpg"]))
        image.load()
        facts = json.loads(sample["json"])
        boxes = facts["boxes"]
        assert sample["jpg"] == source.read_bytes()
        assert (facts["width"], facts["height"]) == image.size
        assert facts["source"] == f"{drawn_folder.name}/{source.name}"
        assert facts["proposals"] == "selective-search"
        assert len(boxes) > 0
        validate_boxes(boxes, *image.size)
        assert all(min(w, h) >= 64 and max(w, h) <= 3 * min(w, h) for _, _, w, h in boxes)
        assert filter_boxes(boxes).tolist() == boxes


def test_the_index_finds_every_image_and_keeps_all_candidates(mined, drawn_folder):
    out, _ = mined
    for shard in sorted(out.glob("*.tar")):
        data = shard.read_bytes()
        for row in rows_of(shard.with_suffix(".parquet")):
            image = data[row["offset"] : row["offset"] + row["size"]]
            assert image == (drawn_folder / row["source"].split("/")[1]).read_bytes()
            assert filter_boxes(row["candidates"]).tolist() == row["boxes"]
            assert len(row["candidates"]) > len(row["boxes"])


def test_members_are_owned_by_nobody_at_no_time_and_samples_stand_together(mined):
    out, _ = mined
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in members} == {(0, 0, "", "", 0, 0o644)}
        assert [m.name.split(".")[0] for m in members[::2]] == [m.name.split(".")[0] for m in members[1::2]]


def test_ray_and_no_ray_give_the_same_bytes(mined, drawn_folder, tmp_path):
    mine(config(drawn_folder, tmp_path / "inline", proposals="selective-search"))
    assert contents(tmp_path / "inline") == contents(mined[0])


@pytest.mark.slow
def test_default_numbers_of_shards(tmp_path, monkeypatch):
    def shards(images, **changes):
        folder = tmp_path / str(images)
        if not folder.exists():
            folder.mkdir()
            for number in range(images):
                (folder / f"{number}.jpg").touch()
        plan = plan_job(config(folder, tmp_path / "out", **changes)).job
        tasks = [plan.task(number, False) for number in range(len(plan.names))]
        assert sum(len(task.images) for task in tasks) == images
        assert min(len(task.images) for task in tasks) >= 1
        return [task.name for task in tasks]

    assert shards(1, num_shards=None) == ["000.tar"]
    assert shards(80, num_shards=None) == ["000.tar", "001.tar"]
    assert shards(5000, num_shards=None) == [f"{number:03d}.tar" for number in range(128)]
    assert len(shards(5, num_shards=128)) == 5
    assert shards(5000, num_shards=2000)[-1] == "1999.tar"


def test_mining_again_keeps_what_is_finished(drawn_folder, tmp_path):
    out = tmp_path / "out"
    first = mine(config(drawn_folder, out))
    before = contents(out)
    (out / "001.tar").unlink()
    (out / f".002.tar.{0:032x}.tmp").write_bytes(b"half a shard of an attempt that died")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    again = mine(config(drawn_folder, out))
    assert (first.mined, again.mined) == (12, 4)
    assert contents(out) == before
    assert all((out / name).stat().st_mtime_ns == when for name, when in times.items())


def test_killed_while_mining_then_run_again_gives_the_same_bytes(drawn_folder, tmp_path):
    mine(config(drawn_folder, tmp_path / "calm", proposals="opencv-fast"))
    out = tmp_path / "killed"
    command = ["mine", "--src", str(drawn_folder), "--out", str(out), "--num-shards", "3"]
    command += ["--proposals", "opencv-fast", "--inline"]
    process = subprocess.Popen([sys.executable, "-m", "univip_stream", *command], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (out / "000.parquet").exists() and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    with pytest.raises(InputError, match="run the same"):
        open_index([str(out / "000.tar")])
    report = mine(config(drawn_folder, out, proposals="opencv-fast"))
    assert report.mined < 12
    assert contents(out) == contents(tmp_path / "calm")


@pytest.fixture
def troubled(drawn_folder, tmp_path):
    """A folder with every kind of trouble among good images."""
    folder = tmp_path / "troubled"
    shutil.copytree(drawn_folder, folder)
    good = (folder / "scene00.jpg").read_bytes()
    (folder / "a-text.jpg").write_text("these are words")
    (folder / "b-empty.jpg").touch()
    (folder / "c-cut.jpg").write_bytes(good[: len(good) // 2])
    (folder / "d-tiny.png").write_bytes(_png(np.zeros((4, 4, 3), np.uint8)))
    (folder / "e-narrow.png").write_bytes(_png(np.zeros((50, 300, 3), np.uint8)))
    (folder / "f.v1.jpg").write_bytes(good)
    (folder / "f.v2.jpg").write_bytes(good)
    (folder / "notes.txt").write_text("not an image")
    return folder


def _png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_every_image_is_a_row_with_its_reason_and_counts_add_up(troubled, tmp_path):
    out = tmp_path / "out"
    report = mine(config(troubled, out, max_failures="50%"))
    totals = report.manifest.totals
    assert totals["images"] == 19 == sum(totals[s] for s in totals if s not in ("images", "samples", "bytes"))
    assert totals["samples"] == 15
    assert {source.split("/")[1]: status for source, status, _ in report.failures} == {
        "a-text.jpg": "unreadable", "b-empty.jpg": "unreadable", "c-cut.jpg": "unreadable", "d-tiny.png": "too_small"
    }  # fmt: skip
    assert report.ignored == {".txt": 1}
    rows = all_rows(out)
    assert len(rows) == 19
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    assert {row["status"] for row in rows if row["source"].endswith("e-narrow.png")} == {"no_boxes"}
    assert len({row["key"] for row in rows}) == 19
    assert not any("." in row["key"] for row in rows)
    assert verify_folder(out) == []


def test_too_many_failures_stop_with_a_list_and_keep_the_rows(troubled, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"3 of 6 images could not be used; --max-failures allows 1% of 19") as caught:
        mine(config(troubled, out))
    for name in ("a-text.jpg: unreadable", "b-empty.jpg: unreadable: the file is empty", "c-cut.jpg"):
        assert name in str(caught.value)
    assert not (out / "manifest.json").exists()
    accepted = mine(config(troubled, out, max_failures="3"))
    assert accepted.manifest.totals["unreadable"] == 3
    assert accepted.mined == 0 or len(accepted.manifest.shards) == 3


def test_failures_mended_in_place_are_mined_when_asked(troubled, tmp_path):
    out = tmp_path / "out"
    mine(config(troubled, out, max_failures="50%"))
    shutil.copy(troubled / "scene00.jpg", troubled / "c-cut.jpg")
    (troubled / "scene00.jpg").write_bytes(b"gone bad, but it was mined")
    report = mine(config(troubled, out, max_failures="50%", retry_failed=True))
    assert report.manifest.totals["unreadable"] == 2
    assert verify_folder(out) == []


def test_other_parameters_over_the_same_folder_are_refused_and_named(drawn_folder, tmp_path):
    out = tmp_path / "out"
    mine(config(drawn_folder, out))
    before = contents(out)
    with pytest.raises(InputError, match="seed 0 there, 1 here"):
        mine(config(drawn_folder, out, seed=1))
    assert contents(out) == before


def test_shards_whose_images_were_read_otherwise_are_not_continued(drawn_folder, tmp_path, monkeypatch):
    """16-bit images changed their pixels once: half a set of each would be no set."""
    out = tmp_path / "out"
    with monkeypatch.context() as earlier:
        earlier.setattr("univip_stream.mining.pipeline.IMAGES_VERSION", "1")
        mine(config(drawn_folder, out))
    before = contents(out)
    with pytest.raises(InputError, match="images_version '1' there, '2' here"):
        mine(config(drawn_folder, out))
    assert contents(out) == before


@pytest.mark.parametrize("name", ["000.parquet", "manifest.json", "mine.tar"])
def test_files_of_others_are_left_alone(name, drawn_folder, tmp_path):
    (tmp_path / name).write_bytes(b"precious")
    (tmp_path / ".notes.tmp").write_bytes(b"precious too")
    with pytest.raises(InputError, match=f"no job of ours wrote .{name}"):
        mine(config(drawn_folder, tmp_path))
    assert contents(tmp_path) == {name: b"precious", ".notes.tmp": b"precious too"}
    (tmp_path / name).unlink()
    mine(config(drawn_folder, tmp_path))
    assert (tmp_path / ".notes.tmp").exists()


def test_shards_do_not_go_among_the_images(labelled_folder):
    for out in (labelled_folder, labelled_folder / "disc" / "shards"):
        with pytest.raises(InputError, match="lies in the source"):
            mine(config(labelled_folder, out))


def test_a_lost_or_damaged_manifest_is_made_again(drawn_folder, tmp_path):
    out = tmp_path / "out"
    mine(config(drawn_folder, out))
    before = contents(out)
    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"{")):
        damage(out / "manifest.json")
        assert mine(config(drawn_folder, out)).mined == 0
        assert contents(out) == before


def test_mining_into_an_object_store_gives_the_same_bytes(drawn_folder, tmp_path):
    mine(config(drawn_folder, tmp_path / "local"))
    expected = contents(tmp_path / "local")
    with s3_server():
        out = f"s3://{BUCKET}/sets/drawn"

        def there():
            return {name: storage.read(f"{out}/{name}") for name, _ in storage.files_below(out)}

        assert mine(config(drawn_folder, out)).mined == 12
        assert there() == expected
        storage.remove(f"{out}/001.parquet")
        assert mine(config(drawn_folder, out)).mined == 4
        assert there() == expected
        with pytest.raises(InputError, match="seed 0 there, 1 here"):
            mine(config(drawn_folder, out, seed=1))


def test_two_jobs_do_not_write_one_folder(drawn_folder, tmp_path):
    def second(plan, finished):
        with pytest.raises(InputError, match="another `univip-stream mine` is writing here"):
            mine(config(drawn_folder, tmp_path / "out"))

    mine(config(drawn_folder, tmp_path / "out"), planned=second)


def propose_outside(image):
    return [[0, 0, image.shape[1] + 1, image.shape[0]]]


def propose_halves(image):
    height, width = image.shape[:2]
    return [[0, 0, width // 2, height], [width // 2, 0, width - width // 2, height]]


def test_a_users_own_proposer_is_used_and_its_nonsense_is_named(drawn_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    report = mine(config(drawn_folder, tmp_path / "own", proposals="test_mine:propose_halves"))
    assert report.manifest.totals["ok"] == 12
    with pytest.raises(InputError, match=r"scene00\.jpg: --proposals test_mine:propose_outside: box 0 is"):
        mine(config(drawn_folder, tmp_path / "bad", proposals="test_mine:propose_outside"))


def propose_badly(image):
    raise RuntimeError("no weights")


def test_a_users_own_error_names_image_and_line(drawn_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with pytest.raises(InputError, match=r"scene00\.jpg: .* raised RuntimeError: no weights \(.*test_mine\.py, line"):
        mine(config(drawn_folder, tmp_path / "out", proposals="test_mine:propose_badly"))


def test_no_proposals_keep_the_images_without_boxes(drawn_folder, tmp_path):
    totals = mine(config(drawn_folder, tmp_path / "out", proposals="none")).manifest.totals
    assert (totals["samples"], totals["no_boxes"]) == (12, 12)


def test_failures_may_be_a_share_or_a_number():
    assert allowed_failures("1%", 250) == 2.5
    assert allowed_failures("7", 250) == 7
    for nonsense in ("-1", "101%", "some", "%"):
        with pytest.raises(UsageError, match="--max-failures"):
            allowed_failures(nonsense, 10)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--src", "{tmp}/nowhere"], 1, "no such folder"),
        (["--src", "{tmp}"], 1, "holds no image"),
        (["--src", "{drawn}", "--proposals", "opencv-quick"], 2, "unknown --proposals 'opencv-quick'"),
        (["--src", "{drawn}", "--proposals", "nowhere:f"], 2, "No module named 'nowhere'"),
        (["--src", "{drawn}", "--proposals", ":"], 2, "--proposals :"),
        (["--src", "{drawn}", "--option", "seed=3"], 2, "the seed is --seed"),
        (["--src", "{drawn}", "--proposals", "naive", "--option", "cuont=3"], 2, "no option 'cuont'; it has count; did"),
        (["--src", "{drawn}", "--option", "count"], 2, "expected KEY=VALUE"),
        (["--src", "{drawn}", "--min-scale", "0"], 2, "--min-scale"),
        (["--src", "{drawn}", "--address", "127.0.0.1:1"], 1, "nobody answers there"),
        (["--src", "{drawn}", "--out", "{drawn}/shards"], 1, "lies in the source"),
        ([], 2, "--src"),
    ],
)
def test_wrong_use_is_said_without_a_traceback(arguments, status, words, drawn_folder, tmp_path):
    words_given = [text.format(tmp=tmp_path, drawn=drawn_folder) for text in arguments]
    inline = [] if "--address" in arguments else ["--inline"]
    result = CliRunner().invoke(cli, ["mine", "--out", str(tmp_path / "out"), *inline, *words_given])
    assert result.exit_code == status
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_dry_run_writes_nothing(drawn_folder, tmp_path):
    result = CliRunner().invoke(cli, ["mine", "--src", str(drawn_folder), "--out", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0
    assert "12 images -> 1 shard" in result.output
    assert not (tmp_path / "out").exists()


def test_the_command_that_comes_next_fits_the_number_of_images():
    """What it suggests for few images must start: a batch that they fill, and no 800 epochs of a ResNet-50."""
    from univip_stream.cli.mine import DEMO_BATCH, FEW, fitting_recipe
    from univip_stream.errors import counted
    from univip_stream.pretrain.recipes import recipe

    assert recipe("cpu-demo").stream.batch_size == DEMO_BATCH
    for images in (2, 3, 12, 31, 32, 148, 2000, FEW - 1, FEW, 118_287):
        options, why = fitting_recipe(images)
        name, *rest = options.removeprefix("--recipe ").split()
        config = recipe(name)
        batch = int(rest[1]) if rest else config.stream.batch_size
        assert 2 <= batch <= images
        assert name == ("cpu-demo" if images < FEW else "coco")
        assert counted(images, "image") in why
    assert fitting_recipe(1)[0] == ""
