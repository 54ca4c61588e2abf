"""The documentation as a site, opened from disk in a real browser: it finds words, and asks nobody for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import page_at

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if not (Path(sys.executable).parent / "mkdocs").exists():
        pytest.skip("no mkdocs on this machine (make setup brings it)")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_no_page_loads_anything_from_a_host(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    loads = re.compile(
        r"<(?:script|img|iframe|source|link)\b[^>]*?\b(?:src|href)\s*=\s*[\"']?(?:https?:)?//[^\"' >]*", re.IGNORECASE
    )
    found = {str(page.relative_to(site)): loads.findall(page.read_text()) for page in pages}
    assert not {page: urls for page, urls in found.items() if urls}
    styles = {
        str(sheet): re.findall(r"(?:@import|url\()\s*[\"']?https?://[^\"')]*", sheet.read_text())
        for sheet in site.rglob("*.css")
    }
    assert not {sheet: urls for sheet, urls in styles.items() if urls}


@pytest.mark.parametrize("start", ["index.html", "how-to/coco.html"])
def test_search_finds_a_word_from_disk_without_a_request(site, start):
    with page_at(site / start) as tab:  # fails on any request beyond files, and on errors of the console
        tab.click("input[name=query]")
        tab.keyboard.type("Felzenszwalb")
        first = tab.locator(".md-search-result__link").first
        first.wait_for()
        assert "How boxes are found" in first.inner_text()
        first.click()
        tab.wait_for_url("**/selective-search.html*")
