"""Reference subjects: random weights, a library's, and files of others, judged by the same code as a run."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torchvision
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.evaluation.subject import open_subject
from univip_stream.pretrain.load import load_backbone


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A ResNet-18 as people publish it: a state_dict with a classifier, bare, wrapped, and as safetensors."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(3)
    network = torchvision.models.resnet18()
    weights = network.state_dict()
    torch.save(weights, folder / "bare.pth")
    queries = {f"module.encoder_q.{name}": value for name, value in weights.items()}
    keys = {f"module.encoder_k.{name}": torch.zeros_like(value) for name, value in weights.items()}
    torch.save({"epoch": 200, "state_dict": {**keys, **queries}}, folder / "moco.pth.tar")
    save_file(weights, folder / "bare.safetensors")
    return folder, network


@pytest.mark.parametrize("name", ["bare.pth", "moco.pth.tar", "bare.safetensors"])
def test_a_file_of_others_gives_that_networks_features(name, published):
    folder, network = published
    subject = open_subject(folder / name)
    assert (subject.config.method.backbone, subject.size) == ("resnet18", 224)
    network.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(subject.backbone(images), network.eval()(images), rtol=0, atol=0)


def test_a_network_and_its_file_are_named_together(published, tmp_path):
    import timm

    folder, _ = published
    assert open_subject(f"torchvision:resnet18={folder / 'bare.pth'}").weights_hash() == open_subject(
        folder / "bare.pth").weights_hash()  # fmt: skip
    torch.manual_seed(4)
    tiny = timm.create_model("test_resnet")
    torch.save(tiny.state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(InputError, match=r"does not say of which network.*timm:NETWORK="):
        open_subject(tmp_path / "tiny.pth")
    subject = open_subject(f"timm:test_resnet={tmp_path / 'tiny.pth'}")
    torch.testing.assert_close(subject.backbone.trunk.state_dict()["conv1.0.weight"], tiny.state_dict()["conv1.0.weight"])


def test_a_file_that_lacks_a_part_is_refused_where_a_run_may_begin_with_it(published, tmp_path):
    network = published[1]
    part = {name: value for name, value in network.state_dict().items() if not name.startswith("layer4.1")}
    torch.save(part, tmp_path / "part.pth")
    with pytest.raises(InputError, match="judged at random"):
        open_subject(f"torchvision:resnet18={tmp_path / 'part.pth'}")


def test_random_weights_are_the_seeds():
    first, again, other = (open_subject(f"random:{name}").weights_hash() for name in ("resnet18", "resnet18", "resnet18@1"))
    assert first == again != other


def test_runs_are_read_as_before(run):
    ours, _ = load_backbone(run)
    for place in (run, run / "backbone.safetensors", str(run)):
        torch.testing.assert_close(dict(open_subject(place).backbone.state_dict()), dict(ours.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvison:resnet18", "did you mean torchvision\\?"), ("torchvision:resnet19", "resnet18"),
        ("torchvision:vgg16", "no ResNet 'vgg16'"), ("torchvision:resnet18@V9", "IMAGENET1K_V1"), ("random:", "not understood"),
        ("random:resnet18@x", "SEED"), ("random:resnet18@²", "SEED"), (f"random:resnet18@{10**30}", "SEED"),
         ("random:resnet18=file", "not understood"), ("timm:resnet18@a1", "TAG"),
        ("random:nothing", "nothing"),
    ],
)  # fmt: skip
def test_a_reference_that_names_nothing_is_told(name, said):
    with pytest.raises(UsageError, match=said):
        open_subject(name)


@pytest.mark.parametrize(
    ("name", "said"), [("torchvision:resnet18", "resnet18-f37072fd.pth"), ("timm:test_resnet", "timm:test_resnet=FILE")]
)
def test_weights_that_are_not_at_hand_say_how_to_get_them(name, said, coloured, tmp_path, warm):
    nowhere = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    homes = {"TORCH_HOME": str(tmp_path / "torch"), "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)}
    sources = ["--train", coloured / "train", "--val", coloured / "val", "--workers", "0"]
    words, env = ["-m", "univip_stream", "eval", "knn", "--subject", name, *sources], os.environ | nowhere | homes
    if name.startswith("timm"):  # the hub's library reads its variables when it is imported
        done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    else:
        done = warm.run(words, env=env)
    assert done.returncode == 1, done.stderr
    assert said in done.stderr
    assert "=FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert "method.pretrained" not in done.stderr


def test_every_protocol_takes_a_reference(coloured, tmp_path):
    sources = ["--train", coloured / "train", "--val", coloured / "val", "--workers", 0, "--image-size", 32]
    for protocol, more in (("knn", []), ("linear", ["--protocol", "features", "--epochs", 1]),
                           ("finetune", ["--fraction", "50%", "--epochs", 1, "--lr", 0.01, "--multiplier", 1])):  # fmt: skip
        out = tmp_path / f"{protocol}.json"
        done = call("eval", protocol, "--subject", "random:test_resnet", *sources, *more, "--out", out)
        assert done.exit_code == 0, done.output
        assert json.loads(out.read_text())["run"] == "random:test_resnet"


def test_one_of_run_and_subject_is_expected(run, coloured):
    sources = ["--train", coloured / "train", "--val", coloured / "val"]
    for names in ([], [run, "--subject", "random:resnet18"]):
        done = call("eval", "knn", *names, *sources)
        assert done.exit_code == 2
        assert "RUN and --subject" in done.output + str(done.stderr)
