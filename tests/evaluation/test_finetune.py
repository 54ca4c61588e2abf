"""Fine-tuning on few labels: the draw, the published lists, the grid, and what it learns."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation import finetune as module
from univip_stream.evaluation.finetune import FinetuneProtocol, protocol_for
from univip_stream.evaluation.split import fraction_of, listed
from univip_stream.probe.labelled import LabelledSource


def call(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_a_fraction_is_drawn_of_every_class_by_the_seed(coloured):
    source = LabelledSource(str(coloured / "train"))
    for share, each in ((0.01, 1), (0.25, 3), (1.0, 12)):
        drawn = fraction_of(source, share, 0)
        assert np.bincount(source.numbers[drawn]).tolist() == [each] * 3
    assert (fraction_of(source, 0.25, 0) == fraction_of(source, 0.25, 0)).all()
    assert (fraction_of(source, 0.25, 0) != fraction_of(source, 0.25, 1)).any()


def test_a_published_list_names_its_images(coloured, tmp_path):
    source = LabelledSource(str(coloured / "train"))
    path = tmp_path / "1percent.txt"
    path.write_text("red03.png\nblue11.png\n")
    assert [source.keys[number] for number in listed(source, path)] == ["train/blue/blue11.png", "train/red/red03.png"]
    path.write_text("n01440764_10026.JPEG\n")
    with pytest.raises(InputError, match=r"1 of 1 images that .* lacks, such as n01440764_10026.JPEG"):
        listed(source, path)


def test_a_list_says_its_share_itself(run, coloured, tmp_path):
    """A list of a tenth under the 1 % that is --fraction's default had its result in the column of 1 %, with that decay."""
    source = LabelledSource(str(coloured / "train"))
    path, out = tmp_path / "half.txt", tmp_path / "half.json"
    path.write_text("".join(f"{key.rpartition('/')[2]}\n" for key in source.keys[::2]))
    done = call("eval", "finetune", run, "--subset", path, "--train", coloured / "train", "--val", coloured / "val",
                "--workers", 0, "--out", out, "--epochs", 1, "--rate", "0.1", "--multiplier", "1", "--batch-size", 5)  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert (result["fraction"], result["labelled"], result["finetune"]["weight_decay"]) == (0.5, len(source) // 2, 1e-4)


def test_the_protocol_is_orls():
    assert (protocol_for(0.01).weight_decay, protocol_for(0.1).weight_decay) == (5e-4, 1e-4)
    protocol = FinetuneProtocol()
    assert len(protocol.rates) * len(protocol.multipliers) == 9
    assert [round(module.rate_at(1.0, epoch / 20, protocol.milestones, protocol.fall), 3) for epoch in (11, 12, 15, 16)] == [
        1, 0.2, 0.2, 0.04,
    ]  # fmt: skip


def test_colours_are_learnt_from_half_of_the_labels_and_a_killed_grid_goes_on(run, coloured, tmp_path, monkeypatch):
    out = tmp_path / "finetune.json"
    sources = ["--fraction", "50%", "--train", coloured / "train", "--val", coloured / "val", "--workers", 0, "--out", out]
    grid = ["--epochs", 30, "--rate", "0.1", "--rate", "0.01", "--multiplier", "1", "--batch-size", 5]
    arguments = ["eval", "finetune", run, *sources, *grid]
    real = module._Job.trained
    calls = []

    def dying(self, learn, rate, multiplier):
        calls.append(rate)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, learn, rate, multiplier)

    monkeypatch.setattr(module._Job, "trained", dying)
    assert call(*arguments).exit_code != 0
    assert call(*arguments).exit_code == 0
    assert calls[:3] == [0.1, 0.01, 0.01]
    result = json.loads(out.read_text())
    assert calls[3:] == [result["rate"]]  # the chosen one once more, on all labels
    assert result["labelled"] == 18
    assert result["held_out"] == 3
    assert [row["rate"] for row in result["pairs"]] == [0.1, 0.01]
    assert result["top1"] > 0.8 > result["chance"]


@pytest.mark.parametrize(
    ("fraction", "rates", "tried", "held_out", "words"),
    [
        ("50%", ["0.1", "0.01"], 15, 3, "chosen by top1 on held-out ones"),
        ("50%", ["0.1"], None, 0, "(rate 0.1 x 1; chance"),
        ("10%", ["0.1", "0.01"], 3, 0, "chosen by top1 on the labelled images themselves"),
    ],
)
def test_what_is_judged_was_trained_on_all_labels_of_the_fraction(
    fraction, rates, tried, held_out, words, run, coloured, tmp_path, monkeypatch
):
    real_training, real_judging = module._Job.trained, module._Job.judged
    trained, judged = [], []

    def training(self, learn, rate, multiplier):
        network = real_training(self, learn, rate, multiplier)
        trained.append((network, set(learn.tolist())))
        return network

    def judging(self, network, source, numbers):
        if source is self.val:
            judged.append(network)
        return real_judging(self, network, source, numbers)

    monkeypatch.setattr(module._Job, "trained", training)
    monkeypatch.setattr(module._Job, "judged", judging)
    out = tmp_path / "finetune.json"
    given = [word for rate in rates for word in ("--rate", rate)]
    done = call("eval", "finetune", run, "--fraction", fraction, "--train", coloured / "train", "--val", coloured / "val",
                "--workers", 0, "--out", out, "--epochs", 1, "--multiplier", "1", "--batch-size", 3, *given)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert words in " ".join(done.output.split())
    result = json.loads(out.read_text())
    (last,) = judged  # validation images are looked at once
    assert last is trained[-1][0]
    source = LabelledSource(str(coloured / "train"))
    everything = set(fraction_of(source, result["fraction"], 0).tolist())
    assert trained[-1][1] == everything
    assert len(everything) == result["labelled"]
    assert [len(learn) for _, learn in trained[:-1]] == ([] if tried is None else [tried] * len(rates))
    assert (result["held_out"], len(result["pairs"])) == (held_out, 0 if tried is None else len(rates))
