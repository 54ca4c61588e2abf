"""`univip-stream inspect`: a page that works in a browser, and whose numbers and pictures are those of the shards."""

import base64
import json
import re
import tarfile

import cv2
import numpy as np
import pytest
from browser import page_at
from click.testing import CliRunner
from demo_images import SHAPES, draw_scene

from univip_stream.cli import cli
from univip_stream.report.survey import survey
from univip_stream.shards import expand_shards, open_index
from univip_stream.views import ViewConfig, draw_views

HOSTILE = "<img src=x onerror='window.broken=1'>.jpg"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Twelve scenes, one flat image whose only box is all of it, one that is no image, one too small, one of a hostile name."""
    folder = tmp_path_factory.mktemp("looked") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for at in range(12):
        cv2.imwrite(str(folder / f"scene{at:02d}.jpg"), draw_scene(SHAPES[at % len(SHAPES)], rng, 320, 240))
    cv2.imwrite(str(folder / "flat.png"), np.full((200, 300, 3), 128, np.uint8))
    (folder / "broken.jpg").write_text("</script><script>window.broken=1</script>")
    cv2.imwrite(str(folder / "small.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / HOSTILE).write_bytes((folder / "scene00.jpg").read_bytes())
    out = folder.parent / "shards"
    done = CliRunner().invoke(
        cli, ["mine", "--src", str(folder), "--out", str(out), "--inline", "--max-failures", "3", "--num-shards", "3"]
    )
    assert done.exit_code == 0, done.output
    return out


def inspect(*arguments):
    return CliRunner().invoke(cli, ["inspect", *map(str, arguments)])


@pytest.fixture(scope="module")
def page(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    done = inspect(shards, "--html", out, "--png", out.parent / "sheets", "--json")
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


def data_of(page):
    return json.loads(re.search(r"const DATA = (.*);\n", page.read_text())[1])


def test_the_numbers_are_those_of_the_shards(shards, page):
    boxes = 0
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            boxes += sum(len(json.load(tar.extractfile(name))["boxes"]) for name in tar.getnames() if name.endswith(".json"))
    facts = page[1]
    assert (facts["images"], facts["shards"], facts["boxes"]) == (14, 3, boxes)
    assert facts["failed"] == {"unreadable": 1, "too_small": 1}
    index = open_index(expand_shards(str(shards)))
    found = {histogram.title: histogram for histogram in survey(index).histograms}
    assert sum(found["boxes per image"].counts) == 14
    for title in ("shorter side of a box", "width by height of a box", "box area"):
        assert sum(found[title].counts) == len(index.boxes), title
    sides = index.boxes[:, 2:].min(axis=1)
    assert f"from {sides.min()} to {sides.max()}" in found["shorter side of a box"].says


def test_pictures_boxes_and_views_are_those_that_training_would_draw(shards, page):
    index = open_index(expand_shards(str(shards)))
    for entry in data_of(page[0])["images"]:
        sample = index.key.to_pylist().index(entry["key"])
        assert entry["boxes"] == index.boxes_of(sample).tolist()[:200]
        views = draw_views(
            index.boxes_of(sample).astype(np.int32),
            entry["width"],
            entry["height"],
            np.random.default_rng([0, sample]),
            ViewConfig(),
        )
        assert entry["scenes"] == views.scenes.tolist()
        assert entry["instances"] == views.instances.tolist()
        assert len(entry["seen_instances"]) == 4
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(entry["picture"].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape[:2] == (entry["height"], entry["width"])


def test_the_page_in_a_browser_filters_searches_and_shows_details_by_keyboard(page):
    with page_at(page[0]) as tab:
        items = tab.locator(".item")
        assert items.count() == page[1]["shown"]
        tab.get_by_role("button", name=re.compile("^odd")).click()
        assert items.count() == page[1]["odd"]
        tab.get_by_role("button", name=re.compile("^all")).click()
        tab.get_by_role("searchbox").fill("scene03")
        assert items.count() == 1
        assert tab.locator("#count").inner_text() == f"1 of {page[1]['shown']}"
        tab.get_by_role("searchbox").fill("")
        items.first.focus()
        tab.keyboard.press("Enter")
        first = tab.locator("#name").inner_text()
        assert tab.locator("#inside .crops img").count() == 12
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#name").inner_text() != first
        before = tab.locator("#inside .stage rect").count()
        tab.get_by_label(re.compile("two views")).uncheck()
        assert tab.locator("#inside .stage rect").count() == before - 3
        tab.keyboard.press("Escape")
        assert not tab.locator("dialog").is_visible()
        assert "not an image that can be read" in tab.locator("#failures").inner_text()
        assert tab.evaluate("window.broken") is None
        assert "onerror" in tab.locator("#gallery").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_narrow_screen_nothing_is_wider_than_it(page, scheme):
    with page_at(page[0], scheme=scheme, width=360) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360
        tab.locator(".item").first.click()
        assert tab.evaluate("document.querySelector('dialog').scrollWidth <= document.querySelector('dialog').clientWidth")
        tone = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", tone)[:3])) < 200) == (scheme == "dark")


def test_the_same_seed_is_the_same_page_and_another_is_not(shards, page, tmp_path):
    inspect(shards, "--html", tmp_path / "same.html")
    inspect(shards, "--html", tmp_path / "other.html", "--seed", "1")
    assert (tmp_path / "same.html").read_bytes() == page[0].read_bytes()
    assert data_of(tmp_path / "other.html")["images"][0]["scenes"] != data_of(page[0])["images"][0]["scenes"]


def test_contact_sheets(page):
    [sheet] = [cv2.imread(path) for path in page[1]["sheets"]]
    assert sheet.shape == (3 * 300, 6 * 300, 3)


def test_an_image_that_changed_is_shown_with_its_reason(shards, tmp_path):
    for path in shards.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    index = open_index(expand_shards(str(tmp_path)))
    with open(index.shards[0], "r+b") as file:
        file.seek(int(index.offset[0]) + 300)
        file.write(b"\0" * 40)
    done = inspect(tmp_path, "--html", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    wrong = [entry for entry in data_of(tmp_path / "report.html")["images"] if entry["error"]]
    assert len(wrong) == 1
    assert "SHA-256 differs" in wrong[0]["error"]


def test_bad_input_is_said_in_words(tmp_path):
    done = inspect(tmp_path / "none", "--html", tmp_path / "x.html")
    assert done.exit_code == 1
    assert "no such folder of shards" in done.output
    assert inspect("--html", tmp_path / "x.html").exit_code == 2
