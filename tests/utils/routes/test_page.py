"""The page of routes: what it holds comes back, it needs nothing else, and no name can break it."""

import base64
import json
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from utils.routes.geometry import RoutingMap
from utils.routes.routing_report import TEMPLATE, write_routing_page

IMAGE = np.zeros((48, 64, 3), np.uint8) + np.array([250, 120, 10], np.uint8)  # RGB
SVG = "http://www.w3.org/2000/svg"  # the name of a vocabulary, which nobody fetches


class Page(HTMLParser):
    """Elements with their attributes, and the text of titles and scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.data, self._inside = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "title", "style"):
            self._inside = dict(attributes).get("id", tag)
            self.data[self._inside] = ""

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.data[self._inside] += data

    def json(self, name):
        return json.loads(self.data[name])


def some_map(name="stage4", rows=3, cols=2, cell=(16, 32), topk=2):
    index = np.stack([np.random.default_rng(i).permutation(rows * cols)[:topk] for i in range(rows * cols)])
    return RoutingMap(name, rows, cols, *cell, index, np.full(index.shape, 1 / 3, np.float32))


@pytest.fixture
def page(tmp_path):
    """Write a page and read it."""

    def write(name="bus.jpg", maps=None, **more):
        maps = [some_map()] if maps is None else maps
        path = write_routing_page(tmp_path / "new/page.html", IMAGE, maps, name, **more)
        return Page(path.read_text(encoding="utf-8"))

    return write


def test_no_layer_is_an_error(page, tmp_path):
    with pytest.raises(ValueError, match="at least one layer"):
        page(maps=[])
    assert not (tmp_path / "new").exists()


def test_what_is_written_comes_back(page):
    maps = [some_map(), some_map("stage9.m.0.attn", 4, 3, (16, 24.5), 5)]
    data = page("bus.jpg", maps, points=[(1.25, 2), (30.0, 40.04)]).json("data")
    assert (data["name"], data["width"], data["height"]) == ("bus.jpg", 64, 48)
    assert data["points"] == [[1.2, 2], [30, 40]]
    for layer, routes in zip(data["layers"], maps, strict=True):
        assert (layer["name"], layer["rows"], layer["cols"]) == (routes.name, routes.rows, routes.cols)
        assert layer["index"] == routes.index.tolist() and set(np.ravel(layer["weight"])) == {0.3333}
        assert layer["cell"] == [routes.cell_height, routes.cell_width]
    # the second map is 64 x 73.5 pixels: its last row is padding and its last column is cut
    assert data["layers"][1]["x"] == [0, 24.5, 49, 64] and data["layers"][1]["y"] == [0, 16, 32, 48, 48]
    kind, _, content = page().json("data")["image"].partition(",")
    image = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert kind == "data:image/jpeg;base64" and image.shape == IMAGE.shape
    assert np.abs(image.astype(int) - IMAGE).max() < 6


def test_the_page_needs_nothing_else(page):
    found = page()
    addresses = {value for _, attributes in found.elements for name, value in attributes.items() if name in (
        "src", "href", "action", "data", "poster", "srcset", "xlink:href"
    )}  # fmt: skip
    assert addresses == set() and not any(tag in ("link", "iframe", "object", "base") for tag, _ in found.elements)
    text = TEMPLATE.read_text(encoding="utf-8")
    assert re.findall(r"\w+://[^\s\"']+", text) == [SVG]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(|innerHTML|eval\(", text)
    (policy,) = (a["content"] for tag, a in found.elements if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "http" not in policy


@pytest.mark.parametrize(
    "name",
    [
        "图 bus.jpg", "a & b.jpg", "</script><script>alert(1)</script>.jpg", "</title><img src=x onerror=alert(1)>",
        '"quoted" \'name\'.jpg', "<!-- <script> -->.png", "{{data}} {{title}}.jpg", "back\\slash\\u003c.jpg",
    ],
)  # fmt: skip
def test_names_are_text_and_nothing_else(page, name):
    plain, found = page(), page(name)
    assert found.json("data")["name"] == name and found.data["title"] == name
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in plain.elements]
    assert found.data["script"] == plain.data["script"]


def test_names_that_are_no_text_or_move_what_is_around_them(page):
    for name, shown in (("bad\udcff", "bad\\udcff"), ("\u2028\x1b]0;x\x07\u202e", "\\u2028\\x1b]0;x\\x07\\u202e")):
        found = page(f"{name}.jpg")
        assert found.json("data")["name"] == found.data["title"] == f"{shown}.jpg"


def test_every_word_and_element_is_there(page):
    found = page()
    words, script = found.json("words"), found.data["script"]
    assert words["en"].keys() == words["zh"].keys()
    for key, english in words["en"].items():
        chinese, gaps = words["zh"][key], re.compile(r"\{\w+\}")
        assert sorted(gaps.findall(english)) == sorted(gaps.findall(chinese))
        assert key == "other" or ((english.isascii() or "×" in english) and not chinese.isascii())
    used = {a["data-text"] for _, a in found.elements if "data-text" in a} | set(re.findall(r'say\("(\w+)"', script))
    assert used == words["en"].keys()
    found = page()
    asked = set(re.findall(r'byId\("(\w+)"\)', found.data["script"]))
    assert asked and asked <= {attributes.get("id") for _, attributes in found.elements}
