"""`univip-stream plot`: the numbers of the metrics, as a page that works in a browser and as a picture."""

import json
import shutil

import cv2
import pytest
from browser import page_at
from click.testing import CliRunner

from univip_stream.cli import cli
from univip_stream.pretrain.config import PretrainConfig
from univip_stream.pretrain.settings import to_dict
from univip_stream.report.curves import POINTS, panels_of, smoothed

HOSTILE = "</script><script>window.broken = 1</script>"


@pytest.fixture
def runs(tmp_path):
    """Two runs; the second has kNN, and a name that a careless page would run."""
    for name, extra in (("one", {}), (HOSTILE.replace("/", "∕"), {"knn_top1": 0.25})):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "config.json").write_text(json.dumps({"config": to_dict(PretrainConfig()), "steps": 40}))
        lines = [{"step": at, "epoch": at / 10, "loss": -at / 10, "lr": 0.1, **extra} for at in range(1, 41)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "lo')
    return tmp_path / "runs"


def plot(*arguments):
    return CliRunner().invoke(cli, ["plot", *map(str, arguments)])


def test_the_lines_are_the_records_and_half_a_line_is_left_out(runs):
    panels = {panel.metric: panel for panel in panels_of([runs])}
    assert list(panels) == ["loss", "knn_top1", "lr"]
    assert len(panels["knn_top1"].lines) == 1
    assert panels["loss"].lines[0].steps == list(range(1, 41))
    assert panels["loss"].lines[0].values == [-at / 10 for at in range(1, 41)]


def test_errors_are_a_band_and_no_panel(runs, tmp_path):
    lines = [
        {"step": at, "rankme": 50.0 + at, "rankme_error": at / 2, "lidar": 1.0} | ({"loss": -1.0} if at else {})
        for at in range(4)
    ]
    (runs / "one" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    panels = {panel.metric: panel for panel in panels_of([runs / "one"])}
    assert list(panels) == ["loss", "rankme", "lidar"]
    assert panels["rankme"].lines[0].errors == [0, 0.5, 1, 1.5]
    assert panels["lidar"].lines[0].errors is None
    assert plot(runs / "one", "--out", tmp_path / "curves.html").exit_code == 0
    with page_at(tmp_path / "curves.html") as page:
        assert page.locator("polygon.band").count() == 1
    assert plot(runs / "one", "--out", tmp_path / "curves.png").exit_code == 0


def test_a_long_run_is_thinned_to_means(runs):
    many = [{"step": at, "loss": float(at)} for at in range(1, 4 * POINTS + 2)]
    (runs / "one" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    line = panels_of([runs / "one"])[0].lines[0]
    assert len(line.steps) <= POINTS
    assert line.values[0] == line.steps[0] == 3  # the mean of 1 to 5


def test_smoothing_keeps_a_constant_and_begins_at_the_first_value():
    assert smoothed([2.0] * 5, 0.9) == pytest.approx([2.0] * 5)
    assert smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])


def test_the_page_shows_hides_reads_and_smooths_without_a_network(runs, tmp_path):
    assert plot(runs, "--out", tmp_path / "curves.html").exit_code == 0
    with page_at(tmp_path / "curves.html") as page:
        assert page.locator("figure").count() == 3
        loss = page.locator("figure").first
        assert "-4  one, step 40" in loss.inner_text()
        loss.locator("svg").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "-0.2  one, step 2" in loss.inner_text()
        page.get_by_label("one", exact=True).uncheck()
        assert "one" not in loss.inner_text()
        assert loss.locator("polyline").count() == 1
        page.locator("#smooth").fill("0.9")
        assert loss.locator("polyline").count() == 2
        assert page.evaluate("window.broken") is None


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_pictures(runs, tmp_path, suffix):
    out = tmp_path / "new" / f"curves{suffix}"
    assert plot(runs, "--out", out, "--smooth", "0.5").exit_code == 0
    if suffix == ".png":
        assert cv2.imread(str(out)).std() > 5
    else:
        assert out.stat().st_size > 5000


def test_bad_input_is_said_in_words(runs, tmp_path):
    for arguments, said in (
        ((tmp_path / "nothing",), "is no run and holds none"),
        ((runs, "--out", tmp_path / "curves.txt"), "expected a name that ends in .html"),
    ):
        done = plot(*arguments)
        assert done.exit_code == 1
        assert said in done.output
    shutil.rmtree(runs / "one")
    next(runs.iterdir()).joinpath("metrics.jsonl").write_text('{"loss": 1}\n')
    assert "with its step" in plot(runs).output
    next(runs.iterdir()).joinpath("metrics.jsonl").write_text("")
    assert "nothing is recorded yet" in plot(runs).output
