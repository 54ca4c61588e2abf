"""An exported backbone is the trained one in the library that reads it, and has the names that library publishes."""

import pickle
import pickletools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from univip_stream.augment import AugmentConfig
from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.export.backbone import FORMATS, detectron2_name, export_backbone
from univip_stream.methods import UniVIPConfig
from univip_stream.networks import build_backbone
from univip_stream.pretrain import PretrainConfig


def trained(name="resnet18", **settings):
    """A backbone with statistics of its own, as after training."""
    torch.manual_seed(0)
    backbone = build_backbone(name, **settings)
    for norm in backbone.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(norm.running_mean, std=0.1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return backbone.eval(), PretrainConfig(method=UniVIPConfig(backbone=name, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_torchvision_and_timm_give_the_same_features(name, tmp_path):
    backbone, config = trained(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = backbone(images)
    export_backbone(backbone, config, "torchvision", tmp_path / "tv.pth")
    theirs = torchvision.models.get_model(name)
    left = theirs.load_state_dict(torch.load(tmp_path / "tv.pth", weights_only=True), strict=False)
    assert (left.unexpected_keys, left.missing_keys) == ([], ["fc.weight", "fc.bias"])
    theirs.fc = torch.nn.Identity()
    export_backbone(backbone, config, "timm", tmp_path / "timm.pth")
    others = timm.create_model(name, num_classes=0)
    others.load_state_dict(torch.load(tmp_path / "timm.pth", weights_only=True))
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(images), expected, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(others.eval()(images), expected, atol=1e-6, rtol=1e-6)


def detectron2_names(depth=50):
    """Detectron2's names of a ResNet, from its modeling/backbone/resnet.py: BasicStem and BottleneckBlocks."""
    norm = ["weight", "bias", "running_mean", "running_var"]
    names = {"stem.conv1.weight", *(f"stem.conv1.norm.{part}" for part in norm)}
    for stage, blocks in zip(("res2", "res3", "res4", "res5"), {50: (3, 4, 6, 3)}[depth], strict=True):
        for block in range(blocks):
            for conv in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else [])):
                names |= {f"{stage}.{block}.{conv}.weight", *(f"{stage}.{block}.{conv}.norm.{part}" for part in norm)}
    return names


def test_detectron2_gets_its_own_names_and_a_configuration(tmp_path):
    backbone, config = trained("resnet50")
    written = export_backbone(backbone, config, "detectron2", tmp_path / "univip.pkl")
    found = pickle.loads((tmp_path / "univip.pkl").read_bytes())
    assert found["matching_heuristics"] is True
    assert set(found["model"]) == detectron2_names()
    ours = backbone.trunk.state_dict()
    for name in (
        "conv1.weight",
        "bn1.running_var",
        "layer3.0.downsample.1.weight",
        "layer4.2.conv3.weight",
        "layer2.1.bn2.bias",
    ):
        np.testing.assert_array_equal(found["model"][detectron2_name(name)], ours[name].numpy())
    assert detectron2_name("layer3.0.downsample.1.weight") == "res4.0.shortcut.norm.weight"
    assert detectron2_name("layer2.1.bn2.bias") == "res3.1.conv2.norm.bias"
    settings = yaml.safe_load(written.files[1].read_text())
    assert settings["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False
    assert settings["MODEL"]["RESNETS"]["RES2_OUT_CHANNELS"] == 256
    assert settings["INPUT"]["FORMAT"] == "RGB"
    np.testing.assert_allclose(settings["MODEL"]["PIXEL_MEAN"], np.array([0.485, 0.456, 0.406]) * 255, atol=1e-3)
    assert settings["MODEL"]["WEIGHTS"] == str(tmp_path / "univip.pkl")


def test_detectron2s_weights_name_nothing_that_an_old_numpy_lacks(tmp_path):
    export_backbone(*trained(), "detectron2", tmp_path / "univip.pkl")
    data = (tmp_path / "univip.pkl").read_bytes()
    named = {argument for code, argument, _ in pickletools.genops(data) if code.name in ("GLOBAL", "INST")}
    assert named == {"numpy ndarray", "numpy dtype"}
    assert not any("STACK_GLOBAL" in code.name for code, _, _ in pickletools.genops(data))


@pytest.mark.parametrize("folder", ["plain", 'with: colon, # and "quotes"', "zwei Wörter 😀"])
def test_the_configurations_name_their_weights_so_that_any_folder_will_do(folder, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    backbone, config = trained()
    yaml_file = export_backbone(backbone, config, "detectron2", Path("a.pkl")).files[1].resolve()
    python_file = export_backbone(backbone, config, "mmdet", Path("a.pth")).files[1].resolve()
    monkeypatch.chdir("/")
    found = yaml.safe_load(yaml_file.read_text())["MODEL"]["WEIGHTS"]
    assert Path(found) == tmp_path / folder / "a.pkl"
    settings = {}
    exec(python_file.read_text(), settings)
    found = settings["model"]["backbone"]["init_cfg"]["checkpoint"]
    assert torch.load(found, weights_only=True)["state_dict"].keys() == backbone.trunk.state_dict().keys()


@pytest.mark.parametrize(
    ("format", "name", "words"),
    [
        ("mmdet", "x.py", "expected another suffix, such as"),
        ("detectron2", "y.yaml", "expected {folder}/y.pkl"),
        ("detectron2", "y.pth", "expected {folder}/y.pkl"),
        ("detectron2", "y", "expected {folder}/y.pkl"),
        ("torchvision", "y.yaml", "expected another suffix"),
        ("timm", "y.safetensors", "expected another suffix"),
        ("safetensors", "y.pth", "expected {folder}/y.safetensors"),
    ],
)
def test_a_suffix_of_another_format_is_refused_and_nothing_is_written(format, name, words, tmp_path):
    with pytest.raises(UsageError, match=re.escape(words.format(folder=tmp_path))):
        export_backbone(*trained(), format, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_configuration_replaces_none_but_ours(tmp_path):
    backbone, config = trained()
    (tmp_path / "train.py").write_text("print('mine')")
    with pytest.raises(InputError, match="is not ours"):
        export_backbone(backbone, config, "mmdet", tmp_path / "train.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]
    for _ in range(2):
        export_backbone(backbone, config, "mmdet", tmp_path / "ours.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.pth", "ours.py", "train.py"]


def mmdet_names():
    """MMDetection's names of a ResNet-50, from its models/backbones/resnet.py: those of torchvision, without a classifier."""
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = {"conv1.weight", *(f"bn1.{part}" for part in norm)}
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            for at in (1, 2, 3):
                names |= {f"layer{stage}.{block}.conv{at}.weight", *(f"layer{stage}.{block}.bn{at}.{part}" for part in norm)}
        names |= {f"layer{stage}.0.downsample.0.weight", *(f"layer{stage}.0.downsample.1.{part}" for part in norm)}
    return names


def test_mmdetection_gets_its_own_names_and_a_configuration(tmp_path):
    backbone, config = trained("resnet50")
    written = export_backbone(backbone, config, "mmdet", tmp_path / "univip.pth")
    assert set(torch.load(tmp_path / "univip.pth", weights_only=True)["state_dict"]) == mmdet_names()
    settings = {}
    exec(written.files[1].read_text(), settings)
    model = settings["model"]
    assert model["backbone"]["init_cfg"] == {"type": "Pretrained", "checkpoint": str(tmp_path / "univip.pth")}
    assert (model["backbone"]["style"], model["backbone"]["frozen_stages"]) == ("pytorch", -1)
    assert model["data_preprocessor"]["bgr_to_rgb"] is True
    assert model["neck"]["in_channels"] == [256, 512, 1024, 2048]


@pytest.mark.slow
def test_what_a_library_is_told_of_pixels_is_what_the_training_did(tmp_path):
    backbone, config = trained("resnet50")
    config = replace(config, augment=AugmentConfig(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.1)))
    mean, std = [127.5, 102.0, 76.5], [63.75, 51.0, 25.5]
    written = export_backbone(backbone, config, "detectron2", tmp_path / "d.pkl")
    model = yaml.safe_load(written.files[1].read_text())["MODEL"]
    assert (model["PIXEL_MEAN"], model["PIXEL_STD"]) == (mean, std)
    written = export_backbone(backbone, config, "mmdet", tmp_path / "m.pth")
    settings = {}
    exec(written.files[1].read_text(), settings)
    told = settings["model"]["data_preprocessor"]
    assert (told["mean"], told["std"]) == (mean, std)
    # Where a library's file has no place for them, the line that says how to read it does.
    for format in ("torchvision", "timm"):
        use = export_backbone(backbone, config, format, tmp_path / f"{format}.pth").use
        assert "less [0.5, 0.4, 0.3], divided by [0.25, 0.2, 0.1]" in use
        assert "divided" not in export_backbone(*trained("resnet50"), format, tmp_path / f"{format}.pth").use


def test_safetensors_can_be_judged_again(tmp_path):
    from univip_stream.pretrain import load_backbone

    backbone, config = trained(small_stem=True)
    export_backbone(backbone, config, "safetensors", tmp_path / "b.safetensors")
    again, told = load_backbone(tmp_path / "b.safetensors")
    assert told.method.small_stem
    assert load_file(tmp_path / "b.safetensors").keys() == backbone.trunk.state_dict().keys()
    with torch.inference_mode():
        torch.testing.assert_close(again(torch.ones(1, 3, 32, 32)), backbone(torch.ones(1, 3, 32, 32)))


def test_what_a_library_has_not_is_said(tmp_path):
    for (backbone, config), format, words in (
        (trained(small_stem=True), "timm", "small stem"),
        (trained("mobilenetv3_small_050"), "torchvision", "mobilenetv3_small_050"),
        (trained("resnext50_32x4d"), "detectron2", "resnext50_32x4d"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            export_backbone(backbone, config, format, tmp_path / "x.pth")
        assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="torchvision, timm, detectron2, mmdet, safetensors"):
        export_backbone(*trained(), "onnx", tmp_path / "x")
    assert len(FORMATS) == 5


def test_the_command_writes_and_says_how_to_read(run_folder, tmp_path):
    done = CliRunner().invoke(
        cli, ["export", "backbone", str(run_folder), "--format", "timm", "--out", str(tmp_path / "b.pth")]
    )
    assert done.exit_code == 0, done.output
    assert 'timm.create_model("test_resnet", num_classes=0)' in done.output
    timm.create_model("test_resnet", num_classes=0).load_state_dict(torch.load(tmp_path / "b.pth", weights_only=True))
    wrong = CliRunner().invoke(cli, ["export", "backbone", str(run_folder), "--format", "timm", "--out", str(tmp_path)])
    assert wrong.exit_code == 2
    assert "expected a file" in wrong.output
