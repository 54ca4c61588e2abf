"""Images that a network is judged on: what is left out of them is said."""

import shutil

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.probe.labelled import LabelledSource


@pytest.fixture
def littered(labelled_folder, tmp_path):
    """Class folders in which Jupyter, macOS and a desktop left something."""
    folder = tmp_path / "train"
    shutil.copytree(labelled_folder, folder)
    image = next(labelled_folder.rglob("*.jpg"))
    for name in (".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/disc/._a.jpg", ".Trash-1000/files/b.jpg"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(image, folder / name)
    return folder


def test_hidden_folders_are_no_classes(littered, labelled_folder):
    source, clean = LabelledSource(str(littered)), LabelledSource(str(labelled_folder))
    assert (source.classes, len(source)) == (clean.classes, len(clean))
    assert source.notes == ["left out: 1 in .Trash-*, 1 in .ipynb_checkpoints, 1 in __MACOSX"]
    assert clean.notes == []


def test_embed_says_what_it_leaves_out(littered, run_folder, tmp_path):
    arguments = ["embed", str(run_folder), str(littered), "--out", str(tmp_path / "out.parquet"), "--workers", "0"]
    done = CliRunner().invoke(cli, [*arguments, "--image-size", "32"])
    assert done.exit_code == 0, done.output
    assert f"{littered}: left out: 1 in .Trash-*, 1 in .ipynb_checkpoints, 1 in __MACOSX" in done.stderr
