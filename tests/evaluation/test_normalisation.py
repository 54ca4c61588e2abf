"""What a network is judged on is normalised as its training was, in every command and from every kind of file."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation.detection.models import MODELS, build_detector
from univip_stream.evaluation.subject import open_subject
from univip_stream.mining import MiningConfig, mine
from univip_stream.pretrain import load_backbone, pretrain
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.1)
GREY = 153
EXPECTED = [(GREY / 255 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]


def settings(*more, backbone="test_resnet"):
    small = [
        f"method.backbone={backbone}", "method.hidden=16", "method.width=8", "views.scene_size=32", "views.instances=0",
        "stream.batch_size=4", "stream.workers=0", "precision=fp32", "steps=1",
    ]  # fmt: skip
    return [*small, f"augment.mean={list(MEAN)}", f"augment.std={list(STD)}", *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory, drawn_shards):
    folder = tmp_path_factory.mktemp("normalised") / "run"
    pretrain(with_settings(recipe("cpu-demo"), settings()), str(drawn_shards), folder)
    return folder


@pytest.fixture(scope="module")
def resnet(tmp_path_factory, drawn_shards):
    """A run of a ResNet of torchvision's, around which the detectors are built."""
    folder = tmp_path_factory.mktemp("normalised") / "resnet"
    pretrain(with_settings(recipe("cpu-demo"), settings(backbone="resnet18")), str(drawn_shards), folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """images/: two classes of six pictures of one grey, so that crops and flips change no pixel; shards/ of them; boxes.json."""
    folder = tmp_path_factory.mktemp("plain")
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "nothing"}]}
    for label in ("one", "two"):
        (folder / "images" / label).mkdir(parents=True)
        for at in range(6):
            number = len(content["images"]) + 1
            cv2.imwrite(str(folder / "images" / label / f"{at}.png"), np.full((96, 96, 3), GREY, np.uint8))
            content["images"].append({"id": number, "file_name": f"{label}/{at}.png", "width": 96, "height": 96})
            content["annotations"].append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
            )
    (folder / "boxes.json").write_text(json.dumps(content))
    source = folder / "images"
    mine(MiningConfig(sources=(source,), out=folder / "shards", num_shards=1, proposals="naive", inline=True))
    return folder


@pytest.fixture
def seen():
    """The channels' values that reached a network's first layer, of those in evaluation mode and of those that train."""
    found = {False: [], True: []}

    def note(module, inputs):
        if isinstance(module, torch.nn.Conv2d) and module.in_channels == 3:
            found[module.training].append(inputs[0].detach().flatten(2).permute(1, 0, 2).flatten(1))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    yield found
    handle.remove()


def check(parts):
    assert parts
    for part in parts:
        for channel, expected in zip(part, EXPECTED, strict=True):
            np.testing.assert_allclose(channel.numpy(), expected, atol=1e-5)


def call(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output


LINEAR = ["--epochs", 1, "--batch-size", 4, "--protocol"]
JUDGES = {
    "knn": (["knn"], False),
    "features": (["linear", *LINEAR, "features"], False),
    "linear": (["linear", *LINEAR, "byol"], False),
    "finetune": (["finetune", "--epochs", 1, "--fraction", "100%", "--rate", "1e-9", "--multiplier", 1], True),
}


@pytest.mark.parametrize("form", ["run", "backbone.safetensors", "exported"])
@pytest.mark.parametrize("name", JUDGES)
def test_a_protocol_sees_the_pixels_of_the_training(name, form, run, plain, seen, tmp_path):
    subject = {"run": run, "backbone.safetensors": run / "backbone.safetensors", "exported": tmp_path / "b.safetensors"}[form]
    if form == "exported":
        call("export", "backbone", run / "backbone.safetensors", "--format", "safetensors", "--out", subject)
    words, trains = JUDGES[name]
    cache = ["--cache", tmp_path] if not trains else []
    call("eval", *words, subject, *["--image-size", 32, "--workers", 0, *cache], "--train", plain / "images", "--val",
         plain / "images")  # fmt: skip
    check(seen[False])
    if trains:
        check(seen[True])


def test_embed_and_retrieve_see_the_pixels_of_the_training(run, plain, seen, tmp_path):
    features = tmp_path / "features.parquet"
    call("embed", run, plain / "shards", "--out", features, "--workers", 0)
    check(seen[False])
    seen[False].clear()
    call("retrieve", run, plain / "shards", "--features", features, "--out", tmp_path / "pairs.parquet", "--workers", 0)
    check(seen[False])


def test_knn_while_a_run_trains_sees_the_pixels_of_the_training(plain, drawn_shards, seen, tmp_path):
    knn = [f"knn.train={plain / 'images'}", f"knn.val={plain / 'images'}", "knn.every=1"]
    pretrain(with_settings(recipe("cpu-demo"), settings(*knn)), str(drawn_shards), tmp_path / "run")
    # A training first tries whether the network takes its sizes, on pixels of nothing but zeros.
    check([part for part in seen[False] if part.any()])


@pytest.mark.parametrize("model", MODELS)
def test_detectors_see_the_pixels_of_the_training(model, resnet, seen):
    network = build_detector(model, open_subject(resnet), 1, sides=(64,), longest=64).eval()
    with torch.inference_mode():
        network([torch.full((3, 64, 64), GREY / 255)])
    check(seen[False])


def test_features_of_the_same_weights_but_other_pixels_are_made_anew(run, plain, seen, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (checkpoint,) = (other / "checkpoints").glob("*.pt")
    state = torch.load(checkpoint, weights_only=True)
    config = json.loads(state["config"])
    config["augment"]["mean"] = [0.0, 0.0, 0.0]
    torch.save(state | {"config": json.dumps(config)}, checkpoint)
    for folder, made in ((run, True), (run, False), (other, True)):
        seen[False].clear()
        call(
            "eval", "knn", folder, "--train", plain / "images", "--val", plain / "images", "--cache", tmp_path, "--workers", 0
        )
        assert bool(seen[False]) == made


def test_a_file_of_before_has_imagenets_and_a_damaged_one_is_said(run, tmp_path):
    from safetensors.torch import load_file, save_file

    with safe_open(run / "backbone.safetensors", "pt") as file:
        facts = file.metadata()
    assert (json.loads(facts["mean"]), json.loads(facts["std"])) == (list(MEAN), list(STD))
    weights = load_file(run / "backbone.safetensors")
    old = {name: value for name, value in facts.items() if name not in ("mean", "std")}
    save_file(weights, tmp_path / "old.safetensors", metadata=old)
    assert load_backbone(tmp_path / "old.safetensors")[1].augment.mean == (0.485, 0.456, 0.406)
    assert open_subject(run / "backbone.safetensors").size == open_subject(run).size == 32
    save_file(weights, tmp_path / "older.safetensors", metadata={n: v for n, v in old.items() if n != "scene_size"})
    assert open_subject(tmp_path / "older.safetensors").size == 224
    for wrong in ("half", "0", "9" * 5000):
        save_file(weights, tmp_path / "wrong.safetensors", metadata=facts | {"scene_size": wrong})
        with pytest.raises(InputError, match="expected a number of pixels"):
            load_backbone(tmp_path / "wrong.safetensors")
    for wrong in ("[1, 2]", "half", "[0.5, 0.5, 0]"):
        save_file(weights, tmp_path / "wrong.safetensors", metadata=facts | {"std": wrong})
        with pytest.raises(InputError, match="expected three numbers each"):
            load_backbone(tmp_path / "wrong.safetensors")
