"""The loop, on real shards: it learns, switches its terms, watches its numbers and says what is wrong."""

import dataclasses
import itertools
import json
import threading

import pytest
import safetensors.torch
import torch
import torchvision
from click.testing import CliRunner
from small_runs import TINY, losses, records, tiny

from univip_stream.cli import cli
from univip_stream.distributed import ALONE
from univip_stream.errors import InputError
from univip_stream.methods import build_method, build_plan
from univip_stream.pretrain import load_backbone, pretrain
from univip_stream.pretrain.optim import build_optimizer

LARGER = "method.backbone=resnet18"
ALL_TERMS = ("loss_scene", "loss_scene_instance", "loss_instance")


def test_a_run_leaves_what_the_reference_promises(undisturbed, drawn_shards):
    rows = records(undisturbed)
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert {"step", "epoch", "loss", "loss_scene", "loss_scene_instance", "loss_instance", "lr", "momentum",
            "images_per_second", "data_wait"} <= rows[0].keys()  # fmt: skip
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss_scene"] + row["loss_scene_instance"] + row["loss_instance"], abs=1e-5)
        assert 0 <= row["data_wait"] <= 1
    assert rows[2]["epoch"] == 1.0
    facts = json.loads((undisturbed / "config.json").read_text())
    assert facts["config"]["recipe"] == "cpu-demo"
    assert facts["shards"]["images"] == 12
    assert [path.name for path in sorted((undisturbed / "checkpoints").iterdir())] == [
        "step-000000006.pt",
        "step-000000008.pt",
    ]


def test_the_backbone_file_loads_into_torchvision_and_gives_the_same_features(resnet_folder):
    weights = safetensors.torch.load_file(resnet_folder / "backbone.safetensors")
    plain = torchvision.models.resnet18()
    plain.fc = torch.nn.Identity()
    plain.load_state_dict(weights)
    ours, _ = load_backbone(resnet_folder)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(images), ours(images))


def test_untrained_is_where_the_run_began(undisturbed, drawn_shards, tmp_path):
    pretrain(tiny("steps=1", "optim.lr=0.0"), str(drawn_shards), tmp_path / "still")
    start = load_backbone(undisturbed, untrained=True)[0].state_dict()
    still = load_backbone(tmp_path / "still")[0].state_dict()
    for name, value in start.items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert torch.equal(value, still[name]), name


def test_weights_that_are_no_numbers_are_not_saved(drawn_shards, tmp_path):
    run, config = tmp_path / "burst", tiny("optim.warmup_epochs=0", "steps=1")
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, lr=1e38, weight_decay=1e3)
    )  # --set refuses it
    with pytest.raises(InputError, match="the weights are no longer finite"):
        pretrain(config, str(drawn_shards), run)
    assert not list((run / "checkpoints").glob("*.pt"))
    assert not (run / "backbone.safetensors").exists()


def test_gradient_accumulation_sees_the_same_images(drawn_shards, tmp_path, monkeypatch):
    from univip_stream.pretrain import update as module

    real = module.inputs_on

    def seen(run, accumulate):
        """(keys, scenes, instances) of each part of each step, as the networks got them."""
        parts = []

        def heard(device, batch, config, **how):
            inputs = real(device, batch, config, **how)
            parts.append((list(batch.keys), inputs["scenes"].clone(), inputs["instances"].clone()))
            return inputs

        monkeypatch.setattr(module, "inputs_on", heard)
        pretrain(tiny(f"accumulate={accumulate}", "steps=2"), str(drawn_shards), tmp_path / run)
        assert len(records(tmp_path / run)) == 2
        return parts

    whole, parts = seen("whole", 1), seen("parts", 2)
    assert [len(keys) for keys, _, _ in whole] == [4, 4]
    assert [len(keys) for keys, _, _ in parts] == [2, 2, 2, 2]
    for step, (keys, scenes, instances) in enumerate(whole):
        of_step = parts[2 * step : 2 * step + 2]
        assert [key for part in of_step for key in part[0]] == keys
        assert torch.equal(torch.cat([part[1] for part in of_step], dim=1), scenes)
        assert torch.equal(torch.cat([part[2] for part in of_step]), instances)
    assert set(whole[0][0]) != set(whole[1][0])


def test_gradient_accumulation_of_copies_is_one_step_on_one_of_them(drawn_shards, tmp_path):
    """Parts of a batch count as their mean: a batch whose two parts are alike leaves the weights that a part alone leaves."""
    from univip_stream.pretrain.update import Updates
    from univip_stream.stream import Stream

    config = tiny()
    plan = build_plan(config.method, config.views, config.augment)
    (batch,) = itertools.islice(Stream(str(drawn_shards), plan, config.stream), 1)
    weights = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        method = build_method(config.method, plan)
        updates = Updates(
            method, method, method, build_optimizer(method, config.optim), accumulate=accumulate, precision=torch.float32,
            config=config.augment, regions=plan.regions, device=torch.device("cpu"), process=ALONE, run=tmp_path,
        )  # fmt: skip
        updates.gradient(itertools.repeat(batch), 0)
        losses, _ = updates.look(threading.Event())
        updates.apply(0.1, 0.99)
        weights.append((losses["loss"], torch.cat([p.detach().flatten() for p in method.online_parameters()])))
    assert weights[0][0] == pytest.approx(weights[1][0])
    torch.testing.assert_close(weights[1][1], weights[0][1])


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        (["method.name=byol"], {"loss_scene"}),
        (["views.instances=0"], {"loss_scene"}),
        (["method.scene_instance=false"], {"loss_scene", "loss_instance"}),
        (["method.instance=false"], {"loss_scene", "loss_scene_instance"}),
        (["views.instance_augmentations=2", "views.overlap=false", "views.regions=naive"], {*ALL_TERMS}),
    ],
)  # fmt: skip
def test_every_ablation_trains_and_switches_exactly_its_terms(settings, terms, drawn_shards, tmp_path):
    values = pretrain(tiny("steps=2", *settings), str(drawn_shards), tmp_path / "run")
    assert {name for name in ALL_TERMS if values[name] != 0} == terms


def test_a_loss_that_is_no_number_stops_before_the_update_and_leaves_its_keys(drawn_shards, tmp_path, monkeypatch):
    from univip_stream.pretrain import update as module

    real = module.inputs_on
    calls = []

    def poisoned(device, batch, config, **how):
        inputs = real(device, batch, config, **how)
        calls.append(batch.keys)
        return inputs | {"scenes": inputs["scenes"] * float("nan")} if len(calls) == 3 else inputs

    monkeypatch.setattr(module, "inputs_on", poisoned)
    run = tmp_path / "run"
    with pytest.raises(InputError, match="the loss of step 3 is nan, before its update"):
        pretrain(tiny("checkpoint_every=2"), str(drawn_shards), run)
    assert json.loads((run / "not-finite-step-3-rank-0.json").read_text())["keys"] == calls[2]
    assert [row["step"] for row in records(run)] == [1, 2]
    monkeypatch.setattr(module, "inputs_on", real)
    pretrain(tiny("checkpoint_every=2"), str(drawn_shards), run)
    assert len(records(run)) == 8


def test_shards_without_any_box_train_on_random_ones(drawn_folder, tmp_path):
    from univip_stream.mining import MiningConfig, mine

    mine(MiningConfig(sources=(drawn_folder,), out=tmp_path / "bare", num_shards=2, proposals="none", inline=True))
    said = []
    values = pretrain(tiny("steps=1"), str(tmp_path / "bare"), tmp_path / "run", say=said.append)
    assert values["filled"] == 1.0
    assert any("no image of these shards has a box" in line for line in said)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--shards", "{tmp}/<000..127>.tar"], 1, "no such shard"),
        (["--shards", "{tmp}/*.tar"], 1, "matches nothing"),
        (["--shards", "{shards}", "--recipe", "cpu-dem"], 2, "did you mean cpu-demo"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--set", "optim.ler=1"], 2, "did you mean optim.lr"),
        (["--shards", "{shards}", "--recipe", "cpu-demo"], 1, "12 images, fewer than one batch of 32"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--backbone", "resnet51", "--batch-size", "4"], 2, "resnet50"),
        (
            ["--shards", "{shards}", "--recipe", "cpu-demo", "--device", "cuda:7", "--batch-size", "4"],
            1,
            "GPUs that torch can use",
        ),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--batch-size", "4", "--out", "{shards}"], 1, "is no run folder"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--batch-size", "1"], 2, "batch normalisation needs at least 2"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--set", "optim.lr=NaN"], 2, "optim.lr is nan"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--set", "method.epsilon=0"], 2, "method.epsilon is 0.0"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--set", "method.iterations=0"], 2, "expected at least 1"),
        (["--shards", "{shards}", "--recipe", "cpu-demo", "--epochs", "1", "--steps", "3"], 2, "expected one of them"),
        (["--recipe", "cpu-demo"], 2, "--shards"),
    ],
)
def test_wrong_use_is_said_without_a_traceback(arguments, status, words, drawn_shards, tmp_path):
    texts = [text.format(tmp=tmp_path, shards=drawn_shards) for text in arguments]
    result = CliRunner().invoke(cli, ["train", "--out", str(tmp_path / "run"), *texts])
    assert result.exit_code == status, result.output
    assert words in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_gpu_is_looked_at_now_and_then_and_what_went_wrong_between_is_still_found(
    undisturbed, drawn_shards, tmp_path, monkeypatch
):
    """On a CPU with a GPU's habit of looking at every fifth step only: the same losses, and the same words, later."""
    from univip_stream.pretrain import update

    monkeypatch.setitem(update.LOOK_EVERY, "cpu", 5)
    seldom = tiny("record_every=4", "checkpoint_every=100")
    pretrain(seldom, str(drawn_shards), tmp_path / "calm")
    assert losses(tmp_path / "calm") == [row for row in losses(undisturbed) if row[0] in (4, 8)]

    real = update.inputs_on
    calls = []

    def poisoned(device, batch, config, **how):
        inputs = real(device, batch, config, **how)
        calls.append(batch.keys)
        return inputs | {"scenes": inputs["scenes"] * float("nan")} if len(calls) == 2 else inputs

    monkeypatch.setattr(update, "inputs_on", poisoned)
    run = tmp_path / "run"
    with pytest.raises(InputError, match="the loss of step 2 is nan, seen 2 steps later"):
        pretrain(seldom, str(drawn_shards), run)
    assert json.loads((run / "not-finite-step-2-rank-0.json").read_text())["keys"] == calls[1]
    assert not list((run / "checkpoints").glob("*.pt"))
    assert not records(run)


def test_knn_while_training_is_the_commands_and_changes_nothing(undisturbed, drawn_shards, labelled_folder, tmp_path):
    run = tmp_path / "run"
    sources = [f"knn.train={labelled_folder}", f"knn.val={labelled_folder}"]
    pretrain(tiny("knn.every=3", "knn.k=5", *sources), str(drawn_shards), run)
    assert losses(run) == losses(undisturbed)
    seen = {row["step"]: row["knn_top1"] for row in records(run) if "knn_top1" in row}
    assert list(seen) == [3, 6, 8]
    arguments = [
        "eval",
        "knn",
        str(run),
        "--train",
        str(labelled_folder),
        "--val",
        str(labelled_folder),
        "--k",
        "5",
        "--json",
    ]
    result = CliRunner().invoke(cli, arguments)
    assert json.loads(result.stdout)["top1"] == seen[8]


COMPILED = """
import json, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

shards, out, *settings = sys.argv[1:]
real = torch.compile
torch.compile = lambda module: real(module, backend="eager")  # the tracing without the code generation, which takes minutes
losses = []
for at, compiled in enumerate(("false", "true")):
    config = with_settings(recipe("cpu-demo"), [*settings, f"compile={compiled}"])
    losses.append(pretrain(config, shards, Path(out, str(at)))["loss"])
print(json.dumps([losses, counters["frames"]["total"], dict(counters["graph_break"])]))
"""


def test_compiled_without_a_break_and_to_the_same_losses(drawn_shards, tmp_path, warm):
    """A break would send every step back to Python. In a process of its own: the shape checks of the tests are breaks too."""
    settings = [*TINY, "steps=2", "stream.workers=0"]
    done = warm.run(["-c", COMPILED, drawn_shards, tmp_path, *settings])
    assert done.returncode == 0, done.stderr
    (plain, compiled), frames, breaks = json.loads(done.stdout.splitlines()[-1])
    assert frames > 0
    assert breaks == {}
    assert compiled == pytest.approx(plain, abs=1e-5)


def test_a_network_that_the_recipes_rates_were_not_made_for_is_warned_of(drawn_shards, tmp_path):
    said: list[str] = []
    pretrain(tiny("steps=1", "method.backbone=vit_tiny_patch16_224"), str(drawn_shards), tmp_path / "vit", say=said.append)
    [warning] = [line for line in said if line.startswith("warning")]
    assert "vit_tiny_patch16_224 has no batch normalisation" in warning
    assert "for ResNets" in warning
    said.clear()
    pretrain(tiny("steps=1"), str(drawn_shards), tmp_path / "resnet", say=said.append)
    assert not [line for line in said if line.startswith("warning")]
    assert any("12 images; a batch of 4; 1 step," in line for line in said)
