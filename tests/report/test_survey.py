"""Statistics that are gathered shard by shard are those of all boxes at once, and take the memory of a few shards."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import scale

from univip_stream.report.choose import some
from univip_stream.report.numbers import distribution
from univip_stream.report.survey import Extremes, Measure
from univip_stream.stream import order
from univip_stream.stream.order import Order

KINDS = {
    "counts": (lambda rng, n: rng.integers(0, 60, n), {"whole": True}),
    "sides": (lambda rng, n: rng.integers(64, 700, n).astype(np.int16), {"logarithmic": True}),
    "ratios": (lambda rng, n: rng.uniform(0.3, 3, n).astype(np.float32), {"logarithmic": True}),
    "shares": (lambda rng, n: rng.uniform(0, 100, n).astype(np.float32), {}),
    "all the same": (lambda rng, n: np.full(n, 2.5, np.float32), {}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(0,), (1,), (2,), (7, 0, 4), (500, 333, 2), (1000, 1000, 1)])
def test_a_distribution_in_pieces_is_that_of_the_whole(kind, sizes, rng):
    make, options = KINDS[kind]
    pieces = [make(rng, size) for size in sizes]
    measure = Measure("name", "boxes", "px", **options)
    for piece in pieces:
        measure.look(piece)
    measure.settle()
    for piece in pieces:
        measure.count(piece)
    found, expected = measure.distribution(), distribution(np.concatenate(pieces), "name", "boxes", "px", **options)
    assert found.as_json() == expected.as_json()
    assert (found.median, found.logarithmic, found.whole) == (expected.median, expected.logarithmic, expected.whole)


def test_extremes_in_pieces_are_those_of_a_whole_sort(rng):
    values, owners = rng.permutation(5000).astype(np.float32), np.sort(rng.integers(0, 400, 5000))
    extremes = Extremes(lambda value, sample: f"{value:.0f}")
    for piece in np.split(np.arange(5000), [3, 3, 900, 4000]):
        extremes.look(values[piece], owners[piece])
    expected: dict[int, float] = {}
    for at in np.argsort(-values):
        if len(expected) < 3:
            expected.setdefault(int(owners[at]), float(values[at]))
    assert extremes.found() == [(owner, f"{value:.0f}") for owner, value in expected.items()]


def test_what_many_images_share_is_not_extreme():
    def found(*pieces):
        extremes = Extremes(lambda value, sample: str(value))
        for values, owners in pieces:
            extremes.look(np.array(values, np.float64), np.array(owners))
        return [sample for sample, _ in extremes.found()]

    assert found(([5, 5], [0, 1]), ([5, 5, 1], [2, 3, 4])) == []
    assert found(([5, 5], [0, 1]), ([5, 1, 1], [2, 3, 4])) == [0, 1, 2]
    assert found(([5, 5, 5, 5], [0, 0, 0, 1]), ([5, 2], [2, 3])) == [0, 1, 2]  # many boxes, few images
    assert found(([5, 5], [0, 1]), ([5, 5], [2, 3]), ([6], [4])) == [4, 0, 1]
    assert found() == []


@pytest.mark.parametrize("in_a_row", [1 << 24, 10])
def test_positions_are_the_reverse_of_the_order(in_a_row, monkeypatch, rng):
    monkeypatch.setattr(order, "MOST_IN_A_ROW", in_a_row)
    found = Order(rng.integers(0, 9, 50), 3, 7)
    for epoch in (0, 2):
        everything = found.epoch(epoch)
        positions = Order(found_counts(found), 3, 7).positions(everything, epoch)
        assert positions.tolist() == list(range(epoch * found.count, (epoch + 1) * found.count))
    few = np.array([4, 90, 17])
    assert [found.sample(at) for at in found.positions(few, 1).tolist()] == few.tolist()


def found_counts(of):
    counts = np.zeros(50, np.int64)
    counts[of.shards] = of.sizes
    return counts


def test_some_of_very_many_are_chosen_without_an_array_of_all():
    chosen = some(10**12, 48, 5)
    assert len(set(chosen.tolist())) == 48
    assert (np.sort(chosen) == chosen).all()
    assert some(10**12, 48, 5).tolist() == chosen.tolist()
    assert some(20, 48, 5).tolist() == list(range(20))


CODE = """
import gc, json, sys
from univip_stream.report.build import build_report

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

build_report(sys.argv[1], pictures=False)
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
report = build_report(sys.argv[2], pictures=False)
print(json.dumps([report.boxes, memory("VmHWM") - before]))
"""


@pytest.mark.slow
def test_memory_is_that_of_a_few_shards(tmp_path):
    """A hundred shards with ten million boxes: with all indexes in memory at once they took 566 MB more than twenty; now 39."""
    (tmp_path / "one").mkdir()
    entry = scale.write_one(tmp_path / "one", 1000, 100)
    for count in (20, 100):
        scale.build(tmp_path / str(count), tmp_path / "one", entry, count)
    words = [sys.executable, "-c", CODE, tmp_path / "20", tmp_path / "100"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    boxes, grown = json.loads(done.stdout)
    assert boxes == 100 * 1000 * 100
    assert grown < 80
