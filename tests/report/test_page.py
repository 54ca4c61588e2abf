"""The page in a real browser: it opens clean and alone, and everything on it works by mouse and by keys."""

import re
from contextlib import ExitStack

import pytest
from browser import page_at
from click.testing import CliRunner

from univip_stream.cli import cli


@pytest.fixture(scope="module")
def page_file(odd_shards, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    done = CliRunner().invoke(cli, ["inspect", str(odd_shards), "--html", str(path), "--samples", "5", "-q"])
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture
def opened():
    """Open a page in a browser, one at a time; it complains of nothing and asks for nothing."""
    with ExitStack() as stack:

        def opening(path, **options):
            stack.close()
            return stack.enter_context(page_at(path, **options))

        yield opening


def sources(tab):
    return tab.locator(".card .source").all_inner_texts()


def test_names_stay_names_and_pictures_are_shown(opened, page_file, foreign_tar, tmp_path):
    foreign = tmp_path / "foreign.html"
    assert CliRunner().invoke(cli, ["inspect", str(foreign_tar), "--html", str(foreign), "-q"]).exit_code == 0
    for path in (page_file, foreign):
        tab = opened(path)
        hostile = tab.locator(".card", has_text="x</script><script>owned=1")
        assert hostile.count() == 1
        hostile.click()
        assert "<img src=x onerror=owned=1>" in tab.locator("#detail-title").inner_text()
        assert tab.evaluate("typeof owned") == "undefined"
        assert tab.locator("script").count() == 2
        tab.wait_for_function("[...document.querySelectorAll('dialog img')].every((image) => image.complete)")
        sizes = tab.eval_on_selector_all("dialog img", "all => all.map((image) => image.naturalWidth)")
        assert sorted(sizes)[:12] == [96] * 8 + [224] * 4  # K = 4 instances and two views, before and after
    assert tab.locator("dialog .sub").inner_text().count("</script><b>") == 1  # a hostile label


def test_filters_and_search_choose_among_the_images(opened, page_file):
    tab = opened(page_file)
    everything = sources(tab)
    assert tab.locator(".filters [aria-pressed=true]").inner_text().startswith("All")
    tab.click("[data-kind=failure]")
    assert sorted(sources(tab)) == ["images/broken.jpg", "images/cut <b>off.jpg"]
    assert set(sources(tab)) < set(everything)
    tab.click("[data-kind=no-boxes]")
    assert sources(tab) == ["images/small.png"]
    tab.click("[data-kind=random]")
    assert len(sources(tab)) == 5
    tab.click("[data-kind=all]")
    tab.fill("input[type=search]", "CUT <b")
    assert sources(tab) == ["images/cut <b>off.jpg"]
    tab.fill("input[type=search]", "nothing is called so")
    assert sources(tab) == []
    assert "No image fits" in tab.locator("#gallery").inner_text()
    tab.press("input[type=search]", "Escape")
    assert sources(tab) == everything


def focus_is_on(tab, card):
    """The browser moves the focus after the key's event is through; under load one can look too early."""
    tab.wait_for_function("card => document.querySelectorAll('.card')[card] === document.activeElement", arg=card)


def test_everything_can_be_reached_by_keys(opened, page_file):
    tab = opened(page_file)
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.type") == "search"
    tab.keyboard.press("Tab")
    first = tab.locator(".card").nth(0)
    focus_is_on(tab, 0)
    assert first.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"  # the focus is seen
    tab.keyboard.press("ArrowRight")
    focus_is_on(tab, 1)
    tab.keyboard.press("Enter")
    title = tab.locator("#detail-title")
    assert title.inner_text() == sources(tab)[1]
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    assert title.inner_text() == sources(tab)[3]
    tab.keyboard.press("ArrowLeft")
    assert title.inner_text() == sources(tab)[2]
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").is_visible()
    focus_is_on(tab, 2)


def test_boxes_are_drawn_by_rank_and_layers_go_on_and_off(opened, page_file):
    tab = opened(page_file)
    tab.locator(".card", has_text="scene3.jpg").click()
    drawn = tab.locator(".picture.whole rect.mined")
    count = int(re.search(r"(\d+) box", tab.locator("dialog .sub").inner_text())[1])
    assert drawn.count() == tab.locator(".ranks li").count() == count > 3
    tab.locator("dialog input[type=range]").fill("2")
    assert sum(drawn.nth(at).is_visible() for at in range(count)) == 2
    assert tab.locator("output").inner_text() == f"2 of {count}"
    rank = tab.locator(".ranks button").first
    rank.hover()
    width, height = (int(part) for part in rank.inner_text().split()[1::2])
    lit = tab.locator("rect.lit")
    assert (lit.get_attribute("width"), lit.get_attribute("height")) == (str(width), str(height))
    views = tab.locator(".picture.whole rect.view1")
    assert views.is_visible()
    tab.locator(".legend label", has_text="two views").click()
    assert not views.is_visible()
    # A link to an image opens it.
    tab.reload()
    assert tab.locator("#detail-title").inner_text() == "images/scene3.jpg"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_needs_no_sideways_scrolling_and_follows_the_scheme(opened, page_file, scheme):
    tab = opened(page_file, width=340, scheme=scheme)
    wide = "document.documentElement.scrollWidth > innerWidth"
    assert not tab.evaluate(wide)
    for card in (".card:has(img)", ".card:has(.none)"):
        tab.locator(card).first.click()
        body = "document.querySelector('dialog .body')"
        assert not tab.evaluate(f"{wide} || {body}.scrollWidth > {body}.clientWidth")
        tab.locator("[data-close]").click()
    red = int(re.search(r"rgb\((\d+)", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[1])
    assert (red > 200) == (scheme == "light")


def test_without_scripts_the_numbers_are_there(opened, page_file):
    context = opened(page_file).context.browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(page_file.as_uri())
    assert "13 images in all" in tab.locator("main").inner_text()
    assert "does not run" in tab.locator("noscript").inner_text()
    context.close()
