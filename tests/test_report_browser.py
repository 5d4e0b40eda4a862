"""report.html in a real browser: nothing is fetched, nothing runs, nothing sticks out, the charts have ink."""

from __future__ import annotations

import browser
import numpy as np
import pytest
from test_report import HOSTILE, full_page, hostile_page

pytestmark = pytest.mark.skipif(browser.find() is None, reason="no chromium on this machine")

BOXES = """[...document.querySelectorAll("svg.chart")].map(
    chart => { const box = chart.getBoundingClientRect(); return [box.x, box.y + scrollY, box.width, box.height]; })"""
CASES = [
    ("usual", 1280, "light"),
    ("usual", 400, "dark"),
    ("hostile", 1280, "dark"),
    ("hostile", 400, "light"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two pages on disk: of a usual run, and of one with hostile names."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "usual.html").write_text(full_page(folder), encoding="utf-8")
    (folder / "hostile.html").write_text(hostile_page(folder, HOSTILE), encoding="utf-8")
    return folder


def luminance(pixel):
    return float(np.asarray(pixel, float) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize(("name", "width", "scheme"), CASES)
def test_report_in_a_browser(tab, pages, name, width, scheme):
    path = pages / f"{name}.html"
    tab.open(path, width, scheme)
    asked = {params["request"]["url"] for params in tab.said("Network.requestWillBeSent")}
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    assert tab.said("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value("document.querySelectorAll('script, iframe, object, form').length") == 0
    boxes, image = tab.value(BOXES), np.asarray(tab.picture())
    assert len(boxes) >= 5
    for x, y, chart_width, height in boxes:
        assert min(chart_width, height) > 100
        drawn = image[int(y) : int(y + height), int(x) : min(width, int(x + chart_width))].reshape(-1, 3)
        colours, counts = np.unique(drawn, axis=0, return_counts=True)
        ground = colours[counts.argmax()]
        assert (luminance(ground) < 80) == (scheme == "dark")
        assert (np.abs(drawn.astype(int) - ground).max(axis=1) > 40).mean() > 0.003, "no ink"


def test_what_the_test_would_see(tab, tmp_path):
    """A page with a picture from elsewhere, a script and a wide block shows all three."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<img src=http://127.0.0.1:9/x.png><script>throw Error()</script><p style='width:900px'>", encoding="utf-8"
    )
    tab.open(path, 400, "light")
    assert len(tab.said("Network.requestWillBeSent")) == 2
    assert tab.said("Runtime.exceptionThrown")
    assert tab.value("document.documentElement.scrollWidth") > 400
