"""Runs side by side, with what they scored, beside the paper's numbers for their recipe."""

import json
import shutil

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.pretrain.results import PAPER, records_of


def test_scores_stand_beside_the_papers(run_folder, tmp_path):
    run = tmp_path / "mine"
    shutil.copytree(run_folder, run)
    facts = json.loads((run / "config.json").read_text())
    facts["config"]["recipe"] = "coco"
    (run / "config.json").write_text(json.dumps(facts))
    (run / "eval").mkdir()
    (run / "eval" / "linear.json").write_text(json.dumps({"protocol": "linear", "top1": 0.25}))
    (run / "eval" / "boxes.json").write_text(
        json.dumps({"protocol": "detect", "bbox": {"AP": 0.125}, "segm": {"AP": 0.0625}})
    )
    (row,) = json.loads(CliRunner().invoke(cli, ["results", str(run), "--json"]).output)
    assert row["evaluations"] == {"linear": 0.25, "detect bbox": 0.125, "detect segm": 0.0625}
    lines = CliRunner().invoke(cli, ["results", str(run)]).output.splitlines()
    head, mine, paper = (line.split("  ") for line in lines)
    cells = [[cell.strip() for cell in line if cell.strip()] for line in (head, mine, paper)]
    assert cells[0][-3:] == ["detect bbox", "detect segm", "linear"]
    assert cells[1][-3:] == ["0.125", "0.062", "0.250"]
    assert cells[0][1:6] == ["recipe", "method", "backbone", "batch", "lr"]
    assert cells[1][1:6] == ["coco", "univip", "test_resnet", "4", "0.05"]
    assert cells[2][:3] == ["paper", "coco", "univip"]
    assert cells[2][-3:] == ["0.408", "0.368", "0.602"]  # Tables 2 and 1


def test_unlike_protocols_have_no_column_together(run_folder, tmp_path):
    """AP on VOC, of another detector or of another schedule stood in the paper's column, whichever file came last."""
    run = tmp_path / "mine"
    shutil.copytree(run_folder, run, ignore=shutil.ignore_patterns("checkpoints"))
    (run / "eval").mkdir()

    def detected(model, iterations, ap, **more):
        return {"protocol": "detect", "detect": {"model": model, "iterations": iterations}, "bbox": {"AP": ap}, **more}

    results = [
        detected("mask-rcnn", 90_000, 0.4), detected("mask-rcnn", 180_000, 0.42), detected("mask-rcnn-c4", 90_000, 0.38),
        detected("faster-rcnn-c4", 24_000, 0.53, voc={"AP": 0.56}), {"protocol": "svm", "mAP": 0.8},
        {"protocol": "finetune", "fraction": 0.01, "top1": 0.3}, {"protocol": "finetune", "fraction": 0.1, "top1": 0.6},
        {"protocol": "linear", "linear": {"name": "orl"}, "top1": 0.6},
        {"protocol": "linear", "linear": {"name": "features"}, "top1": 0.5},
    ]  # fmt: skip
    for number, result in enumerate(results):
        (run / "eval" / f"{number}.json").write_text(json.dumps(result))
    (row,) = json.loads(CliRunner().invoke(cli, ["results", str(run), "--json"]).output)
    assert row["evaluations"] == {
        "detect bbox": 0.4, "detect 180000 iterations bbox": 0.42, "detect mask-rcnn-c4 bbox": 0.38,
        "detect faster-rcnn-c4 VOC07 bbox": 0.53, "detect faster-rcnn-c4 VOC07 voc": 0.56, "svm": 0.8, "finetune 0.01": 0.3,
        "finetune 0.1": 0.6, "linear": 0.6, "linear features": 0.5,
    }  # fmt: skip


def test_the_papers_rows_are_those_of_tables_1_2_and_4():
    """Top-1 of the linear probe; box and mask AP, 1x; transcribed a second time."""
    tables = {
        "coco univip": (60.2, 40.8, 36.8), "coco byol": (57.8, 39.5, 35.6),
        "coco-plus univip": (63.0, 41.1, 37.1), "coco-plus byol": (59.6, 40.0, 36.2),
        "imagenet-200 univip": (73.1, 41.6, 37.6), "imagenet-200 byol": (70.6, 40.7, 36.9),
        "imagenet-300 univip": (74.2, 42.2, 38.2), "imagenet-300 byol": (0, 40.9, 37.0),
    }  # fmt: skip
    names = ("linear", "detect bbox", "detect segm")
    found = {" ".join(row): tuple(round(100 * PAPER[row].get(name, 0), 1) for name in names) for row in PAPER}
    assert found == tables


@pytest.mark.parametrize(("key", "value"), [("optim.lr", "high"), ("stream.batch_size", True), ("seed", [1])])
def test_a_setting_that_somebody_changed_to_no_number_is_said(key, value, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    *groups, name = key.split(".")
    place = facts["config"][groups[0]] if groups else facts["config"]
    place[name] = value
    (tmp_path / "run" / "config.json").write_text(json.dumps(facts))
    done = CliRunner().invoke(cli, ["results", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "cannot be read as a run" in done.output
    assert "and no number" in done.output


def test_blank_lines_among_the_metrics_are_nothing(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    with (tmp_path / "run" / "metrics.jsonl").open("ab") as file:
        file.write(b"\r\n\n")
    assert records_of(tmp_path / "run") == records_of(run_folder)
