"""What a report says and shows, against the indexes read plainly and the batches that a training gets."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import boto3
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from servers import BUCKET, s3_server
from shard_rows import all_rows

from univip_stream.augment import AugmentConfig, augment
from univip_stream.cli import cli
from univip_stream.methods.univip import UniVIPPlan
from univip_stream.report.build import build_report
from univip_stream.report.page import render
from univip_stream.shards.cache import Cache
from univip_stream.stream import Stream, StreamConfig
from univip_stream.views import ViewConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def one_thread():
    """Sums are the same to the bit only where they are made by as many threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def called(*arguments):
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


def test_the_numbers_are_those_of_the_indexes(odd_shards):
    said = json.loads(called(odd_shards, "--json").stdout)
    rows = all_rows(odd_shards)
    samples = [row for row in rows if row["boxes"] is not None]
    assert said["images"] == len(rows) == 13
    assert said["by_status"] == dict(Counter(row["status"] for row in rows)) == {"ok": 10, "no_boxes": 1, "unreadable": 2}
    assert [(f["source"], f["reason"]) for f in said["failures"]] == [
        (row["source"], row["reason"]) for row in rows if row["boxes"] is None
    ]
    found = said["distributions"]
    boxes = [(x, y, w, h, row) for row in samples for x, y, w, h in row["boxes"]]
    for name, values in {
        "Boxes per image": [len(row["boxes"]) for row in samples],
        "Shortest side of a box": [min(w, h) for _, _, w, h, _ in boxes],
        "Width by height of a box": [w / h for _, _, w, h, _ in boxes],
        "Area of a box": [100 * w * h / (row["width"] * row["height"]) for _, _, w, h, row in boxes],
    }.items():
        assert sum(found[name]["counts"]) == len(values)
        np.testing.assert_allclose(
            [found[name][part] for part in ("min", "median", "max")],
            [min(values), np.median(values), max(values)], rtol=1e-5,
        )  # fmt: skip
        bars = zip(found[name]["edges"], found[name]["edges"][1:], found[name]["counts"], strict=False)
        widest = max(bars, key=lambda bar: bar[2])
        assert widest[2] == sum(widest[0] - 1e-4 <= value < widest[1] - 1e-4 for value in values)


def test_the_page_counts_its_pictures_as_its_buttons_do(odd_shards):
    report = build_report(odd_shards, samples=4)
    page = render(report).decode()
    shown = len(report.picked) + 2
    data = page.partition('id="data"')[2].partition(">")[2].partition("</script>")[0]
    assert len(json.loads(data)["items"]) == shown
    assert f"The images below are {shown}: {shown - 2} of the 11 samples" in page
    assert "and 2 of the 2 images that are not samples" in page


def test_views_and_crops_are_those_of_a_training_with_the_same_seed(drawn_shards, one_thread):
    report = build_report(drawn_shards, samples=100, seed=3)
    assert len(report.picked) == len(report.index) == 12
    by_key = {report.index.text("key", picked.sample): picked.crops for picked in report.picked}
    stream = Stream(
        str(drawn_shards), UniVIPPlan(ViewConfig(), AugmentConfig()), StreamConfig(batch_size=12, seed=3, workers=0)
    )
    batch = next(iter(stream))
    assert len(set(batch.keys)) == 12
    for b, key in enumerate(batch.keys):
        shown = by_key[key]
        for view, cut in enumerate(shown.scenes):
            assert np.array_equal(cut.before, batch.pixels["scenes"][view, b].permute(1, 2, 0).numpy())
            after = augment(
                batch.pixels["scenes"][view, b : b + 1],
                batch.draws["scenes"][view, b : b + 1],
                AugmentConfig(),
                keep_uint8=True,
            )
            assert torch.equal(torch.from_numpy(cut.after), after[0].permute(1, 2, 0))
        assert np.array_equal(shown.views.scenes, batch.windows["scenes"][:, b])
        assert np.array_equal(shown.views.instances, batch.windows["instances"][b])
        after = augment(batch.pixels["instances"][b], batch.draws["instances"][b], AugmentConfig(), keep_uint8=True)
        for k, cut in enumerate(shown.instances):
            assert np.array_equal(cut.before, batch.pixels["instances"][b, k].permute(1, 2, 0).numpy())
            assert torch.equal(torch.from_numpy(cut.after), after[k].permute(1, 2, 0))
        assert sum(rank is None for rank in shown.ranks) == batch.filled[b]
    assert report.filled == int(batch.filled.sum())


def test_the_same_shards_and_seed_give_the_same_page_and_another_seed_another(odd_shards):
    first = render(build_report(odd_shards, samples=4))
    assert first == render(build_report(odd_shards, samples=4))
    assert first != render(build_report(odd_shards, samples=4, seed=1))


def test_remote_shards_are_looked_at_without_fetching_them(drawn_shards, tmp_path):
    with s3_server():
        for path in drawn_shards.iterdir():
            boto3.client("s3").upload_file(str(path), BUCKET, f"shards/{path.name}")
        cache = Cache(tmp_path / "cache")
        remote = build_report(f"s3://{BUCKET}/shards", samples=4, cache=cache)
    local = build_report(drawn_shards, samples=4)
    assert remote.as_json() == local.as_json()
    assert len(local.picked) >= 4
    for ours, theirs in zip(local.picked, remote.picked, strict=True):
        assert np.array_equal(ours.crops.image, theirs.crops.image)
    tars = {path.stat().st_size for path in drawn_shards.glob("*.tar")}
    kept = {path.stat().st_size for path in cache.folder.rglob("*") if path.is_file()}
    assert kept
    assert not tars & kept


def test_an_image_whose_bytes_changed_is_shown_as_such_and_the_rest_is_there(drawn_shards, tmp_path):
    shards = shutil.copytree(drawn_shards, tmp_path / "shards")
    row = pq.read_table(shards / "001.parquet").to_pylist()[0]
    with open(shards / "001.tar", "r+b") as tar:
        tar.seek(row["offset"] + row["size"] // 2)
        tar.write(b"\0" * 16)
    report = build_report(shards, samples=12)
    bad = [picked for picked in report.picked if picked.problem]
    assert [report.index.text("key", picked.sample) for picked in bad] == [row["key"]]
    assert report.picked[0] is bad[0]
    assert "SHA-256 differs" in bad[0].problem
    assert row["source"].encode() in render(report)


def test_shards_of_other_programs_are_looked_at(foreign_tar, tmp_path):
    done = called(foreign_tar, "--html", tmp_path / "new" / "folder" / "page.html", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["samples"], said["boxes"], said["by_status"]) == (2, 1, {"ok": 1, "no_boxes": 1})
    assert {why for shown in said["shown"] for why in shown["why"]} >= {"no boxes", "random sample"}
    assert (tmp_path / "new" / "folder" / "page.html").stat().st_size > 10_000


def test_contact_sheets_replace_older_ones(odd_shards, tmp_path):
    folder = tmp_path / "new" / "sheets"
    folder.mkdir(parents=True)
    (folder / "views-007.png").write_bytes(b"of an earlier call")
    (folder / "mine.png").write_bytes(b"the user's")
    done = called(odd_shards, "--png", folder, "--samples", 20)
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in folder.iterdir()) == ["images-000.png", "mine.png", "views-000.png", "views-001.png"]
    with Image.open(folder / "views-000.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
    assert {(61, 139, 255), (255, 79, 163)} <= colours  # both views are drawn


def test_bad_input_is_answered_in_words(odd_shards, drawn_folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for arguments, status, words in (
        ([tmp_path / "nowhere"], 1, "no such folder of shards"),
        ([drawn_folder], 1, "holds no *.tar"),
        ([f"{odd_shards}/<000..009>.tar"], 1, "003.tar"),
        ([odd_shards, "--html", tmp_path / "file" / "page.html"], 1, "is a file; expected a folder to write to"),
        ([odd_shards, "--html", tmp_path], 2, "is a folder; expected a file"),
        ([odd_shards, "--samples", -1], 2, "--samples"),
        ([odd_shards, "--seed", 1 << 63], 2, "--seed"),
        ([odd_shards, "-q"], 2, "would do nothing"),
        ([], 2, "SHARDS"),
    ):
        done = called(*arguments)
        assert done.exit_code == status, (arguments, done.output)
        assert words in done.output
        assert "Traceback" not in done.output


def test_a_built_wheel_holds_the_page_s_files(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "univip_stream", tmp_path / "univip_stream", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", build], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        held = {Path(name).name for name in wheel.namelist() if name.startswith("univip_stream/report/page/")}
    assert held == {"page.html.jinja", "page.css", "page.js"}
