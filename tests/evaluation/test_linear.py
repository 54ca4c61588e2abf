"""The linear probe agrees with scikit-learn's, chooses without looking, and goes on where it was killed."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from univip_stream.cli import cli
from univip_stream.evaluation import linear as module
from univip_stream.evaluation.heads import Heads, Tally, loss_of
from univip_stream.evaluation.linear import PROTOCOLS, rate_at
from univip_stream.evaluation.split import hold_out


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_a_head_reaches_scikit_learns_logistic_regression(rng):
    """The same objective: mean cross-entropy and half the weight decay times the squared weights; offsets go free."""
    centres = rng.normal(size=(4, 10))
    classes = rng.integers(0, 4, 300)
    features = centres[classes] + 1.2 * rng.normal(size=(300, 10))
    decay = 1e-2
    peer = LogisticRegression(C=1 / (decay * 300), tol=1e-10, max_iter=10_000).fit(features, classes)

    torch.manual_seed(0)
    heads = Heads(10, 4, 2).double()
    x, y = torch.from_numpy(features), torch.from_numpy(classes)
    groups = [{**group, "weight_decay": 0.0} for group in heads.groups([0.5, 0.05], decay)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    for step in range(3000):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(group["peak"], step / 3000, None)
        penalty = decay / 2 * sum(weight.square().sum() for weight in heads.weights)
        (loss_of(heads(x), y) + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    expected = peer.decision_function(features)
    for logits in heads(x).detach().numpy():
        # Logits are known up to a number for each image.
        np.testing.assert_allclose(
            logits - logits.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-3
        )


def test_each_rate_trains_as_it_would_alone(rng):
    features, classes = torch.from_numpy(rng.normal(size=(64, 6))), torch.from_numpy(rng.integers(0, 3, 64))

    def trained(rates):
        torch.manual_seed(0)
        heads = Heads(6, 3, 3).double()
        groups = [group for group in heads.groups([0.1, 1.0, 3.0], 1e-3) if group["peak"] in rates]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        for _ in range(20):
            loss_of(heads(features), classes).backward()
            optimizer.step()
            heads.zero_grad()
        return heads

    together = trained({0.1, 1.0, 3.0})
    for place, rate in enumerate((0.1, 1.0, 3.0)):
        torch.testing.assert_close(trained({rate}).weights[place], together.weights[place])


def test_top_1_and_top_5_are_counted():
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])[None]
    tally = Tally(1)
    tally.add(logits, torch.tensor([0, 0]))
    assert (tally.top1(), tally.top5()) == ([0.5], [0.5])
    tally.add(logits, torch.tensor([4, 1]))
    assert (tally.top1(), tally.top5()) == ([0.25], [0.75])


def test_images_are_held_out_of_every_class_by_the_seed(rng):
    classes = np.repeat([0, 1, 2], [100, 10, 2])
    learn, choose = hold_out(np.arange(112), classes, 0)
    assert sorted([*learn, *choose]) == list(range(112))
    assert np.bincount(classes[choose], minlength=3).tolist() == [10, 2, 0]
    again, other = hold_out(np.arange(112), classes, 0)[1], hold_out(np.arange(112), classes, 1)[1]
    assert (again == choose).all()
    assert (other != choose).any()


@pytest.mark.parametrize("protocol", ["features", "byol", "orl"])
def test_colours_are_told_apart_and_the_result_says_how(protocol, run, coloured, tmp_path):
    out = tmp_path / "linear.json"
    rates = ["--rate", "0.3", "--rate", "3"]  # the papers' are for a thousand times as many steps
    done = call("eval", "linear", run, "--train", coloured / "train", "--val", coloured / "val", "--protocol", protocol,
                "--epochs", 40, "--batch-size", 8, "--workers", 0, "--out", out, *rates)  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["top1"] > 0.8 > result["chance"]
    assert result["top5"] == 1
    assert result["held_out"] == 6
    assert result["train"]["images"] == 36
    assert [row["rate"] for row in result["rates"]] == [0.3, 3]
    best = max(result["rates"], key=lambda row: row["held_out_top1"])
    assert (result["rate"], result["top1"]) == (best["rate"], best["top1"])
    assert not out.with_name("linear.json.partial").exists()


@pytest.mark.parametrize("protocol", ["features", "byol"])
def test_killed_between_two_epochs_it_goes_on_to_the_same_numbers(protocol, run, coloured, tmp_path, monkeypatch):
    def judged(out):
        return call("eval", "linear", run, "--train", coloured / "train", "--val", coloured / "val", "--protocol", protocol,
                    "--epochs", 4, "--batch-size", 16, "--workers", 0, "--out", out)  # fmt: skip

    assert judged(tmp_path / "calm.json").exit_code == 0
    real = module._FeatureBatches.order

    def dying(self, epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return real(self, epoch)

    monkeypatch.setattr(module._FeatureBatches, "order", dying)
    assert judged(tmp_path / "killed.json").exit_code != 0
    seen = []
    monkeypatch.setattr(module._FeatureBatches, "order", lambda self, epoch: seen.append(epoch) or real(self, epoch))
    assert judged(tmp_path / "killed.json").exit_code == 0
    assert seen == [2, 3]
    assert json.loads((tmp_path / "killed.json").read_text()) == json.loads((tmp_path / "calm.json").read_text())


@pytest.mark.parametrize("protocol", ["orl", "orl-last"])
def test_with_one_rate_nothing_is_held_out(protocol, run, coloured, tmp_path, monkeypatch):
    real = module._FeatureBatches.order
    learned = []
    monkeypatch.setattr(module._FeatureBatches, "order", lambda self, epoch: learned.append(real(self, epoch)) or learned[-1])
    sources = ["--train", coloured / "train", "--val", coloured / "val"]
    how = ["--protocol", protocol, "--epochs", 1, "--batch-size", 4, "--workers", 0, "--out", tmp_path / "one.json"]
    done = call("eval", "linear", run, *sources, *how)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "one.json").read_text())
    assert sorted(np.concatenate(learned).tolist()) == list(range(36))
    assert (result["held_out"], result["chosen_by"]) == (0, "nothing: there is one rate")
    (rate,) = result["rates"]
    assert (rate["held_out_top1"], rate["top1"]) == (None, result["top1"])
    assert "held" not in done.output.splitlines()[-1]


def test_the_paper_decides_the_protocol_by_the_recipe(run, coloured):
    done = call(
        "eval", "linear", run, "--train", coloured / "train", "--val", coloured / "val", "--epochs", 1, "--workers", 0
    )
    assert "protocol features" in done.output
    assert PROTOCOLS["byol"].epochs == 80
    assert PROTOCOLS["orl"].milestones == (8 / 28, 16 / 28, 24 / 28)


def test_what_cannot_be_probed_is_said(run, coloured, labelled_folder, tmp_path):
    train, val = coloured / "train", coloured / "val"
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "red").symlink_to(train / "red")
    cases = [
        (["--train", train, "--val", labelled_folder], 1, "has classes that"),
        (["--train", tmp_path / "alone", "--val", tmp_path / "alone"], 1, "one class"),
        (["--train", train, "--val", val, "--rate", "0"], 2, "expected a number above 0"),
        (["--train", train, "--val", val, "--protocol", "none"], 2, "byol"),
        (["--train", train, "--val", val, "--out", tmp_path], 2, "is a folder; expected a file"),
    ]
    for arguments, status, words in cases:
        done = call("eval", "linear", run, *arguments)
        assert (done.exit_code, words in done.output) == (status, True), done.output
