import json
import shutil

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from PIL import Image
from torchvision.transforms import v2

from univip_stream.augment import AugmentConfig
from univip_stream.cli import cli
from univip_stream.mining import MiningConfig, mine
from univip_stream.networks import build_backbone
from univip_stream.probe.features import extract
from univip_stream.probe.labelled import LabelledSource


def test_features_are_those_of_torchvisions_own_pipeline(labelled_folder):
    torch.manual_seed(0)
    backbone = build_backbone("resnet18")
    plain = torchvision.models.resnet18()
    plain.fc = torch.nn.Identity()
    plain.load_state_dict(backbone.trunk.state_dict())
    transform = v2.Compose([
        v2.PILToTensor(), v2.Resize(73, antialias=True), v2.CenterCrop(64), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    paths = sorted(labelled_folder.glob("*/*.jpg"))
    with torch.inference_mode():
        expected = plain.eval()(torch.stack([transform(Image.open(path).convert("RGB")) for path in paths]))
    source = LabelledSource(str(labelled_folder))
    found = extract(backbone, source, size=64, pixels=AugmentConfig(), batch_size=5, device=torch.device("cpu"))
    assert found.labels == [path.parent.name for path in paths]
    np.testing.assert_allclose(found.vectors_ND, expected.numpy(), atol=1e-5)


def test_knn_of_a_run_from_folders_and_from_shards_is_one_number(run, labelled_folder, tmp_path):
    mine(MiningConfig(sources=(labelled_folder,), out=tmp_path / "s", num_shards=2, proposals="none", inline=True))
    results = []
    for source in (str(labelled_folder), str(tmp_path / "s")):
        out = tmp_path / "knn.json"
        arguments = [
            "eval",
            "knn",
            str(run),
            "--train",
            source,
            "--val",
            source,
            "--k",
            "3",
            "--untrained",
            "--json",
            "--out",
            str(out),
        ]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout) == json.loads(out.read_text())
        results.append(json.loads(result.stdout))
    assert results[0]["top1"] == results[1]["top1"]
    assert results[0]["untrained"] == results[1]["untrained"]
    # An image is its own nearest neighbour and votes with the largest weight, two others cannot outvote it by much.
    assert results[0]["top1"] > 0.5
    assert results[0]["chance"] == pytest.approx(1 / 3)
    assert results[0]["untrained"]["top1"] > 0.5


def test_what_cannot_be_judged_is_said(run, labelled_folder, drawn_folder, drawn_shards, tmp_path):
    shutil.copytree(labelled_folder, tmp_path / "more")
    (tmp_path / "more" / "disc").rename(tmp_path / "more" / "comet")
    good = str(labelled_folder)
    cases = [
        ([str(run), "--train", good, "--val", str(drawn_folder)], "12 of 12 images have no label"),
        ([str(run), "--train", good, "--val", str(drawn_shards)], "have no label"),
        ([str(run), "--train", good, "--val", str(tmp_path / "more")], "has classes that"),
        ([str(tmp_path / "no-run"), "--train", good, "--val", good], "no such run"),
        ([str(tmp_path), "--train", good, "--val", good], "has no checkpoint"),
        ([str(run), "--train", good, "--val", str(tmp_path / "none")], "no such"),
    ]
    for arguments, words in cases:
        result = CliRunner().invoke(cli, ["eval", "knn", *arguments])
        assert result.exit_code == 1
        assert words in result.output, words
        assert "Traceback" not in result.output


def test_a_file_of_weights_is_judged_by_two_processes_as_by_one_and_leaves_no_features(run, labelled_folder, tmp_path, warm):
    """Features of a file that has no folder of its own lie in a temporary one, which is one for all ranks, and goes after."""
    (tmp_path / "tmp").mkdir()
    words = ["-m", "univip_stream", "eval", "knn", run / "backbone.safetensors", "--train", labelled_folder,
             "--val", labelled_folder, "--k", "3", "--workers", "0", "--device", "cpu", "--quiet", "--out"]  # fmt: skip
    results = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        statuses, said = warm.ranks(count, [*words, out], TMPDIR=str(tmp_path / "tmp"))
        assert statuses == [0] * count, said
        results.append(json.loads(out.read_text())["top1"])
        assert not [path for path in (tmp_path / "tmp").iterdir() if "features" in path.name]
    assert results[0] == results[1]
