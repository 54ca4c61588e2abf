"""Every method by its name: trained from the same shards with the paper's views, stopped, continued, exported."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.methods import METHODS
from univip_stream.pretrain import load_backbone

UNLIKE = ("images_per_second", "data_wait", "memory_bytes")
NEW = sorted(METHODS.keys() - {"univip", "byol"})
SMALL = ["method.backbone=test_resnet", "method.hidden=16", "method.width=8", "views.scene_size=32",
         "views.instance_size=32", "views.min_scale=32", "stream.batch_size=4", "stream.workers=0", "precision=fp32",
         "record_every=1", "checkpoint_every=2", "steps=3"]  # fmt: skip


def train(shards, run, name, *settings, recipe="cpu-demo"):
    texts = [argument for setting in (*SMALL, *settings) for argument in ("--set", setting)]
    words = ["train", "--shards", str(shards), "--out", str(run), "--recipe", recipe, "--method", name, *texts]
    return CliRunner().invoke(cli, words)


def records(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in UNLIKE} for row in rows]


def small(name, pairs):
    return {
        "moco-v2": ["method.queue=10"],
        "densecl": ["method.queue=10"],
        "soco": ["views.third_size=16"],
        "orl": [f"views.pairs={pairs}"],
        "multicrop": ["method.small_size=16", "method.small_views=3"],
    }.get(name, [])


@pytest.mark.parametrize("name", NEW)
@pytest.mark.slow
def test_a_run_stopped_and_continued_is_the_undisturbed_one_to_the_bit(name, drawn_shards, drawn_pairs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = small(name, drawn_pairs)
    done = train(drawn_shards, whole, name, *settings)
    assert done.exit_code == 0, done.output
    rows = records(whole)
    assert len(rows) == 3
    assert set(METHODS[name].terms) == {key for key in rows[0] if key.startswith("loss_")}
    assert len({row["loss"] for row in rows}) == 3

    # What a run that was killed after step 3, before its checkpoint, leaves behind.
    shutil.copytree(whole, parts)
    (parts / "checkpoints" / "step-000000003.pt").unlink()
    kept = (parts / "metrics.jsonl").read_text().splitlines()[:2]
    (parts / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    again = train(drawn_shards, parts, name, *settings)
    assert again.exit_code == 0, again.output
    assert "continues after step 2" in again.output
    assert records(parts) == rows
    ours, theirs = (
        torch.load(run / "checkpoints" / "step-000000003.pt", weights_only=True)["method"] for run in (parts, whole)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    if name in ("moco-v2", "densecl"):
        assert ours["queue.place"].item() == 12 % 10

    weights = safetensors.torch.load_file(whole / "backbone.safetensors")
    plain = timm.create_model("test_resnet", num_classes=0)
    plain.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(images), load_backbone(whole)[0](images))


def test_a_methods_views_are_laid_over_the_recipe_and_under_the_options(drawn_shards, tmp_path):
    done = train(drawn_shards, tmp_path / "run", "moco-v2", "method.temperature=0.5", "method.queue=10", "steps=1")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["views"]["crop_scale"] == [0.2, 1.0]
    assert config["augment"]["blur_p"] == [0.5, 0.5]
    assert config["views"]["instances"] == 0
    assert config["ema"] == 0.999
    assert config["method"]["temperature"] == 0.5
    assert records(tmp_path / "run")[0]["momentum"] == 0.999


SCENES = {"scenes": (2, 4, 3, 32, 32)}
VIEWS = {
    # overlapping views, where regions come from and how many; what forward is given
    "univip": (True, "mined", 4, SCENES | dict.fromkeys(("instances", "instances_again"), (4, 4, 3, 32, 32))),
    "byol": (False, "mined", 0, SCENES),
    "simclr": (False, "mined", 0, SCENES),
    "moco-v2": (False, "mined", 0, SCENES),
    "densecl": (False, "mined", 0, SCENES),
    "scrl": (True, "naive", 10, SCENES | {"boxes": (4, 2, 10, 4)}),
    "soco": (True, "mined", 4, SCENES | {"boxes": (4, 3, 4, 4), "third": (1, 4, 3, 112, 112)}),
    "orl": (False, "mined", 0, SCENES | {"patches": (4, 4, 3, 32, 32)}),
    "multicrop": (False, "mined", 0, {"large": (2, 4, 3, 32, 32), "small": (6, 4, 3, 96, 96)}),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_run_has_the_views_of_the_methods_paper(name, drawn_shards, drawn_pairs, tmp_path, monkeypatch):
    overlap, regions, instances, shapes = VIEWS[name]
    given = {}
    kind = METHODS[name]

    def heard(self, batch):
        given.update(batch)
        return real(self, batch)

    real = kind.forward
    monkeypatch.setattr(kind, "forward", heard)
    pairs = [f"views.pairs={drawn_pairs}"] if name == "orl" else []
    done = train(drawn_shards, tmp_path / "run", name, "steps=1", *pairs)
    assert done.exit_code == 0, done.output
    views = json.loads((tmp_path / "run" / "config.json").read_text())["config"]["views"]
    assert (views["overlap"], views["regions"], views["instances"]) == (overlap, regions, instances)
    assert {what: tuple(tensor.shape) for what, tensor in given.items()} == shapes


@pytest.mark.slow
def test_byol_is_row_a_of_table_7_to_the_bit_unless_other_views_are_asked_for(drawn_shards, tmp_path):
    def losses(name, *words, shards=drawn_shards):
        texts = [argument for setting in SMALL for argument in ("--set", setting)]
        run = tmp_path / name
        done = CliRunner().invoke(
            cli, ["train", "--shards", str(shards), "--out", str(run), "--recipe", "cpu-demo", *texts, *words]
        )
        assert done.exit_code == 0, done.output
        return [row["loss"] for row in records(run)]

    baseline = losses("method", "--method", "byol")
    assert baseline == losses("row", "--ablation", "7a")
    # What is said in so many words holds: the method alone, or the method and its views.
    overlapping = losses("b", "--ablation", "7b")
    assert baseline != overlapping
    assert overlapping == losses("alone", "--set", "method.name=byol")
    views = ["--set", "views.overlap=true", "--set", "views.instances=4"]
    assert overlapping == losses("asked", "--method", "byol", *views)
    assert losses("8a", "--ablation", "8a-yes", "--method", "byol", "--set", "views.instances=4") == overlapping


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("scrl", "views.instances=0", "scrl looks at boxes, and views.instances is 0"),
        ("soco", "method.cutout_p=2", "method.cutout_p is 2.0; expected a chance, 0 to 1"),
        ("multicrop", "method.small_size=4", "method.small_size is 4; expected 8 to 4096 pixels"),
        ("byol", "method.epsilon=0.1", "there is no setting 'method.epsilon'"),
        ("orl", "steps=1", "views.pairs names no file of them; `univip-stream retrieve` makes one"),
    ],
)
def test_views_that_lack_what_a_method_wants_are_refused(name, setting, words, drawn_shards, tmp_path):
    done = train(drawn_shards, tmp_path / "run", name, setting)
    assert (done.exit_code, words in done.output) == (2, True), done.output
    assert not (tmp_path / "run").exists()  # so that the mended command does not meet a run of other settings


def test_pairs_may_move_but_not_change_while_a_run_goes_on(drawn_shards, drawn_pairs, tmp_path):
    moved, changed = tmp_path / "moved.parquet", tmp_path / "changed.parquet"
    shutil.copy(drawn_pairs, moved)
    table = pq.read_table(drawn_pairs)
    pq.write_table(table.take([*range(1, len(table)), 0]), changed)
    for path, status in ((drawn_pairs, 0), (moved, 0), (changed, 1)):
        done = train(drawn_shards, tmp_path / "run", "orl", f"views.pairs={path}", "steps=1")
        assert done.exit_code == status, done.output
    assert "another file of pairs" in done.output
