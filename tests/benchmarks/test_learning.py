"""The learning benchmark: what its protocol says is what runs, its pictures are a function of their number, its table adds up."""

import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

LEARNING = Path(__file__).resolve().parents[2] / "benchmarks" / "learning"
sys.path.append(str(LEARNING))

import data  # noqa: E402 - it lies in a folder that is a program
import grid  # noqa: E402
import labelfree  # noqa: E402
import table  # noqa: E402

from univip_stream.pretrain.ablations import ABLATIONS  # noqa: E402
from univip_stream.pretrain.recipes import recipe  # noqa: E402
from univip_stream.pretrain.settings import flat, with_settings  # noqa: E402

ALL = [
    grid.Cell(set=name, row=row, seed=seed)
    for name, kind in grid.SETS.items()
    for row in (*kind.rows, *kind.later)
    for seed in (0, 1)
]


def config(cell: grid.Cell):
    method = grid.ROWS[cell.row].method
    return with_settings(recipe("cpu-demo"), [*([f"method.name={method}"] if method else []), *cell.trained])


def test_every_cell_has_a_name_of_its_own_and_settings_that_training_takes():
    assert len({cell.name for cell in ALL}) == len({cell.fingerprint for cell in ALL}) == len(ALL)
    for cell in ALL:
        config(cell)


@pytest.mark.parametrize(
    ("row", "ablation"), [("byol", "7a"), ("scene", "7b"), ("scene+si", "7c"), ("scene+ii", "7d"), ("printed", "7e")]
)
def test_the_rows_of_table_7_are_the_ablations_of_that_name(row: str, ablation: str):
    cell = grid.Cell(set="drawn", row=row, seed=0)
    base = [text for text in cell.settings if text not in grid.ROWS[row].settings]
    assert cell.trained[-len(cell.settings) :] == cell.settings
    assert flat(config(cell)) == flat(with_settings(recipe("cpu-demo"), [*base, *ABLATIONS[ablation].settings]))


def test_rows_of_a_set_see_equally_many_images_but_those_that_say_so():
    for name, kind in grid.SETS.items():
        for row in set(kind.rows + kind.later) - {"untrained", "byol, longer"}:
            assert config(grid.Cell(set=name, row=row, seed=0)).epochs == kind.epochs


def test_finished_cells_are_of_the_protocol_as_it_stands_and_the_page_has_them():
    """A result of another protocol, or a page that was not made again, is an error here."""
    page = table.PAGE.read_text()
    for name in grid.SETS:
        if found := table.read(LEARNING / "results", name):
            for line in table.scores(found):
                assert line in page, f"run `python benchmarks/learning table --write`: {line}"
            for line in (*table.fewer(found), *table.changed(found)):
                assert line in page, f"run `python benchmarks/learning table --write`: {line}"
    methods = table.METHODS_PAGE.read_text()
    for line in table.side_by_side({name: table.read(LEARNING / "results", name) for name in ("drawn", "composed")}):
        assert line in methods, f"run `python benchmarks/learning table --write`: {line}"


def test_finished_cells_of_a_set_have_the_same_images_and_boxes_and_judges():
    """Shards carry their boxes, so that one fingerprint is one set of both; lightly's runs read the images themselves."""
    for name in grid.SETS:
        there = [result for results in table.read(LEARNING / "results", name).values() for result in results]
        assert len({result["shards"] for result in there if not grid.ROWS[result["row"]].by_lightly}) == 1
        assert len({(result["images"], result["judged"], result["chance"]) for result in there}) == 1


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "class"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((128, 128, 3), rng.integers(0, 256, 3), np.uint8))
    return sorted(folder.iterdir())


def test_a_composed_picture_is_a_function_of_its_number_with_photographs_where_it_says(photographs: list[Path]):
    for number in range(20):
        picture, boxes, which = data.composed(number, photographs)
        again, *_ = data.composed(number, photographs)
        assert np.array_equal(picture, again)
        assert 2 <= len(boxes) <= data.PHOTOGRAPHS[1]
        for at, (box, photograph) in enumerate(zip(boxes, which, strict=True)):
            x, y, w, h = box
            assert 0 <= x <= data.SIDE - w
            assert 0 <= y <= data.SIDE - h
            covered = np.zeros((data.SIDE, data.SIDE), bool)
            covered[y : y + h, x : x + w] = True
            for cx, cy, cw, ch in boxes[at + 1 :]:
                covered[cy : cy + ch, cx : cx + cw] = False
            colour = cv2.imread(str(photographs[photograph]))[0, 0]
            assert (picture[covered] == colour).all()
            assert covered.sum() > 0.5 * w * h
    assert not np.array_equal(data.composed(0, photographs)[0], data.composed(1, photographs)[0])


def test_the_interval_of_paired_differences_is_students():
    """By hand: differences .02, .04, .06 have mean .04, deviation .02, and t of two degrees of freedom is 4.303."""
    half = 4.303 * 0.02 / math.sqrt(3)
    assert table.difference([0.02, 0.04, 0.06]) == f"+0.040 [{0.04 - half:+.3f}, {0.04 + half:+.3f}]"
    assert table.spread([0.5, 0.6, 0.7]) == f"0.600 ± {0.1 / math.sqrt(3):.3f}"
    assert table.difference([]) == ""


def test_differences_are_paired_by_seed(tmp_path: Path):
    scores = {
        "byol": {0: 0.50, 1: 0.60},
        "scene": {0: 0.51, 1: 0.63, 2: 0.99},
        "printed": {0: 0.55},
        "K+two, plan": {0: 0.7},
        "byol, kaiming": {1: 0.7},
    }
    for row, seeds in scores.items():
        for seed, knn in seeds.items():
            cell = grid.Cell(set="drawn", row=row, seed=seed)
            path = tmp_path / f"{cell.name}.json"
            path.parent.mkdir(exist_ok=True)
            said = {
                "seed": seed, "knn": knn, "linear": knn, "images_seen": 1, "spent": {"cpu_s": 60, "wall_s": 60},
                "fingerprint": cell.fingerprint, "explained": {},
            }  # fmt: skip
            path.write_text(json.dumps(said))
    line = next(line for line in table.scores(table.read(tmp_path, "drawn")) if "`scene`" in line)
    assert "+0.020" in line  # seed 2 has no partner
    # Less the row that it adds something to or changes one thing of, which `K+two, plan` lacks here.
    assert table.changed(table.read(tmp_path, "drawn"))[2:] == [
        "| `printed` less `scene` | 1 | +0.040 | +0.040 |",
        "| `byol, kaiming` less `byol` | 1 | +0.100 | +0.100 |",
    ]
    # `printed` has seed 0 alone, which is BYOL's lower one.
    [told] = table.fewer(table.read(tmp_path, "drawn"))
    assert "0.550 and 0.550 with seeds 0, 1" in told
    assert "0.500 and 0.500 with seed 0" in told
    other = json.loads((tmp_path / "drawn/scene-s0.json").read_text()) | {"fingerprint": "of another protocol"}
    (tmp_path / "drawn/scene-s0.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="another protocol"):
        table.read(tmp_path, "drawn")


def test_measures_without_labels_are_of_the_network_that_knn_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A cell of `untrained` has a run of one step, after which batch norm has other statistics than the network it began with."""
    for name in ("drawn/untrained-s0", "drawn/byol-s0"):
        for path, text in ((tmp_path / f"{name}.json", '{"knn": 0.5}'), (tmp_path / "runs" / name / "config.json", "{}")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    asked = {}

    def loaded(run: Path, *, untrained: bool = False):
        asked[run.name] = untrained
        return None, recipe("cpu-demo")

    monkeypatch.setattr(labelfree, "load_backbone", loaded)
    monkeypatch.setattr(labelfree, "_pixels", lambda *_: None)
    monkeypatch.setattr(labelfree, "_measured", lambda *_: {"all": {}})
    monkeypatch.setattr(labelfree, "table", lambda known: "")
    monkeypatch.setattr("sys.argv", ["labelfree.py", "--work", str(tmp_path), "--results", str(tmp_path)])
    labelfree.main()
    assert asked == {"untrained-s0": True, "byol-s0": False}
