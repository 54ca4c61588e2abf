"""The recipes for vision transformers and ConvNeXt: they train at two sides, resume to the bit, export and are judged."""

import json
import shutil

import pytest
import timm
import torch
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import UsageError
from univip_stream.methods import build_method, build_plan
from univip_stream.networks import build_backbone
from univip_stream.pretrain import load_backbone, pretrain
from univip_stream.pretrain.optim import build_optimizer
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

SMALLEST = {"vit": "test_vit", "convnext": "test_convnext"}
"""timm's networks for tests: patches of 16 px as ViT-S/16, and ConvNeXt's blocks."""


def small(name, *settings):
    tiny = [
        f"method.backbone={SMALLEST[name]}", "method.hidden=32", "method.width=16", "views.scene_size=64",
        "views.instance_size=32", "views.instances=2", "views.min_scale=32", "stream.batch_size=4", "stream.workers=0",
        "precision=fp32", "steps=4", "record_every=1", "checkpoint_every=2", "optim.warmup_epochs=0",
    ]  # fmt: skip
    return with_settings(recipe(name), [*tiny, *settings])


@pytest.fixture(scope="module", params=[*SMALLEST])
def trained(request, tmp_path_factory, drawn_shards):
    run = tmp_path_factory.mktemp(request.param) / "run"
    said = []
    pretrain(small(request.param), str(drawn_shards), run, say=said.append)
    return request.param, run, said


def records(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in ("step", "loss", "loss_instance", "lr")] for row in rows]


def called(*words):
    return CliRunner().invoke(cli, [*map(str, words)])


def test_steps_move_what_is_to_move(trained):
    """All three terms at both sides, and the patches' projection as it began, in a vision transformer."""
    name, run, said = trained
    assert [row[0] for row in records(run)] == [1, 2, 3, 4]
    assert any("adamw" in line and "betas 0.9, 0.999" in line for line in said)
    assert not any("warning" in line for line in said)
    moved = {
        key: not torch.equal(value, now)
        for (key, value), now in zip(
            load_backbone(run, untrained=True)[0].trunk.state_dict().items(),
            load_backbone(run)[0].trunk.state_dict().values(),
            strict=True,
        )
    }
    still = {key for key, changed in moved.items() if not changed}
    assert still == ({"patch_embed.proj.weight", "patch_embed.proj.bias"} if name == "vit" else set())


def test_it_resumes_to_the_bit(trained, drawn_shards, tmp_path):
    name, run, _ = trained
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "step-000000004.pt").unlink()
    (copy / "backbone.safetensors").unlink()
    pretrain(small(name), str(drawn_shards), copy)
    assert records(copy) == records(run)
    ours, theirs = (load_backbone(folder)[0].state_dict() for folder in (run, copy))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_it_is_exported_and_judged(trained, labelled_folder, tmp_path):
    name, run, _ = trained
    done = called("export", "backbone", run, "--format", "huggingface", "--out", tmp_path / "hub")
    assert done.exit_code == 0, done.output
    network = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    backbone = load_backbone(run)[0]
    for side in (64, 32):
        images = torch.linspace(-1, 1, 3 * side * side).reshape(1, 3, side, side)
        with torch.inference_mode():
            torch.testing.assert_close(network(images), backbone(images))
    done = called("export", "backbone", run, "--format", "timm", "--out", tmp_path / "b.pth")
    assert done.exit_code == 0, done.output
    words = ["--train", labelled_folder, "--val", labelled_folder, "--k", 1, "--workers", 0, "--json"]
    done = called("eval", "knn", run, *words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["top1"] == 1.0  # every image is its own nearest
    done = called("embed", run, labelled_folder, "--dense", "--out", tmp_path / "maps", "--workers", 0, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["map"][:2] == ([4, 4] if name == "vit" else [2, 2])


@pytest.mark.parametrize("name", SMALLEST)
def test_decay_takes_weights_and_spares_norms_biases_positions_and_scales(name):
    config = small(name)
    method = build_method(config.method, build_plan(config.method, config.views, config.augment))
    decayed, spared = (group["params"] for group in build_optimizer(method, config.optim).param_groups)
    names = {id(parameter): key for key, parameter in method.backbone.trunk.named_parameters()}
    is_spared = {names[id(parameter)] for parameter in spared if id(parameter) in names}
    is_decayed = {names[id(parameter)] for parameter in decayed if id(parameter) in names}
    assert is_spared | is_decayed == set(names.values())
    assert all(key.endswith("weight") for key in is_decayed)
    assert not [key for key in is_decayed if "norm" in key]
    if name == "vit":
        assert {"pos_embed", "cls_token"} <= is_spared
    else:
        assert [key for key in is_spared if key.endswith("gamma")]


def test_sides_that_patches_do_not_divide_are_told(drawn_shards, tmp_path):
    with pytest.raises(UsageError, match=r"views.instance_size=48 fits|views.instance_size=32 fits"):
        pretrain(small("vit", "views.instance_size=40"), str(drawn_shards), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", SMALLEST)
def test_the_recipes_own_networks_take_both_sides(name):
    config = recipe(name)
    backbone = build_backbone(config.method.backbone).eval()
    with torch.inference_mode():
        for side in (config.views.scene_size, config.views.instance_size):
            assert backbone(torch.zeros(1, 3, side, side)).shape == (1, backbone.width)
