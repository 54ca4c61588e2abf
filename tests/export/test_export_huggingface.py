"""A folder for the Hub is the trained network in timm and in transformers, with the pixels that it was trained on, and its card."""

import json

import pytest
import timm
import torch
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.export.huggingface import export_huggingface
from univip_stream.methods import UniVIPConfig
from univip_stream.networks import build_backbone
from univip_stream.pretrain import PretrainConfig, load_backbone
from univip_stream.views import ViewConfig


def called(*words):
    return CliRunner().invoke(cli, [*map(str, words)])


def exported(run, out):
    done = called("export", "backbone", run, "--format", "huggingface", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def features(network, size=64):
    with torch.inference_mode():
        return network(torch.linspace(-2, 2, 2 * 3 * size * size).reshape(2, 3, size, size))


def network_of(name, run, out, size=64):
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    config = PretrainConfig(method=UniVIPConfig(backbone=name), views=ViewConfig(scene_size=size))
    export_huggingface(backbone, config, run, out)
    return backbone


def test_timm_loads_the_folder_and_crops_as_the_run_did(run_folder, tmp_path):
    out = tmp_path / "hub" / "first"
    said = exported(run_folder, out)
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors", "provenance.json"]
    backbone, config = load_backbone(run_folder)
    network = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    torch.testing.assert_close(features(network, 32), features(backbone, 32))
    assert said["use"] == f'timm.create_model("local-dir:{out}", pretrained=True)'
    data = timm.data.resolve_model_data_config(network)
    assert tuple(data["input_size"]) == (3, 32, 32)
    assert (tuple(data["mean"]), tuple(data["std"])) == (config.augment.mean, config.augment.std)
    assert (data["crop_pct"], data["crop_mode"], data["interpolation"]) == (224 / 256, "center", "bilinear")
    assert called("verify", out).exit_code == 0
    (out / "model.safetensors").write_bytes(b"other")
    assert "model.safetensors: has another SHA-256" in called("verify", out).stdout


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "convnext_atto"])
def test_every_kind_of_network_is_the_same_in_timm(name, run_folder, tmp_path):
    backbone = network_of(name, run_folder, tmp_path / "out")
    network = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(features(network), features(backbone))


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_transformers_loads_the_folder(name, run_folder, tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="needs transformers, which is not installed here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoImageProcessor, AutoModel

    backbone = network_of(name, run_folder, tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "TimmWrapperModel"
    images = torch.linspace(-2, 2, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(model(images).pooler_output, features(backbone))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.data_config["input_size"] == (3, 64, 64)


def test_its_card_is_filled_and_for_timm(run_folder, tmp_path):
    exported(run_folder, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: timm\npipeline_tag: image-feature-extraction\n")
    assert 'timm.create_model("hf-hub:' in text
    assert "12 images in 3 shards" in text
    assert "{" not in text


def test_what_is_in_the_way_or_does_not_fit_is_told(run_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for out in ("full", "file"):
        done = called("export", "backbone", run_folder, "--format", "huggingface", "--out", tmp_path / out)
        assert done.exit_code == 1
        assert "exists and is no empty folder" in done.stderr
    (tmp_path / "empty").mkdir()
    exported(run_folder, tmp_path / "empty")
    weights = run_folder / "backbone.safetensors"
    done = called("export", "backbone", weights, "--format", "huggingface", "--out", tmp_path / "new")
    assert done.exit_code == 2
    assert "is no run folder" in done.stderr
    done = called("export", "backbone", run_folder, "--format", "timm", "--out", tmp_path / "full")
    assert done.exit_code == 2
    assert "is a folder; expected a file" in done.stderr
