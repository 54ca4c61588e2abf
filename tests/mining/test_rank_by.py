"""`refilter --rank-by`: stored candidates in another order, by the features of a run's own backbone."""

import json
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from univip_stream.api.ranking import rank_by
from univip_stream.boxes import filter_boxes
from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.images import decode
from univip_stream.mining import MiningConfig, RefilterConfig, mine, refilter
from univip_stream.mining.ranking import RANKED_BY, ranked_again
from univip_stream.pretrain.load import load_backbone
from univip_stream.pretrain.provenance import weights_sha256
from univip_stream.probe.objectness import image_map, objectness, order_by
from univip_stream.report.rows import mining_facts
from univip_stream.shards import expand_shards, open_index
from univip_stream.shards.manifest import read_manifest
from univip_stream.shards.stored import stored_samples
from univip_stream.shards.verify import verify_folder


@pytest.fixture(scope="module")
def ranked(drawn_shards, run_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranked") / "set"
    refilter(RefilterConfig(shards=drawn_shards, out=out, inline=True, max_boxes=6, rank_by=rank_by(run_folder)))
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_candidates_come_by_the_features_and_boxes_are_chosen_from_them(drawn_shards, run_folder, ranked):
    backbone, config = load_backbone(run_folder)
    moved = 0
    for name in ("000.tar", "001.tar", "002.tar"):
        pairs = zip(stored_samples(str(drawn_shards), name, "naive"), stored_samples(str(ranked), name, "naive"), strict=True)
        for before, after in pairs:
            pixels = decode(before.data)
            places = image_map(backbone, pixels, config.augment, "it")
            order = order_by(objectness(places, before.candidates.astype(np.int32), pixels.shape[1], pixels.shape[0]))
            assert after.candidates.tolist() == before.candidates[order].tolist()
            assert after.boxes.tolist() == filter_boxes(after.candidates, 64, 3.0, 0.5, 6).tolist()
            assert (after.data, after.key, after.source) == (before.data, before.key, before.source)
            moved += order.tolist() != sorted(order)
    assert moved == 12
    assert verify_folder(ranked) == []


def test_the_manifest_says_which_run_and_weights(drawn_shards, run_folder, ranked, tmp_path):
    manifest = read_manifest(ranked)
    [said] = manifest.parameters["ranked_by"]
    assert (said["run"], said["backbone"]) == (run_folder.name, "test_resnet")
    assert said["weights_sha256"] == weights_sha256(load_backbone(run_folder)[0])
    assert len(said["provenance_sha256"]) == 64
    assert manifest.created_by["torch"] == version("torch")
    assert manifest.parameters["refiltered_from"] == read_manifest(drawn_shards).fingerprint
    assert RANKED_BY not in files(ranked)
    facts = dict(mining_facts(open_index(expand_shards(str(ranked)))))  # of `inspect`'s page
    assert facts["Ranked by"] == f"run ({said['weights_sha256'][:12]})"
    # What is chosen from it later, or ranked once more, still says so.
    refilter(RefilterConfig(shards=ranked, out=tmp_path / "fewer", inline=True, max_boxes=2))
    again = refilter(
        RefilterConfig(shards=ranked, out=tmp_path / "twice", inline=True, rank_by=rank_by("random:test_resnet"))
    )
    assert read_manifest(tmp_path / "fewer").parameters["ranked_by"] == [said]
    assert [one["run"] for one in again.parameters["ranked_by"]] == ["run", "random:test_resnet"]


def test_the_run_may_lie_elsewhere_and_the_job_may_be_interrupted(drawn_shards, run_folder, ranked, tmp_path):
    moved = shutil.copytree(run_folder, tmp_path / "elsewhere" / run_folder.name)
    out = shutil.copytree(ranked, tmp_path / "out")
    (out / "manifest.json").unlink()
    (out / "001.parquet").unlink()
    (out / RANKED_BY).write_bytes(b"left by a killed job")
    refilter(RefilterConfig(shards=drawn_shards, out=out, inline=True, max_boxes=6, rank_by=rank_by(moved)))
    assert files(out) == files(ranked)


@pytest.mark.ray
@pytest.mark.slow  # Ray
def test_two_workers_write_the_same_bytes(drawn_shards, run_folder, ranked, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        refilter(
            RefilterConfig(
                shards=drawn_shards, out=tmp_path / "inline", inline=True, max_boxes=6, rank_by=rank_by(run_folder)
            )
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert files(tmp_path / "inline") == files(ranked)
    arguments = ["refilter", str(drawn_shards), "--out", str(tmp_path / "ray"), "--max-boxes", "6", "--workers", "2"]
    done = CliRunner().invoke(cli, [*arguments, "--rank-by", str(run_folder), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == 12
    assert files(tmp_path / "ray") == files(ranked)


def test_another_run_there_is_refused(drawn_shards, ranked):
    other = rank_by("random:test_resnet")
    with pytest.raises(InputError, match=r'made with other parameters: ranked_by .*"weights_sha256"'):
        refilter(RefilterConfig(shards=drawn_shards, out=ranked, inline=True, max_boxes=6, rank_by=other))
    with pytest.raises(InputError, match=r"made with other parameters: ranked_by .* null here"):
        refilter(RefilterConfig(shards=drawn_shards, out=ranked, inline=True, max_boxes=6))


def test_what_has_no_weights_or_no_candidates_is_said(drawn_shards, drawn_folder, run_folder, tmp_path):
    def said(shards, run):
        done = CliRunner().invoke(
            cli, ["refilter", str(shards), "--out", str(tmp_path / "out"), "--inline", "--rank-by", str(run)]
        )
        assert not (tmp_path / "out").exists()
        return done.exit_code, done.output

    code, words = said(drawn_shards, tmp_path / "nowhere")
    assert (code, "no such run" in words) == (1, True)
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(run_folder / "config.json", begun)
    code, words = said(drawn_shards, begun)
    assert (code, "has no checkpoint" in words) == (1, True)
    broken = shutil.copytree(run_folder, tmp_path / "broken")
    weights = load_file(broken / "backbone.safetensors")
    weights = {name: value * float("nan") if value.is_floating_point() else value for name, value in weights.items()}
    facts = {"format": "pt", "backbone": "test_resnet", "small_stem": "False"}
    save_file(weights, broken / "nan.safetensors", metadata=facts)
    code, words = said(drawn_shards, broken / "nan.safetensors")
    assert (code, "weights are not finite" in words) == (1, True)
    code, words = said(drawn_shards, "random:resnet10000")
    assert (code, "resnet10000" in words) == (2, True)
    mine(MiningConfig(sources=(drawn_folder,), out=tmp_path / "none", num_shards=1, proposals="none", inline=True))
    code, words = said(tmp_path / "none", run_folder)
    assert (code, "no candidates to rank" in words) == (1, True)


def test_a_worker_says_what_it_lacks(drawn_shards, run_folder, tmp_path):
    ranking = replace(rank_by(run_folder), load="no_such_library.of:this_machine")
    with pytest.raises(InputError, match=r"--rank-by needs no_such_library, which is not installed on every node"):
        refilter(RefilterConfig(shards=drawn_shards, out=tmp_path / "out", inline=True, rank_by=ranking))
    sample = next(stored_samples(str(drawn_shards), "000.tar", "naive"))
    with pytest.raises(InputError, match="its row says"):
        ranked_again(replace(sample, width=3), lambda pixels, boxes: np.arange(len(boxes)))
