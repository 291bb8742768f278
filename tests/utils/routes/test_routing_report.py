"""Which regions are shown, where they lie in the network's input, and what files appear."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.boxes.convert import scale_boxes
from utils.images.letterbox import letterbox
from utils.predict.pipeline import Geometry, prepare_image
from utils.predict.sources import Frame
from utils.routes import routing_report
from utils.routes.geometry import RoutingMap
from utils.routes.routing_report import choose_points, parse_points, write_routes

NOTHING = torch.zeros(0, 6)


def frame(height=60, width=100, path="in/bus.jpg"):
    original = np.zeros((height, width, 3), np.uint8)
    image, geometry = prepare_image(original, (64, 64))
    return Frame(path, image, original, geometry, "image")


def boxes(*centres):
    """Detections of 10 x 10 pixels."""
    return torch.tensor([[x - 5, y - 5, x + 5, y + 5, 0.9, 0] for x, y in centres]).float()


# ---- positions in words
def test_positions_are_read():
    assert parse_points(None) == [] and parse_points([]) == []
    assert parse_points(["3,4", " 5.5 , 6 ", (7, 8), [0, 0.5]]) == [(3, 4), (5.5, 6), (7, 8), (0, 0.5)]


@pytest.mark.parametrize(
    "word", ["", "3", "3,", "3,4,5", "3;4", "a,b", "-3,4", "1e3,4", "nan,4", "inf,1", 3, None, (3,)]
)
def test_what_is_no_position_is_one_line(word):
    with pytest.raises(ValueError, match=r"^--query .*X,Y.*--query 320,240$"):
        parse_points(["1,1", word])


# ---- whose regions
def test_the_surest_detections_or_the_middle():
    assert choose_points(frame(), [], NOTHING) == [(50, 30)]
    found = boxes((20, 30), (80, 10), (50, 50), (70, 40))
    assert choose_points(frame(), [], found) == [(20, 30), (80, 10), (50, 50)]
    assert choose_points(frame(), [], boxes((100, 60))) == [(99, 59)]  # its middle is on the very edge


def test_what_is_asked_for_comes_first_and_must_lie_inside(caplog):
    assert choose_points(frame(), [(0, 0), (99.5, 59)], boxes((20, 30))) == [(0, 0), (99.5, 59)]
    assert not caplog.records
    assert choose_points(frame(), [(100, 3), (7, 8)], boxes((20, 30))) == [(7, 8)]
    assert choose_points(frame(), [(3, 60)], boxes((20, 30))) == [(20, 30)]
    first, second = (record.getMessage() for record in caplog.records)
    assert "--query 100,3" in first and "in/bus.jpg" in first and "100 x 60" in first and "\n" not in first
    assert "--query 3,60" in second


# ---- where they lie in the input
@settings(max_examples=40, deadline=None)
@given(
    original=st.tuples(st.integers(1, 900), st.integers(1, 900)), auto=st.booleans(),
    share=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
)  # fmt: skip
def test_positions_are_mapped_as_boxes_are_mapped_back(original, auto, share):
    fitted = letterbox(np.zeros((*original, 3), np.uint8), (96, 64), auto=auto, stride=32)[0].shape[:2]
    x, y = share[1] * original[1], share[0] * original[0]
    ((there_x, there_y),) = Geometry(original, fitted).to_input([(x, y)])
    back = scale_boxes(fitted, np.array([[there_x, there_y, there_x, there_y]]), original)
    np.testing.assert_allclose(back, [[x, y, x, y]], atol=1e-6)
    assert -1e-9 <= there_x < fitted[1] and -1e-9 <= there_y < fitted[0]  # rounded


# ---- files
def test_an_image_for_each_layer_and_a_page(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(routing_report, "draw_routes", lambda file, image, routes, queries: asked.update(
        {file.name: (image.shape, queries)}
    ))  # fmt: skip
    one, four = np.zeros((1, 1), int), np.zeros((4, 1), int)
    maps = [
        RoutingMap("stage2", 1, 1, 64, 64, one, np.ones((1, 1))),
        RoutingMap("stage5.m.0.attn", 2, 2, 32, 32, four, np.ones((4, 1))),
    ]
    page = write_routes(tmp_path / "bus", frame(), maps, [(99, 59), (1, 1), (0, 2)])  # 64 x 38 within 64 x 64
    assert page == tmp_path / "bus/routes.html"
    assert asked == {
        "stage2_routes.png": ((64, 64, 3), [0]), "stage5.m.0.attn_routes.png": ((64, 64, 3), [3, 0]),
    }  # fmt: skip
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"))[1])
    assert data["name"] == "bus.jpg" and [layer["name"] for layer in data["layers"]] == ["stage2", "stage5.m.0.attn"]
    assert data["points"][0] == pytest.approx([63.4, 50.6], abs=0.06)


def test_addresses_are_named_without_what_follows_the_name(tmp_path):
    routes = RoutingMap("stage2", 1, 1, 64, 64, np.zeros((1, 1), int), np.ones((1, 1)))
    seen = frame(path="https://host/images/bus.jpg?key=secret")
    text = write_routes(tmp_path, seen, [routes], []).read_text(encoding="utf-8")
    assert "<title>bus</title>" in text and "secret" not in text
