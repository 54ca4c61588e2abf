"""Measures without labels while a run trains: recorded from the first weights on, and the training is what it is without them."""

import json
import os
import signal
import time

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from small_runs import losses, records, tiny

from univip_stream.augment import normalised
from univip_stream.cli import cli
from univip_stream.errors import InputError, UsageError
from univip_stream.pretrain import Interrupted, load_backbone, pretrain
from univip_stream.pretrain import measures as measures_module
from univip_stream.pretrain.verdict import judge
from univip_stream.probe.crops import CentreCrop
from univip_stream.probe.labelfree import rankme, uniformity

NAMES = ("rankme", "lidar", "alignment", "uniformity")
ON = ("measures.images=12", "measures.every=3", "measures.views=2")


@pytest.fixture(scope="module")
def measured(drawn_shards, tmp_path_factory):
    """The tiny run of eight steps, measured before it, twice on the way, and at its end."""
    run = tmp_path_factory.mktemp("runs") / "measured"
    said = []
    pretrain(tiny(*ON), str(drawn_shards), run, say=said.append)
    assert (
        "measures without labels: RankMe, LiDAR, alignment and uniformity of 12 of the images that are trained on, every 3 steps"
        in said
    )
    return run


def looks(run):
    return {
        row["step"]: [row[name] for name in (*NAMES, *(f"{name}_error" for name in NAMES))]
        for row in records(run)
        if "rankme" in row
    }


def test_they_are_recorded_from_the_first_weights_on_and_change_nothing(measured, undisturbed):
    assert list(looks(measured)) == [0, 3, 6, 8]
    assert len({tuple(values) for values in looks(measured).values()}) == 4
    assert [row for row in losses_after_the_start(measured)] == losses(undisturbed)


def losses_after_the_start(run):
    (run / "rest").mkdir(exist_ok=True)
    (run / "rest" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records(run) if row["step"]))
    return losses(run / "rest")


def test_the_last_ones_are_those_of_the_backbone_that_is_left(measured, drawn_folder):
    backbone, config = load_backbone(measured)
    crop = CentreCrop(config.views.scene_size)
    images = [cv2.imread(str(path))[:, :, ::-1] for path in sorted(drawn_folder.iterdir())]
    with torch.inference_mode():
        pixels = torch.stack([crop(image, 0)[0] for image in images])
        vectors = backbone.eval()(normalised(pixels, config.augment)).numpy()
    last = looks(measured)[8]
    assert last[0] == pytest.approx(rankme(vectors), abs=1e-3)
    assert last[3] == pytest.approx(uniformity(vectors), abs=1e-3)
    halves = [rankme(vectors[half::2]) for half in (0, 1)]
    # The shards' order is that of the folder, so the halves are the same.
    assert last[4] == pytest.approx(abs(halves[0] - halves[1]) / 2, abs=1e-3)


class KilledError(Exception):
    pass


def test_a_run_that_goes_on_has_each_look_once(measured, drawn_shards, tmp_path):
    def kill_at(step):
        def progress(at, steps, values):
            if at == step:
                raise KilledError

        return progress

    for step in (2, 5):  # before the first checkpoint, and after it
        with pytest.raises(KilledError):
            pretrain(tiny(*ON), str(drawn_shards), tmp_path / "run", progress=kill_at(step))
    pretrain(tiny(*ON), str(drawn_shards), tmp_path / "run")
    assert [row["step"] for row in records(tmp_path / "run")] == list(range(9))
    assert looks(tmp_path / "run") == looks(measured)


class BeforeTheFifthError(Exception):
    pass


def after_four(*settings, shards, run):
    def progress(at, steps, values):
        if at == 5:
            raise BeforeTheFifthError

    with pytest.raises(BeforeTheFifthError):
        pretrain(tiny(*settings), str(shards), run, progress=progress)


def test_measures_may_begin_within_a_run_which_says_what_they_lack(measured, undisturbed, drawn_shards, tmp_path):
    after_four(shards=drawn_shards, run=tmp_path / "run")
    said = []
    pretrain(tiny(*ON), str(drawn_shards), tmp_path / "run", say=said.append)
    assert "measures: the run was begun without them, so there are none of its first weights to compare with" in said
    assert looks(tmp_path / "run") == {step: values for step, values in looks(measured).items() if step > 4}
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_measures_may_end_within_a_run(measured, undisturbed, drawn_shards, tmp_path):
    after_four(*ON, shards=drawn_shards, run=tmp_path / "run")
    said = []
    pretrain(tiny(), str(drawn_shards), tmp_path / "run", say=said.append)
    assert not [line for line in said if "measures" in line]
    assert looks(tmp_path / "run") == {step: values for step, values in looks(measured).items() if step < 4}
    assert losses_after_the_start(tmp_path / "run") == losses(undisturbed)


def test_measures_of_other_images_within_a_run_are_said_not_to_compare(undisturbed, drawn_shards, drawn_folder, tmp_path):
    after_four(*ON, shards=drawn_shards, run=tmp_path / "run")
    said = []
    others = ("measures.images=10", "measures.every=2", "measures.views=2", f"measures.src={drawn_folder}")
    pretrain(tiny(*others), str(drawn_shards), tmp_path / "run", say=said.append)
    expected = (
        "measures: the run was begun with measures.images 12, measures.src null; what was recorded then does not compare"
    )
    assert [line for line in said if line.startswith(expected)]
    assert list(looks(tmp_path / "run")) == [0, 3, 4, 6, 8]
    assert losses_after_the_start(tmp_path / "run") == losses(undisturbed)


def test_a_stop_while_the_first_weights_are_looked_at_waits_for_no_step(drawn_shards, tmp_path, monkeypatch):
    """With a large network on CPUs this look takes minutes; the stop came after it and a step."""
    real = measures_module.Measures.of

    def slow(self, *backbone):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(3)
        return real(self, *backbone)

    monkeypatch.setattr("univip_stream.pretrain.train._PATIENCE", 0.2)
    monkeypatch.setattr(measures_module.Measures, "of", slow)
    with pytest.raises(Interrupted, match="before a step was made; run the same command"):
        pretrain(tiny(*ON, "steps=1"), str(drawn_shards), tmp_path / "run")
    monkeypatch.undo()
    pretrain(tiny(*ON, "steps=1"), str(drawn_shards), tmp_path / "run")
    assert list(looks(tmp_path / "run")) == [0, 1]


def test_frozen_layers_stay_frozen(drawn_shards, tmp_path):
    for name, settings in (("without", ()), ("with", ON)):
        pretrain(tiny('freeze=["conv1", "layer1"]', "steps=3", *settings), str(drawn_shards), tmp_path / name)
    assert losses_after_the_start(tmp_path / "with") == losses(tmp_path / "without")


def test_photographs_that_were_held_back(drawn_shards, drawn_folder, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    for number, path in enumerate(sorted(drawn_folder.iterdir())):
        (held / f"{number}.jpg").write_bytes(path.read_bytes())
    (held / "bad.jpg").write_bytes(b"no image")
    said = []
    pretrain(tiny(*ON, "steps=1", f"measures.src={held}"), str(drawn_shards), tmp_path / "run", say=said.append)
    assert list(looks(tmp_path / "run")) == [0, 1]
    [left_out] = [line for line in said if line.startswith("measures: ")]
    assert "bad.jpg" in left_out


def test_what_cannot_be_measured_is_told_before_the_first_step(drawn_shards, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        cv2.imwrite(str(few / f"{number}.jpg"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(InputError, match=r"few: 3 images to measure, expected at least 8; measures\.images=0"):
        pretrain(tiny(*ON, f"measures.src={few}"), str(drawn_shards), tmp_path / "run")
    for name in ("none", "few/0.jpg"):
        with pytest.raises(InputError, match=r"measures\.src: .*" + name):
            pretrain(tiny(*ON, f"measures.src={tmp_path / name}"), str(drawn_shards), tmp_path / "run")
    for number in range(20):
        (few / f"bad{number}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"of the 12 that were drawn \(a larger measures\.images draws from 11 more\)"):
        pretrain(tiny(*ON, f"measures.src={few}"), str(drawn_shards), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for settings, said in (
        (["measures.images=3"], "expected 0, or at least 8"),
        (["measures.images=12", "measures.views=1"], "measures.views is 1; expected at least 2"),
        (["measures.images=12", "measures.every=0"], "measures.every is 0; expected at least 1"),
        (["measures.src=held"], "measures.images 0; set how many"),
    ):
        with pytest.raises(UsageError, match=said):
            tiny(*settings)


def test_what_reads_records_knows_the_one_before_the_first_step(measured):
    assert judge(records(measured)) == judge([row for row in records(measured) if row["step"]])
    for words in (["results", str(measured)], ["plot", str(measured), "--out", str(measured / "curves.html")]):
        done = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert json.loads(CliRunner().invoke(cli, ["results", str(measured), "--json"]).stdout)[0]["step"] == 8
