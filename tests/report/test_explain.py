"""`univip-stream explain`: the figure is of what the stream and the method do, not of something like it."""

import json

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from univip_stream.boxes import filter_boxes
from univip_stream.cli import cli
from univip_stream.losses import instance_loss
from univip_stream.pretrain import pretrain
from univip_stream.pretrain.load import load_method
from univip_stream.pretrain.recipes import recipe
from univip_stream.pretrain.settings import with_settings
from univip_stream.report.explain import explain
from univip_stream.views import ViewConfig, draw_views


@pytest.fixture(scope="module")
def image(drawn_folder):
    return next(drawn_folder.rglob("*.jpg"))


@pytest.fixture(scope="module")
def univip_run(tmp_path_factory, drawn_shards):
    small = [
        "method.backbone=test_resnet", "method.hidden=32", "method.width=16", "views.scene_size=32", "views.instance_size=24",
        "views.instances=3", "stream.batch_size=4", "stream.workers=0", "steps=1", "optim.lr=0.01",
    ]  # fmt: skip
    folder = tmp_path_factory.mktemp("explained") / "run"
    pretrain(with_settings(recipe("cpu-demo"), small), str(drawn_shards), folder)
    return folder


def command(*arguments):
    return CliRunner().invoke(cli, ["explain", *map(str, arguments)])


def test_boxes_and_views_are_those_of_mining_and_of_algorithm_1(image):
    found = explain(image, seed=5)
    height, width = found.image.shape[:2]
    np.testing.assert_array_equal(found.kept, filter_boxes(found.proposals))
    views = draw_views(found.kept, width, height, np.random.default_rng(5), ViewConfig())
    np.testing.assert_array_equal(found.inputs.views.scenes, views.scenes)
    np.testing.assert_array_equal(found.inputs.views.instances, views.instances)
    # The taken pair is the last that was tried, or, where none held enough, the first that held most.
    taken = next(at for at, pair in enumerate(found.inputs.tries) if (pair == views.scenes).all())
    if found.inputs.held[-1] >= 4:
        assert taken == len(found.inputs.tries) - 1
    assert all(held < 4 for held in found.inputs.held[:-1])
    assert found.inputs.held[taken] >= 4 - views.filled


def test_the_plan_is_the_one_that_the_loss_weighs_with(image, univip_run):
    found = explain(image, run=univip_run)
    plan, cosines, *_ = found.transport
    assert plan.shape == (1, 3, 3)
    assert float(plan.sum()) == pytest.approx(3, abs=1e-5)  # as many as there are instances
    # Against the loss of Eq. 11 on features made here, crop by crop.
    method, config = load_method(univip_run)
    method.eval()
    with torch.no_grad():
        o = torch.cat([method.predictor(method.online(crop[None])) for crop in found.inputs.instance_inputs[0]])
        t = torch.cat([method.target(crop[None]) for crop in found.inputs.instance_inputs[-1]])
        scenes_o = [method.predictor(method.online(view[None])) for view in found.inputs.scene_inputs]
        scenes_t = [method.target(view[None]) for view in found.inputs.scene_inputs]
        c = config.method
        loss = instance_loss(o[None], t[None], *scenes_o, *scenes_t, epsilon=c.epsilon, iterations=c.iterations, mass=3.0)
    assert float(-(plan * cosines).sum()) == pytest.approx(float(loss), abs=1e-5)


def test_the_command_draws_and_tells(image, univip_run, tmp_path):
    done = command(image, "--run", univip_run, "--out", tmp_path / "figures" / "one.png", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert len(facts["instances"]) == 3
    assert np.array(facts["plan"]).sum() == pytest.approx(3, abs=1e-5)
    drawn = cv2.imread(str(tmp_path / "figures" / "one.png"))
    assert drawn.shape[1] == 1650
    assert drawn.std() > 20
    again = command(image, "--run", univip_run, "--out", tmp_path / "figures" / "two.png")
    assert "instances" in again.output
    assert (tmp_path / "figures" / "one.png").read_bytes() == (tmp_path / "figures" / "two.png").read_bytes()


def test_bad_input_is_said_in_words(image, run_folder, tmp_path):
    (tmp_path / "words.jpg").write_text("words")
    for arguments, status, said in (
        ((tmp_path / "none.jpg", "--out", "x.png"), 1, "none.jpg: no such image; expected"),
        ((tmp_path, "--out", "x.png"), 1, "cannot be read: Is a directory"),
        ((tmp_path / "words.jpg", "--out", "x.png"), 1, "words.jpg"),
        ((image, "--out", tmp_path / "x.txt"), 1, "ends in .png"),
        ((image, "--out", tmp_path / "x.png", "--run", tmp_path / "none"), 1, "no such run"),
        ((image, "--out", tmp_path / "x.png", "--run", run_folder), 2, "no instance term"),
    ):
        done = command(*arguments)
        assert done.exit_code == status, done.output
        assert said in done.output
        assert "Traceback" not in done.output


def test_dense_features_are_drawn_for_any_method(image, univip_run, run_folder, tmp_path):
    """With --run they are that run's; --features takes any run, and the map has the image's shape."""
    from univip_stream.images import read_picture
    from univip_stream.report.explain import dense_features

    pixels = read_picture(image.read_bytes(), max_pixels=10**8, min_side=1).pixels
    found = dense_features(pixels, run_folder)
    h, w, _ = found.size
    assert found.colours.shape == (h, w, 3)
    assert w > h  # as the image
    assert sum(found.shares) == pytest.approx(1, abs=0.9)
    for words in (["--run", univip_run], ["--features", run_folder]):
        done = command(image, *words, "--out", tmp_path / "out.png", "--json")
        assert done.exit_code == 0, done.output
        assert len(json.loads(done.stdout)["features"]["variance"]) == 3
