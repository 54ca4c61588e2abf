import os

import pytest
import torch

from univip_stream.checkpoint import Checkpoints, load_checkpoint
from univip_stream.errors import InputError
from univip_stream.files import written_atomically


def test_what_is_saved_is_loaded(tmp_path):
    state = {"method": {"w": torch.randn(3, 4)}, "config": "{}", "rng": torch.get_rng_state()}
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.load_latest() is None
    checkpoints.save(7, state)
    found = checkpoints.load_latest()
    assert found["step"] == 7
    assert torch.equal(found["method"]["w"], state["method"]["w"])


def test_the_last_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 9000, 20, 100):
        checkpoints.save(step, {})
    assert checkpoints.steps() == [100, 9000]


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"whole")

    def fail():
        with written_atomically(path) as file:
            file.write(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"whole"


def test_a_damaged_newest_checkpoint_is_named_with_the_way_out(tmp_path, rng):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.randn(1000)})
    path = checkpoints.path(2)
    whole = path.read_bytes()
    for at in [len(whole) // 2, *rng.integers(1000, 4000, 5).tolist()]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(InputError, match=r"To continue from the one of step 1 instead, delete .*step-000000002\.pt"):
            checkpoints.load_latest()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        checkpoints.load_latest()
    path.unlink()
    assert checkpoints.load_latest()["step"] == 1


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_a_hostile_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_other_files_are_no_checkpoints(tmp_path):
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="is not a checkpoint of a run"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.pt")
