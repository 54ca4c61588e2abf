"""`--init` begins with weights that others or an earlier run trained, `--freeze` keeps parts of them."""

import json

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from click.testing import CliRunner
from planned import planned

from univip_stream.cli import cli
from univip_stream.methods import METHODS
from univip_stream.networks import build_backbone
from univip_stream.pretrain import load_backbone
from univip_stream.pretrain.initial import FirstWeights, _parts, begin_with, first_weights, freeze
from univip_stream.views import ViewConfig

TINY = [
    "--recipe", "cpu-demo", "--backbone", "resnet18", "--steps", "2", "--batch-size", "4", "--workers", "0",
    "--set", "method.hidden=32", "--set", "method.width=16", "--set", "views.scene_size=32", "--set", "views.instance_size=32",
    "--set", "views.instances=2", "--set", "views.min_scale=32", "--set", "precision=fp32", "--set", "checkpoint_every=1",
]  # fmt: skip


def train(shards, out, *more):
    return CliRunner().invoke(
        cli, ["train", "--shards", str(shards), "--out", str(out), *TINY, *map(str, more)], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def theirs():
    """A classifier as torchvision publishes it, with numbers of its own."""
    torch.manual_seed(7)
    return torchvision.models.resnet18().state_dict()


def built(name):
    views = ViewConfig(scene_size=32, instance_size=32, third_size=32, instances=2, min_scale=8)
    return planned(name, views, backbone="resnet18", hidden=16, width=8, queue=16)[0]


def wrapped(state, kind):
    return {
        "torchvision": state,
        "a trainer's": {"epoch": 3, "state_dict": {f"module.backbone.{name}": value for name, value in state.items()}},
        "a teacher's": {"teacher": {f"backbone.{name}": value for name, value in state.items()}, "student": {}},
    }[kind]


@pytest.mark.parametrize("kind", ["torchvision", "a trainer's", "a teacher's"])
def test_weights_are_found_under_whatever_name_they_are_kept(kind, theirs, tmp_path):
    torch.save(wrapped(theirs, kind), tmp_path / "weights.pth")
    backbone = build_backbone("resnet18")
    found = first_weights(str(tmp_path / "weights.pth"), backbone, "resnet18")
    assert found.missing == found.misshapen == []
    assert [name.rpartition(".")[2] for name in found.unused] == ["weight", "bias"]  # the classifier
    assert torch.equal(found.weights["layer3.0.conv1.weight"], theirs["layer3.0.conv1.weight"])


def test_timms_weights_as_safetensors(tmp_path):
    torch.manual_seed(5)
    other = timm.create_model("resnet10t", num_classes=7)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "model.safetensors")
    found = first_weights(str(tmp_path / "model.safetensors"), build_backbone("resnet10t"), "resnet10t")
    assert sorted(found.unused) == ["fc.bias", "fc.weight"]
    assert found.missing == found.misshapen == []


def test_what_does_not_fit_begins_at_random_and_is_named(theirs, tmp_path):
    torch.save({name: value for name, value in theirs.items() if "layer4.1" not in name}, tmp_path / "weights.pth")
    backbone = build_backbone("resnet18", small_stem=True)
    found = first_weights(str(tmp_path / "weights.pth"), backbone, "resnet18")
    assert found.misshapen == ["conv1.weight 64 x 3 x 7 x 7 there, 64 x 3 x 3 x 3 here"]
    assert len(found.missing) == 10
    text = "\n".join(found.notes())
    assert "10 not there, so they begin at random: layer4.1.conv1.weight" in text
    assert "1 of another shape there" in text


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: torch.save(torchvision.models.resnet50().state_dict(), path), "expected weights of this backbone"),
        (lambda path: path.write_bytes(b"no weights"), "cannot be read as weights"),
        (lambda path: torch.save([1, 2], path), "holds no tensors by name"),
        (lambda path: None, "nothing is there"),
    ],
)
def test_other_weights_are_refused(make, says, tmp_path, drawn_shards):
    make(tmp_path / "weights.pth")
    done = train(drawn_shards, tmp_path / "run", "--init", tmp_path / "weights.pth")
    assert done.exit_code == 1
    assert says in done.stderr
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers_are_refused(theirs, tmp_path):
    torch.save(theirs | {"bn1.weight": torch.full((64,), float("nan"))}, tmp_path / "weights.pth")
    with pytest.raises(Exception, match=r"no numbers \(1 tensors, such as bn1.weight\)"):
        first_weights(str(tmp_path / "weights.pth"), build_backbone("resnet18"), "resnet18")


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"orl"}))  # whose networks are byol's, and which wants pairs
def test_every_methods_target_begins_as_its_online_network(name):
    method = built(name)
    torch.manual_seed(3)
    other = {key: torch.randn(value.shape).to(value.dtype) for key, value in method.backbone.trunk.state_dict().items()}
    begin_with(method, FirstWeights(origin="here", weights=other, missing=[], misshapen=[], unused=[]))
    for key, value in method.backbone.trunk.state_dict().items():
        assert torch.equal(value, other[key])
    for target, online in method.target_pairs():
        for one, another in zip(target.parameters(), online.parameters(), strict=True):
            assert torch.equal(one, another)


@pytest.mark.slow
def test_a_run_goes_on_from_another_with_a_schedule_of_its_own_and_resumes_without_it(drawn_shards, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(drawn_shards, first).exit_code == 0
    done = train(
        drawn_shards, second, "--init", first, "--set", "optim.lr=0", "--set", "steps=3", "--set", "stream.batch_size=2"
    )
    assert done.exit_code == 0, done.output
    before, after = load_backbone(first)[0].state_dict(), load_backbone(second)[0].state_dict()
    for name in before:
        if "running" not in name and "tracked" not in name:  # a rate of 0 leaves the weights; statistics move
            assert torch.equal(before[name], after[name]), name
    facts = json.loads((second / "config.json").read_text())
    assert facts["config"]["init_from"] == str(first)
    assert len(facts["first_weights"]) == 64
    first.rename(tmp_path / "gone")
    again = train(
        drawn_shards, second, "--init", first, "--set", "optim.lr=0", "--set", "steps=3", "--set", "stream.batch_size=2"
    )
    assert again.exit_code == 0, again.output
    assert "finished before" in again.output


@pytest.mark.slow
def test_frozen_parts_stay_to_the_bit_statistics_too(drawn_shards, theirs, tmp_path):
    torch.save(theirs, tmp_path / "weights.pth")
    done = train(
        drawn_shards, tmp_path / "run", "--init", tmp_path / "weights.pth", "--freeze", "stem", "--freeze", "layer1",
        "--set", "optim.warmup_epochs=0",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "stem layer1 stay as they were" in done.stderr
    after = load_backbone(tmp_path / "run")[0].trunk.state_dict()
    for name, value in after.items():
        same = torch.equal(value, theirs[name])
        assert same == name.startswith(("conv1", "bn1", "layer1")), name


def test_frozen_targets_look_as_the_frozen_online_network_does():
    method = built("byol")
    freeze(method, ["stem"])
    method.train()
    norms = [method.online.backbone.trunk.bn1, method.target.backbone.trunk.bn1]
    assert [norm.training for norm in norms] == [False, False]
    assert method.online.backbone.trunk.layer1.training


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["layer9"], "the backbone has no such part; did you mean layer"),
        (["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"], "leaves nothing of the backbone to train"),
    ],
)
def test_parts_that_cannot_be_frozen(parts, says, drawn_shards, tmp_path):
    done = train(drawn_shards, tmp_path / "run", *(word for part in parts for word in ("--freeze", part)))
    assert done.exit_code == 2
    assert says in done.stderr


def test_the_stem_of_a_transformer_is_its_patches_and_places():
    trunk = build_backbone("vit_tiny_patch16_224").trunk
    parts = _parts(trunk, ["stem", "blocks.0"])
    assert [
        part is found
        for part, found in zip(parts, (trunk.cls_token, trunk.patch_embed, trunk.pos_embed, trunk.blocks[0]), strict=True)
    ]
