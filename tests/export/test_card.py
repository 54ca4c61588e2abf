"""A model card says what the run folder says, and marks what a person must add."""

import json
import shutil

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.pretrain import load_backbone


def called(*words):
    return CliRunner().invoke(cli, ["export", "card", *map(str, words)])


def test_a_card_holds_what_the_run_is(run_folder, tmp_path):
    facts = json.loads((run_folder / "config.json").read_text())
    backbone, config = load_backbone(run_folder)
    done = called(run_folder, "--out", tmp_path / "card.md", "--json")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "card.md").read_text()
    assert json.loads(done.output)["to_fill"] == text.count("CHANGE:") >= 4
    assert text.startswith("---\nlibrary_name: univip-stream\n")
    for said in (
        f"# {run_folder.name}",
        config.method.backbone,
        f"`{config.method.name}`",
        f"{facts['shards']['images']} images in {len(facts['shards']['paths'])} shard",
        facts["shards"]["fingerprint"][:16],
        f"-> B x {backbone.width}",
        f"`method.hidden={config.method.hidden}`",
    ):
        assert said in text, said
    assert "{" not in text
    assert "None: `univip-stream eval knn" in text


def test_evaluations_of_the_run_are_its_results(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "eval").mkdir()
    (tmp_path / "run" / "eval" / "knn.json").write_text(json.dumps({"protocol": "knn", "top1": 0.12345}))
    assert called(tmp_path / "run", "--out", tmp_path / "card.md").exit_code == 0
    assert "| knn | 0.123 |" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize("what", ["nowhere", "empty"])
def test_no_run_is_told(what, tmp_path):
    (tmp_path / "empty").mkdir()
    done = called(tmp_path / what, "--out", tmp_path / "card.md")
    assert done.exit_code == 1
    assert "is no run" in done.output
    assert not (tmp_path / "card.md").exists()
