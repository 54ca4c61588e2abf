"""The verdict without labels, on series whose truth is known."""

import numpy as np
import pytest

from univip_stream.pretrain.verdict import judge


def series(loss, spread=0.6, terms=None, every=10):
    terms = terms or {}
    return [
        {"step": every * (at + 1), "loss": float(value), "feature_std": float(np.broadcast_to(spread, len(loss))[at])}
        | {name: float(values[at]) for name, values in terms.items()}
        for at, value in enumerate(loss)
    ]


def noise(seed, count, size=0.02):
    """Neighbouring records resemble each other, as those of one run do."""
    drawn = np.random.default_rng(seed).normal(0, size, count + 10)
    return np.convolve(drawn, np.ones(4) / 2, "valid")[:count]


def test_a_loss_that_falls_to_the_end_is_no_flat_one():
    for seed in range(10):
        found = judge(series(1 - np.linspace(0, 0.8, 300) + noise(seed, 300)))
        assert found.flat_since is None
        assert found.slope == pytest.approx(-0.08, abs=0.03)
        assert "the loss still falls" in found.sentence()
        assert "no collapse (the features' spread is 0.60)" in found.sentence()


def test_the_step_since_which_it_is_flat_is_found():
    """Falls for two fifths of the run, then stays: found within a tenth of it, in nine of ten."""
    near = 0
    for seed in range(20):
        curve = np.concatenate([np.linspace(1, 0.2, 120), np.full(180, 0.2)]) + noise(seed, 300)
        found = judge(series(curve))
        near += found.flat_since is not None and abs(found.flat_since - 1200) <= 300
    assert near >= 18


def test_chance_alone_seldom_makes_a_flat_loss_move():
    moved = sum(judge(series(0.3 + noise(seed, 300))).flat_since is None for seed in range(100))
    assert moved <= 15


def test_a_loss_that_rises_is_said_to():
    """BYOL's does while it learns: it is said, and called neither good nor bad."""
    assert "the loss still rises" in judge(series(np.linspace(0.1, 0.6, 200) + noise(0, 200))).sentence()


def test_collapse_is_named_with_the_term_that_fell_most():
    down = np.linspace(1, -1, 100)
    found = judge(
        series(
            down,
            spread=np.linspace(0.7, 0.01, 100),
            terms={"loss_scene": np.linspace(0.2, 0, 100), "loss_instance": down, "loss_scene_instance": np.zeros(100)},
        )
    )
    assert found.collapsed
    assert found.sentence().startswith("collapsing: the features' spread is 0.0")
    assert "loss_instance fell most" in found.sentence()


def test_of_a_short_run_nothing_is_said_about_its_loss():
    found = judge(series(np.linspace(1, 0, 12)))
    assert (found.slope, found.flat_since) == (None, None)
    assert "too little is recorded" in found.sentence()
    assert "collapse" not in judge([{"step": 1, "loss": 1.0}]).sentence()


def test_it_is_said_at_the_end_of_a_run_and_by_plot(run_folder, tmp_path, drawn_shards):
    from click.testing import CliRunner

    from univip_stream.cli import cli

    done = CliRunner().invoke(cli, ["plot", str(run_folder), "--out", str(tmp_path / "curves.png")])
    assert done.exit_code == 0, done.output
    assert f"{run_folder.name}, without labels: no collapse" in done.stdout
    words = ["--backbone", "test_resnet", "--steps", "2", "--batch-size", "4", "--workers", "0", "--set", "method.hidden=32"]
    words += ["--set", "method.width=16", "--set", "views.instances=0", "--set", "views.scene_size=32"]
    done = CliRunner().invoke(
        cli, ["train", "--shards", str(drawn_shards), "--out", str(tmp_path / "run"), "--recipe", "cpu-demo", *words]
    )
    assert done.exit_code == 0, done.output
    assert "without labels: no collapse (the features' spread is" in done.stderr
