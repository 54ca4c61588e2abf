"""Each row of the paper's tables changes exactly what it says, and the table of runs tells it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from univip_stream.boxes import iou, naive_boxes
from univip_stream.cli import cli
from univip_stream.errors import UsageError
from univip_stream.methods import build_plan
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.ablations import ABLATIONS, ablation
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import flat, with_settings
from univip_stream.stream import Stream
from univip_stream.views import ViewConfig, draw_views

TINY = [
    "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instance_size=32",
    "views.min_scale=24", "stream.batch_size=12", "stream.workers=0", "precision=fp32", "steps=1",
]  # fmt: skip

TERMS_OF_TABLE_7 = {
    "7a": {"loss_scene"},
    "7b": {"loss_scene"},
    "7c": {"loss_scene", "loss_scene_instance"},
    "7d": {"loss_scene", "loss_instance"},
    "7e": {"loss_scene", "loss_scene_instance", "loss_instance"},
}


def row(name):
    return with_settings(recipe("cpu-demo"), [*TINY, *ablation(name).settings])


def first_batch(name, shards):
    config = row(name)
    plan = build_plan(config.method, config.views, config.augment)
    return next(iter(Stream(str(shards), plan, config.stream)))


def inside_overlap(batch):
    """bool, B x K: whether each instance lies inside what the two scenes share."""
    near, far = (
        batch.windows["scenes"][..., :2].amax(0),
        (batch.windows["scenes"][..., :2] + batch.windows["scenes"][..., 2:]).amin(0),
    )
    low, high = batch.windows["instances"][..., :2], batch.windows["instances"][..., :2] + batch.windows["instances"][..., 2:]
    return ((low >= near[:, None]) & (high <= far[:, None])).all(-1)


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_row_differs_from_the_printed_reading_in_what_its_table_names_alone(name):
    base, changed = (flat(with_settings(recipe("coco"), ablation(row).settings)) for row in ("7e", name))
    differences = {key: value for key, value in changed.items() if value != base[key]}
    expected = {
        # One augmentation of no instance is as two of none.
        "7a": {"method.name": "byol", "views.overlap": False, "views.instances": 0, "views.instance_augmentations": 2},
        "7b": {"method.scene_instance": False, "method.instance": False},
        "7c": {"method.instance": False},
        "7d": {"method.scene_instance": False},
        "8a-no": {"views.overlap": False},
        "8b-none": {"views.instances": 0, "views.regions": "none"},
        "8b-naive": {"views.regions": "naive-candidates"},
        "8c-0": {"views.instances": 0},
        "8c-2": {"views.instances": 2},
        "8c-8": {"views.instances": 8},
        "9-10": {"views.tries": 10},
        "9-30": {"views.tries": 30},
    }
    assert differences == expected.get(name, {})


def test_the_printed_reading_is_one_augmentation_and_a_plan_that_sums_to_one():
    base, printed = flat(recipe("coco")), flat(with_settings(recipe("coco"), ablation("7e").settings))
    assert {key: (base[key], value) for key, value in printed.items() if value != base[key]} == {
        "method.mass": (None, 1.0), "views.instance_augmentations": (2, 1),
    }  # fmt: skip


def test_table_7_switches_terms_and_leaves_images_views_and_the_other_terms_to_the_bit(drawn_shards, tmp_path):
    values = {name: pretrain(row(name), str(drawn_shards), tmp_path / name) for name in TERMS_OF_TABLE_7}
    for name, terms in TERMS_OF_TABLE_7.items():
        assert {key for key in TERMS_OF_TABLE_7["7e"] if values[name][key] != 0} == terms
        if name != "7a":
            assert {key: values[name][key] for key in terms} == {key: values["7e"][key] for key in terms}
            assert values[name]["filled"] == values["7e"]["filled"]
    assert values["7a"]["loss_scene"] != values["7b"]["loss_scene"]


def test_table_8_changes_views_boxes_and_their_number(drawn_shards):
    base = first_batch("7e", drawn_shards)
    assert inside_overlap(base).all()
    assert not inside_overlap(first_batch("8a-no", drawn_shards)).all()
    naive = first_batch("8b-naive", drawn_shards)
    assert (naive.filled < 4).any()
    assert inside_overlap(naive).all()
    assert (base.filled < 4).any()
    assert "instances" not in first_batch("8c-0", drawn_shards).pixels
    for K in (2, 4, 8):
        assert first_batch(f"8c-{K}", drawn_shards).pixels["instances"].shape[:2] == (12, K)
    assert "instances" not in first_batch("8b-none", drawn_shards).pixels
    assert torch.equal(first_batch("8c-4", drawn_shards).windows["scenes"], base.windows["scenes"])


@pytest.mark.slow
def test_table_8_naive_differs_in_its_boxes_alone():
    """Views chosen by random boxes are like those chosen by mined ones; those that no box chose are not."""

    def looks(regions, count=400):
        areas, overlaps, filled = [], [], 0
        for seed in range(count):
            # As mined ones are after the filter: 12 boxes of at least 64 px.
            mined = naive_boxes((0, 0, 640, 480), 12, np.random.default_rng(10_000 + seed))
            views = draw_views(mined, 640, 480, np.random.default_rng(seed), ViewConfig(regions=regions))
            areas.append(views.scenes[:, 2:].prod(1).mean() / (640 * 480))
            overlaps.append(iou(views.scenes[:1], views.scenes[1:])[0, 0])
            filled += views.filled
        return np.mean(areas), np.mean(overlaps), filled / count

    base, naive, without = looks("mined"), looks("naive-candidates"), looks("naive")
    assert naive[:2] == pytest.approx(base[:2], abs=0.05)
    assert naive[2] == pytest.approx(base[2], abs=0.3)
    assert without[0] < base[0] - 0.1
    assert without[1] < base[1] - 0.1
    assert without[2] == 4


@pytest.mark.parametrize("tries", [10, 20, 30])
def test_table_9_is_how_many_pairs_of_views_are_tried(tries):
    nothing = np.zeros((0, 4), np.int32)
    drawn = draw_views(nothing, 640, 480, np.random.default_rng(0), row(f"9-{tries}").views)
    assert drawn.tries == tries


def test_a_row_that_no_table_has_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"'8b-naiv'; did you mean 8b-naive\? They are the rows of the paper's tables: 7a, "):
        ablation("8b-naiv")
    with pytest.raises(UsageError, match=r"there is no ablation 'zzz'\. They are the rows of the paper's tables: 7a, "):
        ablation("zzz")


def test_the_script_runs_a_grid_and_prints_the_table(drawn_shards, labelled_folder, tmp_path, warm):
    probe = tmp_path / "probe"
    probe.mkdir()
    for half in ("train", "val"):
        (probe / half).symlink_to(labelled_folder)
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {
        "PATH": f"{warm.bin}:{os.environ['PATH']}", "PYTHONPATH": str(root), "ROWS": "7b 8a-no", "PROBE": str(probe),
    }  # fmt: skip
    texts = [argument for setting in TINY for argument in ("--set", setting)]
    out = tmp_path / "runs"
    command = ["bash", "pipelines/ablations.sh", str(drawn_shards), str(out), "--recipe", "cpu-demo", *texts]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    head, scene, random = done.stdout.splitlines()[-3:]
    columns = "run recipe method backbone batch lr terms views regions K tries seed steps loss std knn"
    assert head.split() == columns.split()
    for line, told in (
        (scene, ["7b-seed0", "cpu-demo", "univip", "S", "overlap", "mined", "4", "20", "0", "1"]),
        (random, ["8a-no-seed0", "cpu-demo", "univip", "S+SI+I", "random", "mined", "4", "-", "0", "1"]),
    ):
        cells = line.split()
        assert [*cells[:3], *cells[6:13]] == told
    rows = json.loads(CliRunner().invoke(cli, ["results", "--json", str(out / "7b-seed0"), str(out / "8a-no-seed0")]).output)
    for found in rows:
        knn = json.loads((out / found["name"] / "eval" / "knn.json").read_text())["top1"]
        loss = json.loads((out / found["name"] / "metrics.jsonl").read_text())["loss"]
        assert (found["evaluations"], found["loss"]) == ({"knn": knn}, loss)


def test_a_folder_without_runs_is_said(tmp_path):
    result = CliRunner().invoke(cli, ["results", str(tmp_path)])
    assert result.exit_code == 1
    assert "is no run and holds none" in result.output


def test_the_papers_numbers_are_printed_as_its_tables_have_them():
    rows = json.loads(CliRunner().invoke(cli, ["results", "--paper", "--json"]).output)
    tables = (
        "7a 57.3 39.5 7b 57.7 39.6 7c 58.1 40.4 7d 59.6 40.5 7e 60.2 40.8 8a-no 59.3 40.3 8b-naive 58.9 40.5 "
        "8c-2 59.8 40.4 8c-8 59.7 40.6 9-10 60.0 40.7"
    )
    cells = iter(tables.split())
    for name, top1, box_ap in zip(cells, cells, cells, strict=True):
        assert (rows[name]["top1"], rows[name]["box_ap"]) == (float(top1), float(box_ap))


def test_a_row_that_only_its_boxes_tell_from_others_is_refused_on_shards_with_other_boxes(drawn_shards, tmp_path):
    """8b-ground-truth on shards of selective search would be 7e under another name."""
    shards = tmp_path / "shards"
    shutil.copytree(drawn_shards, shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    for of, name, refused in (
        ("selective-search", "8b-ground-truth", True), ("ground-truth", "8b-selective-search", True),
        ("ground-truth", "8b-ground-truth", False), ("edge-boxes", "8b-selective-search", False), ("selective-search", "7e", False),
    ):  # fmt: skip
        manifest["parameters"]["proposals"] = of
        (shards / "manifest.json").write_text(json.dumps(manifest))
        given = [word for setting in TINY for word in ("--set", setting)]
        # What is not refused stops before its first step, at a setting that is wrong.
        done = CliRunner().invoke(
            cli, ["train", "--recipe", "cpu-demo", "--ablation", name, "--shards", str(shards), "--out", str(tmp_path / "run"),
                  *given, "--set", "stream.batch_size=1"],
        )  # fmt: skip
        assert done.exit_code == 2, done.output
        assert ("differs from other rows in its shards alone" in done.output) == refused, (of, name, done.output)
        if refused:
            assert f"mined with --proposals {of}" in done.output
            assert f"mine --proposals {ablation(name).proposals}" in done.output
    assert not (tmp_path / "run").exists()
