"""On a CUDA card, through the commands: train, stop, go on, judge, export. `pytest -m gpu`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from univip_stream.cli import cli

pytestmark = pytest.mark.gpu
SMALL = ["method.backbone=resnet18", "method.hidden=32", "method.width=16", "views.scene_size=64",
         "views.instance_size=32", "views.min_scale=32", "stream.batch_size=4", "stream.workers=2", "record_every=1",
         "checkpoint_every=2", "steps=4"]  # fmt: skip


def invoke(*words: object) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def train(shards: Path, run: Path, device: torch.device, *settings: str, method: str = "univip") -> list[dict]:
    texts = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
    words = ["--recipe", "cpu-demo", "--method", method, "--device", device.type, *texts]
    invoke("train", "--shards", shards, "--out", run, *words)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(drawn_shards: Path, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("gpu") / "run"
    train(drawn_shards, run, device, "precision=fp32")
    return run


def test_a_run_goes_on_from_its_checkpoint(trained: Path, drawn_shards: Path, device: torch.device, tmp_path: Path) -> None:
    whole = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    if device.type == "cuda":
        assert whole[-1]["gpu_memory_bytes"] > 0
    parts = tmp_path / "parts"
    shutil.copytree(trained, parts)
    (parts / "checkpoints" / "step-000000004.pt").unlink()
    (parts / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole[:2]))
    again = train(drawn_shards, parts, device, "precision=fp32")
    assert [row["step"] for row in again] == [1, 2, 3, 4]
    # Sums on a GPU may come in another order; on the CPU it is the same to the bit.
    assert [row["loss"] for row in again] == pytest.approx(
        [row["loss"] for row in whole], rel=1e-3 if device.type == "cuda" else 0
    )


def test_a_run_on_the_device_begins_as_on_the_cpu(trained: Path, drawn_shards: Path, tmp_path: Path) -> None:
    theirs = train(drawn_shards, tmp_path / "cpu", torch.device("cpu"), "precision=fp32", "steps=1")
    first = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-3)


@pytest.mark.parametrize(
    "settings", [["precision=bf16"], ["precision=bf16", "accumulate=2"], ["precision=bf16", "channels_last=false"]]
)
def test_bf16_trains(settings: list[str], drawn_shards: Path, device: torch.device, tmp_path: Path) -> None:
    rows = train(drawn_shards, tmp_path / "run", device, *settings)
    assert len(rows) == 4
    assert rows[-1]["feature_std"] > 0


@pytest.mark.parametrize("method", ["soco", "scrl", "densecl", "simclr"])
def test_other_methods_train(method: str, drawn_shards: Path, device: torch.device, tmp_path: Path) -> None:
    more = {"soco": ["views.third_size=32"], "densecl": ["method.queue=16"]}.get(method, [])
    assert len(train(drawn_shards, tmp_path / "run", device, *more, method=method)) == 4


def test_a_run_is_judged_and_exported(trained: Path, labelled_folder: Path, device: torch.device, tmp_path: Path) -> None:
    both = ["--train", labelled_folder, "--val", labelled_folder, "--device", device.type]
    knn = json.loads(invoke("eval", "knn", trained, *both, "--out", tmp_path / "knn.json", "--json").splitlines()[-1])
    assert 0 <= knn["top1"] <= 1
    for protocol in ("features", "orl"):
        out = tmp_path / f"{protocol}.json"
        invoke("eval", "linear", trained, *both, "--protocol", protocol, "--epochs", 1, "--batch-size", 4, "--out", out)
        assert json.loads(out.read_text())
    for library in ("torchvision", "timm"):
        out = tmp_path / f"{library}.pth"
        invoke("export", "backbone", trained, "--format", library, "--out", out)
        assert out.stat().st_size > 1e6
