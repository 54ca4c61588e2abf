"""The examples run as they stand, on drawn images; scripts have at most 60 lines."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from univip_stream.cli import cli

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs an example with arguments; gives what it printed, in lines."""

    def called(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        monkeypatch.syspath_prepend(EXAMPLES)
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return called


def test_every_script_is_short_and_tried_here():
    tried = Path(__file__).read_text()
    for path in filter(Path.is_file, EXAMPLES.iterdir()):  # not the folder of compiled ones
        assert f'"{path.name}"' in tried
        assert path.suffix != ".py" or len(path.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_region_crops_trains(run, drawn_shards):
    lines = run("region_crops.py", drawn_shards)
    assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1"]


def test_own_boxes_mines_its_fields(run, drawn_folder, tmp_path):
    lines = run("own_boxes.py", drawn_folder, tmp_path / "out")
    assert lines[0].endswith("9.0 an image")


def test_nearest_images_are_no_image_itself(run, run_folder, drawn_folder, tmp_path):
    words = ["embed", str(run_folder), str(drawn_folder), "--out", str(tmp_path / "f.parquet"), "--workers", "0", "-q"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    lines = run("nearest_images.py", tmp_path / "f.parquet")
    assert len(lines) == len(list(drawn_folder.rglob("*.*")))
    for line in lines:
        image, nearest, cosine = line.rsplit(" ", 2)
        assert image != nearest
        assert -1 <= float(cosine) <= 1.001


def run_notebook(name):
    """The names that are left after a notebook's cells."""
    import matplotlib

    matplotlib.use("agg")
    names = {}
    for cell in json.loads((EXAMPLES / name).read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec("".join(cell["source"]), names)
    matplotlib.pyplot.close("all")
    return names


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom():
    names = run_notebook("shards_and_views.ipynb")
    assert names["batch"].pixels["instances"].shape == (3, 4, 3, 96, 96)


@pytest.mark.slow
def test_the_notebook_of_the_four_functions_runs_from_top_to_bottom(capsys):
    names = run_notebook("first_backbone.ipynb")
    assert names["report"].manifest.totals["samples"] == 24
    assert len(names["losses"]) == 12
    assert names["result"]["used"] == {"train": 24, "val": 12}
    assert names["maps"].map is not None
    assert "optim.rate" in capsys.readouterr().out
