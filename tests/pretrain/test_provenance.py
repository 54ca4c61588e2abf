"""The chain from a run's weights to its images: it holds for what was trained, and each link that is broken is named."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from univip_stream.cli import cli
from univip_stream.errors import InputError
from univip_stream.evaluation.subject import open_subject
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.chain import follow, verify_run
from univip_stream.pretrain.load import as_safetensors
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings

TINY = [
    "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instances=0",
    "stream.batch_size=4", "stream.workers=0", "precision=fp32", "steps=4", "checkpoint_every=2",
]  # fmt: skip


def tiny(*settings):
    return with_settings(recipe("cpu-demo"), [*TINY, *settings])


@pytest.fixture(scope="module")
def place(tmp_path_factory, drawn_shards):
    """A folder with shards and a run on them, which move together."""
    folder = tmp_path_factory.mktemp("chain")
    shutil.copytree(drawn_shards, folder / "shards")
    pretrain(tiny(), str(folder / "shards"), folder / "run")
    return folder


@pytest.fixture
def moved(place, tmp_path):
    shutil.copytree(place, tmp_path / "moved")
    return tmp_path / "moved"


def called(*words):
    return CliRunner().invoke(cli, [*map(str, words)])


def changed(path, at=-20):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def told(folder, **more):
    return {finding.shard: finding.problem for finding in verify_run(folder / "run", **more)}


def test_from_the_weights_to_every_image_also_where_all_was_moved(moved):
    provenance = json.loads((moved / "run" / "provenance.json").read_text())
    assert provenance["weights"]["tensors_sha256"] == open_subject(moved / "run").weights_hash()
    images = []
    assert verify_run(moved / "run", progress=images.append) == []
    assert sum(images) == 12 == provenance["shards"]["images"]
    done = called("verify", moved / "run", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["images"], said["findings"], said["notes"]) == (12, [], [])
    assert len(said["provenance"][str(moved / "run")]) == 64


def _other_tensor(run):
    path = run / "backbone.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name] + 1e-3}, path)


def _other_checkpoint(run):
    [path] = run.glob("checkpoints/step-000000004.pt")
    state = torch.load(path)
    state["method"][next(name for name in state["method"] if ".trunk." in name)] += 1e-3
    torch.save(state, path)


def _other_setting(run):
    path = run / "config.json"
    path.write_text(path.read_text().replace('"lr": 0.05', '"lr": 0.5'))


LINKS = {
    "weights": (_other_tensor, "backbone.safetensors", "another SHA-256"),
    "no weights": (lambda run: (run / "backbone.safetensors").unlink(), "backbone.safetensors", "is missing"),
    "checkpoint": (_other_checkpoint, "checkpoints/step-000000004.pt", "another SHA-256"),
    "settings": (_other_setting, "config.json", "another SHA-256"),
    "image": (lambda run: changed(run.parent / "shards" / "001.tar", 3000), "001.tar", "another SHA-256"),
    "index": (lambda run: changed(run.parent / "shards" / "002.parquet", 60), "002.parquet", "another SHA-256"),
    "no shard": (lambda run: (run.parent / "shards" / "000.tar").unlink(), "000.tar", "is missing"),
}


@pytest.mark.parametrize("link", LINKS)
def test_a_broken_link_is_named(link, moved):
    break_it, where, words = LINKS[link]
    break_it(moved / "run")
    done = called("verify", moved / "run")
    assert done.exit_code == 1
    assert any(where in line and words in line for line in done.stdout.splitlines()), done.stdout


def test_whoever_mends_the_written_hash_breaks_the_next_link(moved):
    """A hash in provenance.json that was changed along with its file no longer meets what the checkpoint says."""
    run = moved / "run"
    _other_tensor(run)
    said = json.loads((run / "provenance.json").read_text())
    from univip_stream.files import sha256_of
    from univip_stream.pretrain.provenance import weights_sha256

    said["weights"]["sha256"] = sha256_of(run / "backbone.safetensors")
    own = {f"trunk.{name}": value for name, value in load_file(run / "backbone.safetensors").items()}
    said["weights"]["tensors_sha256"] = weights_sha256(own)
    (run / "provenance.json").write_text(json.dumps(said))
    assert told(moved) == {"step-000000004.pt": "its backbone is not the one in backbone.safetensors"}


def test_shards_of_other_content_under_the_same_names(moved, drawn_folder):
    from univip_stream.mining import MiningConfig, mine

    shutil.rmtree(moved / "shards")
    mine(
        MiningConfig(sources=(drawn_folder,), out=moved / "shards", num_shards=3, proposals="naive", seed=5, inline=True)
    )  # other boxes
    problems = list(told(moved).values())
    assert problems == ["its manifest.json gives it another SHA-256 than when the run read it"] * 3


def test_shards_that_lie_elsewhere_now(moved, tmp_path):
    (moved / "shards").rename(tmp_path / "elsewhere")
    [(where, problem)] = told(moved).items()
    assert where.endswith("shards")
    assert "has no manifest.json" in problem
    assert "--shards" in problem
    assert told(moved, shards=str(tmp_path / "elsewhere")) == {}
    assert called("verify", moved / "run", "--shards", tmp_path / "elsewhere").exit_code == 0
    wrong = called("verify", tmp_path / "elsewhere", "--shards", tmp_path / "elsewhere")
    assert wrong.exit_code == 2
    assert "is for a run" in wrong.stderr


def test_a_set_that_was_added_to_is_no_break(moved, labelled_folder):
    from univip_stream.mining import MiningConfig, mine

    mine(
        MiningConfig(sources=(labelled_folder,), out=moved / "shards", num_shards=1, proposals="naive", add=True, inline=True)
    )
    chain = follow(moved / "run")
    assert chain.findings == []
    assert any("is another than when the run began (1 shard came to it)" in note for note in chain.notes)
    assert told(moved) == {}


def test_every_image_has_its_hash_at_the_chains_end(place):
    """What the chain leads to: the manifest's shard, its index, and there the hash and the source of each image."""
    provenance = json.loads((place / "run" / "provenance.json").read_text())
    [folder] = provenance["shards"]["folders"]
    shards = (place / "run" / folder["folder"]).resolve()
    rows = [row for name in folder["tars"] for row in pq.read_table(shards / name.replace("tar", "parquet")).to_pylist()]
    assert sorted(row["source"].rpartition("/")[2] for row in rows) == [f"scene{number:02d}.jpg" for number in range(12)]
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_a_stopped_run_has_settings_code_and_shards_and_then_its_weights(moved):
    """What goes on keeps the code that began it, and a finished run that is called again changes nothing."""
    run = moved / "run"
    before = (run / "provenance.json").read_text()
    pretrain(tiny(), str(moved / "shards"), run)
    assert (run / "provenance.json").read_text() == before
    (run / "checkpoints" / "step-000000004.pt").unlink()
    said = json.loads(before)
    said["code"][0]["files_sha256"] = "0" * 64
    said.pop("weights"), said.pop("checkpoint")
    (run / "provenance.json").write_text(json.dumps(said))
    (run / "backbone.safetensors").unlink()
    chain = follow(run)
    assert chain.findings == []
    assert any("not finished" in note for note in chain.notes)
    pretrain(tiny(), str(moved / "shards"), run)
    said = json.loads((run / "provenance.json").read_text())
    assert [code["from_step"] for code in said["code"]] == [0, 2]
    chain = follow(run)
    assert chain.findings == []
    assert any("changed on the way (from step 2)" in note for note in chain.notes)


def test_a_run_of_before_there_was_one_gets_it(moved):
    run = moved / "run"
    (run / "provenance.json").unlink()
    with pytest.raises(InputError, match="run the same `train` command again"):
        follow(run)
    pretrain(tiny(), str(moved / "shards"), run)
    assert told(moved) == {}
    [code] = json.loads((run / "provenance.json").read_text())["code"]
    assert "files_sha256" not in code  # nobody knows it any more


def test_an_odd_provenance_is_told_without_a_traceback(moved):
    path = moved / "run" / "provenance.json"
    for text in ("", "[]", "{}", '{"format": "univip-stream provenance 1", "code": [], "config": {}, "shards": {}}'):
        path.write_text(text)
        done = called("verify", moved / "run")
        assert done.exit_code == 1
        assert "provenance" in done.output
        assert "should not have happened" not in done.output


@pytest.mark.parametrize("format", ["timm", "safetensors"])
def test_an_export_carries_it_along(format, moved):
    out = moved / ("b.safetensors" if format == "safetensors" else "b.pth")
    done = called("export", "backbone", moved / "run", "--format", format, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    beside = json.loads(done.stdout)["provenance"]
    assert beside == f"{out}.provenance.json"
    assert called("verify", beside).exit_code == 0
    done = called("verify", beside, "--shards", moved / "shards", "--json")
    assert (done.exit_code, json.loads(done.stdout)["images"]) == (0, 12)
    changed(out)
    done = called("verify", beside)
    assert done.exit_code == 1
    assert f"{out.name}: has another SHA-256" in done.stdout


def test_other_weights_than_the_runs_carry_none(moved):
    (moved / "b.pth.provenance.json").write_text("of an earlier export")
    checkpoint = moved / "run" / "checkpoints" / "step-000000002.pt"
    done = called("export", "backbone", checkpoint, "--format", "timm", "--out", moved / "b.pth")
    assert done.exit_code == 0
    assert "not the weights that" in done.stdout
    assert not (moved / "b.pth.provenance.json").exists()


def test_shards_of_another_program_are_a_link_too(tmp_path, drawn_folder):
    import tarfile

    (tmp_path / "theirs").mkdir()
    with tarfile.open(tmp_path / "theirs" / "a.tar", "w") as tar:
        for path in sorted(drawn_folder.iterdir()):
            tar.add(path, path.name)
    pretrain(tiny(), str(tmp_path / "theirs" / "a.tar"), tmp_path / "run")
    assert told(tmp_path) == {}
    changed(tmp_path / "theirs" / "a.tar", 3000)
    assert told(tmp_path) == {"a.tar": "has another SHA-256 than when the run read it: its bytes changed"}


def test_the_file_in_a_folder_stands_for_the_folder(moved, monkeypatch):
    by_folder, by_file = (called("verify", moved / "run" / name, "--json", "--quiet") for name in ("", "provenance.json"))
    assert by_file.exit_code == 0, by_file.output
    assert json.loads(by_file.stdout) == json.loads(by_folder.stdout)
    monkeypatch.chdir(moved / "run")
    assert called("verify", "provenance.json").exit_code == 0


def test_a_finished_run_that_is_called_again_keeps_its_chain(moved):
    """The library writes facts in another order each time, so the second call wrote a file of another hash."""
    run = moved / "run"
    written = (run / "backbone.safetensors").read_bytes()
    for damage in ("none", "gone", "an order of facts that this program does not write"):
        if damage == "gone":
            (run / "backbone.safetensors").unlink()
        elif damage != "none":  # as runs of before this order have
            save_file(load_file(run / "backbone.safetensors"), run / "backbone.safetensors", metadata={"format": "pt"})
            said = json.loads((run / "provenance.json").read_text())
            said["weights"]["sha256"] = "0" * 64
            (run / "provenance.json").write_text(json.dumps(said))
        pretrain(tiny(), str(moved / "shards"), run)
        assert (run / "backbone.safetensors").read_bytes() == written
        assert follow(run).findings == []


def test_the_same_weights_are_the_same_bytes(moved):
    weights, facts = {"b": torch.ones(3), "a": torch.zeros(2, 2)}, {name: name for name in "qwertyuiop"}
    files = {as_safetensors(weights, facts) for _ in range(6)}
    assert len(files) == 1
    (moved / "file").write_bytes(files.pop())
    assert {name: tensor.tolist() for name, tensor in load_file(moved / "file").items()} == {
        "a": [[0, 0], [0, 0]],
        "b": [1, 1, 1],
    }
