"""The command as a shell, a scheduler or a container starts it: closed streams, no home, a folder that is gone, few files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from univip_stream.shards.verify import verify_folder

COMMAND = str(Path(sys.executable).parent / "univip-stream")


def shell(script, *words, folder, **variables):
    """A shell's script with words as $1, $2, ...; $U is the command. Variables that are None are unset."""
    surroundings = os.environ | {"U": COMMAND} | {name: value for name, value in variables.items() if value is not None}
    for name, value in variables.items():
        if value is None:
            surroundings.pop(name, None)
    call = ["bash", "-c", script, "bash", *map(str, words)]
    done = subprocess.run(
        call, capture_output=True, text=True, errors="surrogateescape", timeout=120, cwd=folder, env=surroundings
    )
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    assert "this should not have happened" not in done.stderr, done.stderr
    return done


MINE = '"$U" mine --src "$1" --out "$2" --proposals none --inline'


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cost_no_byte_of_the_result(closed, drawn_folder, tmp_path):
    out = tmp_path / "shards"
    done = shell(f"{MINE} {closed}; echo $? > status", drawn_folder, out, folder=tmp_path)
    assert (tmp_path / "status").read_text() == "0\n", done.stderr
    assert verify_folder(out) == []


@pytest.mark.parametrize("words", ["verify shards", "results run", "mine --src photos --out shards --inline"])
def test_a_folder_that_is_gone_is_told(words, tmp_path):
    """Also by commands that use torch, whose libraries end a process there."""
    done = shell(f'mkdir gone; cd gone; rmdir ../gone; "$U" {words}', folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: the folder that this was called in is gone; `cd` to one that exists\n"


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"HOME": None, "USER": None, "LOGNAME": None},
        {"HOME": "/proc/nohome"},
        {"TMPDIR": "/proc/nowhere"},
        {"COLUMNS": "1", "TERM": "nosuch"},
    ],
    ids=lambda variables: " ".join(variables),
)
def test_mining_a_folder_with_letters_works_whatever_the_variables(variables, drawn_folder, tmp_path):
    photos = tmp_path / "Größe 中 \udcff"
    photos.mkdir()
    (photos / "Ä.jpg").write_bytes((drawn_folder / "scene00.jpg").read_bytes())
    done = shell(MINE, photos, tmp_path / "shards", folder=tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    assert "1 image: 1 no_boxes" in done.stdout
    done = shell('"$U" verify "$1"', photos, folder=tmp_path, **variables)
    assert done.returncode == 1
    assert "has no manifest.json" in done.stderr


def test_what_is_written_under_a_strict_umask_can_be_read_by_its_owner(drawn_folder, tmp_path):
    done = shell(f'umask 077; {MINE} && "$U" verify "$2"', drawn_folder, tmp_path / "shards", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "shards").iterdir()} == {0}


@pytest.mark.parametrize("files", [16, 24, 64])
def test_few_open_files_are_enough_or_told(files, drawn_folder, tmp_path):
    done = shell(f"ulimit -n {files}; {MINE}", drawn_folder, tmp_path / "shards", folder=tmp_path)
    assert done.returncode in (0, 1)
    if done.returncode:
        assert "ulimit -n" in done.stderr, done.stderr
    else:
        assert verify_folder(tmp_path / "shards") == []
    assert files < 64 or done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_error_to_talk_about(drawn_shards, tmp_path):
    verify = '"$U" verify "$1" --inline -q'
    done = shell(f"set -o pipefail; {verify} | head -1 > first; echo ${{PIPESTATUS[0]}}", drawn_shards, folder=tmp_path)
    assert done.stderr == ""
    assert (tmp_path / "first").read_text().startswith("12 images")
    done = shell(f"(sleep 0.2; {verify}; echo $? > status) | true", drawn_shards, folder=tmp_path)
    assert (done.stderr, (tmp_path / "status").read_text()) == ("", "1\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", [None, "1"])
def test_output_to_a_full_disk_is_told(unbuffered, drawn_shards, tmp_path):
    done = shell('"$U" verify "$1" --inline > /dev/full', drawn_shards, folder=tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 1
    assert "no space left on device; make room" in done.stderr
    assert "Exception ignored" not in done.stderr
