"""Metrics arrive where `--log` says, at the steps they are of, also in a run that continues; what is not installed is told first.

wandb (offline) and MLflow (a local folder) are the real ones; without them these tests are skipped by name.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from univip_stream import loggers
from univip_stream.cli import cli
from univip_stream.loggers import LOGGERS, Loggers
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

TINY = [
    "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instances=0",
    "stream.batch_size=4", "stream.workers=0", "precision=fp32", "checkpoint_every=2", "record_every=1", "steps=4",
]  # fmt: skip


def trained(run, shards, *names):
    said = []
    pretrain(with_settings(recipe("cpu-demo"), [*TINY, f"log={json.dumps(names)}"]), str(shards), run, say=said.append)
    return said


def stopped_after_two(run):
    """As a run that was killed after its second step, with a third recorded."""
    (run / "checkpoints" / "step-000000004.pt").unlink()
    (run / "backbone.safetensors").unlink()


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def test_tensorboard_has_what_metrics_jsonl_has(tmp_path, drawn_shards):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    said = trained(tmp_path / "run", drawn_shards, "tensorboard")
    assert f"metrics go to {tmp_path / 'run' / 'tensorboard'}" in said
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {point.step: pytest.approx(point.value, abs=1e-5) for point in found.Scalars("loss")} == losses(tmp_path / "run")


def test_tensorboard_has_the_look_at_the_first_weights_also_in_a_run_that_continues(tmp_path, drawn_shards):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    settings = [*TINY, 'log=["tensorboard"]', "measures.images=12", "measures.every=2", "measures.views=2"]
    for _ in range(2):
        pretrain(with_settings(recipe("cpu-demo"), settings), str(drawn_shards), run)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found = EventAccumulator(str(run / "tensorboard")).Reload()
        for name in ("rankme", "lidar", "alignment", "uniformity"):
            points = {point.step: pytest.approx(point.value, abs=1e-4) for point in found.Scalars(name)}
            assert points == {row["step"]: row[name] for row in rows if name in row}
            assert list(points) == [0, 2, 4]
        stopped_after_two(run)


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_mlflow_has_settings_metrics_and_pictures_in_one_run_that_continues(tmp_path, drawn_shards, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow, which is not installed here")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)  # nothing may come to where the command is called
    run = tmp_path / "runs" / "first"
    said = trained(run, drawn_shards, "mlflow")
    [line] = [line for line in said if "mlflow" in line]
    address = line.rpartition(" at ")[2]
    assert address.startswith(("sqlite:///", "file:///"))
    assert str(tmp_path / "runs" / "mlflow") in address
    client = MlflowClient(tracking_uri=address)
    [experiment] = [one for one in client.search_experiments() if one.name == "univip-stream"]

    def the_only_one():
        [found] = client.search_runs([experiment.experiment_id])
        return found

    found = the_only_one()
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.params["method.backbone"] == "test_resnet"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert {point.step: pytest.approx(point.value) for point in history} == losses(run)
    assert [picture.path for picture in client.list_artifacts(found.info.run_id)]
    stopped_after_two(run)
    trained(run, drawn_shards, "mlflow")
    history = client.get_metric_history(the_only_one().info.run_id, "loss")
    assert {point.step: pytest.approx(point.value) for point in history} == losses(run)
    assert sorted({path.name for path in tmp_path.iterdir()}) == ["runs"]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_keeps_everything_in_the_run_folder(tmp_path, drawn_shards, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb, which is not installed here")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "first"
    said = trained(run, drawn_shards, "wandb")
    assert any("offline in" in line and "wandb sync" in line for line in said)
    stopped_after_two(run)
    trained(run, drawn_shards, "wandb")
    sys.modules["wandb"].teardown()  # as at the end of a command: its own process writes what it still has
    kept = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(kept) == 2
    assert len({path.name for path in kept}) == 1  # both of the one run, which `wandb sync` puts together
    steps = [row["step"] for row in _history(kept[0]) if "loss" in row]
    assert steps == [1, 2, 3, 4]
    assert [row["step"] for row in _history(kept[1]) if "loss" in row] == [3, 4]
    first = {row["step"]: row["loss"] for row in _history(kept[0]) if "loss" in row}
    assert first == pytest.approx(losses(run))


def _history(path: Path):
    """The rows of a file that `wandb sync` would send: LevelDB's log, in blocks of 32 KiB, after seven bytes of wandb's."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last of several pieces
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in items}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_told_before_anything_begins(name, tmp_path, drawn_shards, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        loggers.importlib.util, "find_spec", lambda asked, *more: None if asked == name else real(asked, *more)
    )
    words = ["train", "--shards", drawn_shards, "--out", tmp_path / "run", "--log", name]
    done = CliRunner().invoke(cli, list(map(str, words)))
    assert done.exit_code == 2
    assert f"--log {name} needs {name}, which is not installed here: pip install {name}" in done.stderr
    assert not (tmp_path / "run").exists()


class _Failing:
    package = "json"
    identity = None
    where = "nowhere"

    def __init__(self, *arguments):
        self.closed = 0

    def scalars(self, values, step):
        if step == 2:
            raise ConnectionError("the service is gone\nand so is its stack")

    def picture(self, name, image, step):
        pass

    def close(self, *, finished):
        self.closed += 1


def test_a_logger_that_fails_ends_its_own_part_and_no_run(tmp_path, drawn_shards, monkeypatch):
    monkeypatch.setitem(LOGGERS, "wandb", _Failing)
    said = trained(tmp_path / "run", drawn_shards, "wandb")
    assert [line for line in said if "takes no more" in line] == [
        "wandb takes no more metrics (the service is gone); the run goes on, metrics.jsonl has them all"
    ]
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_where_one_cannot_begin_those_before_it_are_closed(tmp_path, monkeypatch):
    from univip_stream.errors import InputError

    made = []

    class Recorded(_Failing):
        def __init__(self, *arguments):
            super().__init__()
            made.append(self)

    def refusing(*arguments):
        raise InputError("no account")

    refusing.package = "json"
    monkeypatch.setitem(LOGGERS, "wandb", Recorded)
    monkeypatch.setitem(LOGGERS, "mlflow", refusing)
    with pytest.raises(InputError, match="no account"):
        Loggers(["wandb", "mlflow"], tmp_path, 0, {}, print)
    assert [one.closed for one in made] == [1]


def test_pictures_reach_a_logger_as_they_are(tmp_path, monkeypatch):
    shown = []

    class Seen(_Failing):
        def picture(self, name, image, step):
            shown.append((name, tuple(image.shape), step))

    monkeypatch.setitem(LOGGERS, "wandb", Seen)
    made = Loggers(["wandb"], tmp_path, 0, {}, print)
    made.picture("scenes", torch.zeros(3, 8, 16), 5)
    made.close(finished=True)
    assert shown == [("scenes", (3, 8, 16), 5)]
