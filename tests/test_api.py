"""`univip_stream.mine`, `train`, `evaluate`, `embed`: the commands' own work, with errors as exceptions."""

import json
import os
import signal
import time

import numpy as np
import pytest
from click.testing import CliRunner

import univip_stream as us
from univip_stream.cli import cli

SETTINGS = {
    "method.backbone": "test_resnet", "method.hidden": 32, "method.width": 16, "views.scene_size": 32, "views.instances": 0,
    "stream.batch_size": 4, "stream.workers": 0, "precision": "fp32", "steps": 2,
}  # fmt: skip


def test_everything_offered_is_there_and_nothing_else():
    for name in us.__all__:
        assert getattr(us, name) is not None
    assert set(us.__all__) <= set(dir(us))
    with pytest.raises(AttributeError, match="no attribute 'mime'"):
        us.mime  # noqa: B018


def test_a_run_of_the_command_is_gone_on_with_from_python_and_shown_alike(drawn_shards, tmp_path, capsys):
    """One configuration, whichever way it is given: the run is the same run."""
    words = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    done = CliRunner().invoke(
        cli, ["train", "--shards", str(drawn_shards), "--out", str(run), "--recipe", "cpu-demo", *words]
    )
    assert done.exit_code == 0, done.output
    config = us.TrainConfig(out=run, shards=str(drawn_shards), recipe="cpu-demo", settings=SETTINGS)
    assert us.train(config, quiet=True) == {}
    assert capsys.readouterr() == ("", "")
    seen = []
    last = us.train(
        us.TrainConfig(out=tmp_path / "other", shards=(str(drawn_shards),), recipe="cpu-demo", settings=SETTINGS),
        progress=lambda step, steps, values: seen.append((step, steps, values["loss"])),
    )
    shown = capsys.readouterr().err
    assert [line for line in shown.splitlines() if line.startswith("step ")][-1].startswith("step 2/2  loss ")
    assert seen[-1] == (2, 2, last["loss"])
    by_command = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [loss for _, _, loss in seen] == by_command


def test_a_result_is_written_while_nobody_else_may_write_it(tmp_path, monkeypatch, warm):
    """Another evaluation with this `--out` removes half-written files of its name, once it has the lock."""
    from univip_stream.api import judging

    out, tried = tmp_path / "out.json", []
    another = (
        f"from pathlib import Path; from univip_stream import files\nwith files.written_by_one(Path({str(out)!r})): pass"
    )
    write = judging.write_result

    def write_result(result, path):
        tried.append(warm.run(["-c", another]))
        write(result, path)

    monkeypatch.setattr(judging, "_knn", lambda config, quiet: lambda process: {"top1": 0.5})
    monkeypatch.setattr(judging, "write_result", write_result)
    assert us.evaluate(us.Knn(run=tmp_path, train=tmp_path, val=tmp_path, out=out)) == {"top1": 0.5}
    assert "another process writes" in tried[0].stderr
    assert json.loads(out.read_text()) == {"top1": 0.5}
    assert warm.run(["-c", another]).returncode == 0


WRONG = {
    "nothing to train on": lambda shards, out: us.train(us.TrainConfig(out=out)),
    "a setting that is none": lambda shards, out: us.train(
        us.TrainConfig(out=out, shards=str(shards), settings={"optim.rate": 1})
    ),
    "a time for a recipe that has its own": lambda shards, out: us.train(
        us.TrainConfig(out=out, shards=str(shards), recipe="cpu-demo", time="1h")
    ),
    "no neighbours": lambda shards, out: us.Knn(run=out, train=shards, val=shards, k=0),
    "a protocol that is none": lambda shards, out: us.Linear(run=out, train=shards, val=shards, protocol="orla"),
    "a rate that is none": lambda shards, out: us.Finetune(run=out, train=shards, val=shards, rates=(float("nan"),)),
    "a share of nothing": lambda shards, out: us.evaluate(us.Finetune(run=out, train=shards, val=shards, fraction="0%")),
    "annotations of nothing": lambda shards, out: us.Detect(run=out, train_json="train.json", train_images=shards),
    "two lengths": lambda shards, out: us.Detect(run=out, voc=shards, schedule="1x", iterations=10),
    "a detector that is none": lambda shards, out: us.Detect(run=out, voc=shards, model="mask-rcnn-c5"),
    "a folder as a file": lambda shards, out: us.EmbedConfig(run=out, source=shards, out=shards),
    "no configuration": lambda shards, out: us.evaluate(str(out)),
    "a class of configurations": lambda shards, out: us.evaluate(us.Detect),
    "another function's": lambda shards, out: us.train(us.Knn(run=out, train=shards, val=shards)),
    "one source without its tuple": lambda shards, out: us.mine(us.MiningConfig(sources=str(shards), out=out)),
    "a photograph's folder without its tuple": lambda shards, out: us.train(us.TrainConfig(sources=str(shards), out=out)),
    "a side without its tuple": lambda shards, out: us.Detect(run=out, voc=shards, sides=64),
    "a text as a number": lambda shards, out: us.Detect(run=out, voc=shards, iterations="5"),
    "a share of an iteration": lambda shards, out: us.Detect(run=out, voc=shards, iterations=5.5),
    "a text as a rate": lambda shards, out: us.Finetune(run=out, train=shards, val=shards, rates=("a",)),
    "a number as a share": lambda shards, out: us.Knn(run=out, train=shards, val=shards, max_failures=5),
    "no run": lambda shards, out: us.EmbedConfig(run=None, source=shards, out=out),
    "an engine that is none": lambda shards, out: us.mine(us.MiningConfig(sources=(shards,), out=out, proposals="selective")),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_called_wrongly_is_an_exception_before_any_work(what, drawn_shards, tmp_path):
    with pytest.raises(us.UsageError):
        WRONG[what](drawn_shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_written_wrongly_is_told_with_what_was_expected():
    with pytest.raises(us.UsageError, match=r"Detect: sides is 64; expected tuple\[int, \.\.\.\]"):
        us.Detect(run="r", voc="v", sides=64)
    with pytest.raises(
        us.UsageError, match=r"sources is 'photos'; expected tuple\[str \| Path, \.\.\.\], such as a tuple of one"
    ):
        us.mine(us.MiningConfig(sources="photos", out="shards"))
    with pytest.raises(
        us.UsageError, match=r"evaluate: 'runs/a' is no configuration; expected Knn, Linear, Finetune or Detect"
    ):
        us.evaluate("runs/a")
    us.Detect(run="r", voc="v", sides=[64, np.int64(96)], rate=1)  # what does as well


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_between_mining_and_training_is_told_as_one(number, drawn_shards, tmp_path, monkeypatch):
    """Ctrl-C while the rate was measured printed `Aborted!` and ended with 1, as something that failed."""

    def stopped(config, device):
        os.kill(os.getpid(), number)
        time.sleep(5)

    monkeypatch.setattr("univip_stream.api.photographs.images_per_second", stopped)
    # As in a terminal: a process of pytest-xdist ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(us.Interrupted, match="while settings are chosen, before the first step; run the same command"):
            us.train(us.TrainConfig(out=tmp_path / "run", shards=str(drawn_shards), recipe="auto"), quiet=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_is_an_input_error(tmp_path, drawn_folder):
    with pytest.raises(us.InputError, match="no such"):
        us.mine(us.MiningConfig(sources=(tmp_path / "none",), out=tmp_path / "out"))
    with pytest.raises(us.InputError, match="no such run"):
        us.embed(us.EmbedConfig(run=tmp_path / "none", source=drawn_folder, out=tmp_path / "f.parquet"))


def test_a_command_takes_what_its_configuration_has():
    """An option that reaches no field, or a field that no option sets, would be a second way."""
    from dataclasses import fields

    from univip_stream.cli import detect, embed, protocols

    # --subject is another way to say RUN on a command line.
    for command, kind, own in (
        (embed.embed, us.EmbedConfig, {"quiet", "as_json"}),
        (protocols.knn, us.Knn, {"quiet", "as_json", "subject"}),
        (protocols.linear, us.Linear, {"quiet", "as_json", "subject"}),
        (protocols.finetune, us.Finetune, {"quiet", "as_json", "subject"}),
        (detect.detect, us.Detect, {"quiet", "as_json", "subject"}),
    ):
        assert {option.name for option in command.params} - own == {member.name for member in fields(kind)}


def test_training_is_shown_on_a_terminal_as_mining_is(monkeypatch, capsys):
    """One line that is rewritten, with a bar and no wider than the terminal; what else is said begins a line of its own."""
    from univip_stream.api.training import ProgressLines

    monkeypatch.setenv("COLUMNS", "60")
    said = []
    lines = ProgressLines(said.append, moving=True)
    monkeypatch.setattr(lines, "every", 0.0)
    values = {"loss": 0.5, "loss_scene": 0.5, "feature_std": 0.7, "images_per_second": 12.0, "data_wait": 0.1}
    for step in (1, 2, 4):
        lines(step, 4, values)
    lines.end()
    lines.end()
    shown = capsys.readouterr().err
    assert said == []
    assert shown.count("\n") == 1
    rewritten = shown.rstrip("\n").replace("\x1b[K", "").split("\r")[1:]  # click takes the code out where no terminal is
    assert [line.partition("]")[0] for line in rewritten] == [
        "training [######..................", "training [############............", "training [########################",
    ]  # fmt: skip
    assert all(len(line) < 60 for line in rewritten)
    assert " 2/4 steps, " in rewritten[1]
