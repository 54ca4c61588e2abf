"""Temporary files, and what is said where they do not fit."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from univip_stream.files import Scratch

COMMAND = str(Path(sys.executable).parent / "univip-stream")


def test_a_scratch_file_holds_what_is_written_and_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Scratch() as file:
        assert file.write(b"a" * 100_000) == 100_000
        assert file.tell() == 100_000
        file.seek(99_999)
        assert file.read() == b"a"
        assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("words", [["mine", "--proposals", "none", "--inline", "--src"], ["embed", "{run}"]])
@pytest.mark.parametrize(
    ("kilobytes", "said"), [(1, "no room for temporary files in {folder} "), (0, "no usable temporary directory")]
)
def test_a_full_temporary_folder_is_told_by_its_name(kilobytes, said, words, run_folder, tmp_path):
    """A limit on files stands for a full disk. The list of images lies in the temporary folder, whatever --out is."""
    (tmp_path / "photos").mkdir()
    for at in range(300):
        (tmp_path / "photos" / f"{sha256(bytes([at // 256, at % 256])).hexdigest()}.jpg").touch()
    call = [
        COMMAND,
        *(word.format(run=run_folder) for word in words),
        str(tmp_path / "photos"),
        "--out",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    shell = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "_"]
    done = subprocess.run([*shell, *call], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert said.format(folder=tmp_path) in done.stderr
    assert "set TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_scratch_file_leaves_nothing_to_write_when_it_is_let_go(tmp_path):
    code = (
        "import resource, weakref\nfrom univip_stream.files import NoRoomError, Scratch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\nfile = Scratch()\n"
        "class Owner: pass\nowner = Owner(); weakref.finalize(owner, file.close)\n"
        "try:\n    file.write(b'a' * 100)\nexcept NoRoomError as error:\n    print('told')\ndel owner\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("told\n", "", 0)


@pytest.mark.parametrize(
    ("format", "suffix"), [("detreg", ""), ("siamesedetr", ""), ("coco", ".json"), ("detectron2", ".pkl")]
)
def test_a_full_disk_under_exported_boxes_is_told_by_its_name(format, suffix, drawn_shards, tmp_path):
    out = tmp_path / f"boxes{suffix}"
    call = [COMMAND, "export", "boxes", str(drawn_shards), "--format", format, "--out", str(out)]
    done = subprocess.run(["bash", "-c", 'ulimit -f 1; exec "$@"', "_", *call], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"no room to write {out}" in done.stderr
    assert "`ulimit -f`" in done.stderr
    assert not [*tmp_path.iterdir()]
