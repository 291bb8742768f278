"""Images of routes: what is drawn, where, and what is left out."""

import numpy as np
import pytest

from utils.routes import routing_plots
from utils.routes.geometry import RoutingMap
from utils.routes.routing_plots import draw_routes

GREY = np.full((80, 100, 3), 128, np.uint8)


def some_routes(index, rows=2, cols=2, cell=(40, 50)):
    index = np.array(index)
    return RoutingMap("stage7", rows, cols, *cell, index, np.full(index.shape, 1 / index.shape[1], np.float32))


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, in place of files."""
    drawn = []
    monkeypatch.setattr(routing_plots, "save_figure", lambda figure, file, dpi: drawn.append(figure) or file)
    return drawn


def shown_axes(figure):
    return [axis for axis in figure.axes if axis.get_visible() and axis.get_label() != "<colorbar>"]


def texts(axis):
    """What is written where: {number: (x, y)}."""
    return {text.get_text(): text.get_position() for text in axis.texts}


def filled(axis):
    """Corners (left, top, right, bottom) of what is filled, and how strongly."""
    boxes = [patch.get_xy() for patch in axis.patches]
    return [(*xy.min(0), *xy.max(0)) for xy in boxes], [patch.get_alpha() for patch in axis.patches]


def test_one_region_and_nobody_asked(figures):
    draw_routes("a.png", GREY, some_routes([[0]], 1, 1, (80, 100)), [])
    (heat,) = shown_axes(figures[0])
    assert texts(heat) == {"1": (50, 40)} and heat.get_xlabel() == ""


def test_routed_regions_are_numbered_and_shaded_by_rank(figures):
    draw_routes("a.png", GREY, some_routes([[0, 1], [0, 1], [3, 2], [0, 1]]), [2])
    panel, _ = shown_axes(figures[0])
    assert texts(panel) == {"1": (75, 60), "2": (25, 60)}
    boxes, strengths = filled(panel)
    assert boxes == [(50, 40, 100, 80), (0, 40, 50, 80)] and strengths[0] > strengths[1] > 0
    outlines = {(*line.get_xdata(), *line.get_ydata()) for line in panel.lines}
    assert outlines == {(0, 50, 50, 0, 0, 40, 40, 80, 80, 40)}  # the chosen region, and it alone
    assert panel.get_title(loc="left") == "Row 2, column 1 is routed to" and panel.get_xlabel() == ""


def test_the_heading_names_layer_grid_and_topk(figures):
    draw_routes("a.png", GREY, some_routes([[0]] * 6, 2, 3, (40, 100 / 3)), [0])
    assert figures[0].get_suptitle() == "stage7: 2 x 3 regions of 40 x 33.3333 pixels, top-k 1"


def test_heat_is_the_in_degree_with_a_scale(figures):
    routes = some_routes([[0, 1], [0, 1], [0, 2], [0, 3]])
    draw_routes("a.png", GREY, routes, [0, 3])
    *_, heat = shown_axes(figures[0])
    assert np.array_equal(heat.collections[-1].get_array(), [[4, 2], [1, 1]])
    assert {number for number, _ in texts(heat).items()} == {"4", "2", "1"}
    (bar,) = (axis for axis in figures[0].axes if axis.get_label() == "<colorbar>")
    assert bar.get_ylim() == (0, 4) and "routed" in bar.get_ylabel()


def test_regions_are_cut_at_the_edge_and_padding_is_left_out(figures):
    # 3 x 3 regions of 32 x 48 pixels on 80 x 96: the last row is half inside, the last column is padding
    index = [[8, 6, 2]] + [[2, 5, 8]] * 8
    draw_routes("a.png", GREY[:, :96], some_routes(index, 3, 3, (32, 48)), [0, 1])
    first, second, heat = shown_axes(figures[0])
    assert filled(first)[0] == [(0, 64, 48, 80)] and texts(first) == {"2": (24, 72)}
    assert first.get_xlabel() == "ranks 1, 3: padding"
    assert filled(second)[0] == [] and second.get_xlabel() == "ranks 1, 2, 3: padding"
    assert heat.get_xlabel() == "26 of 27 routes end in padding" and texts(heat) == {"1": (24, 72)}
    assert heat.get_xlim() == (0, 96) and heat.get_ylim() == (80, 0)


def test_long_lists_of_padding_are_counted_and_small_regions_not_numbered(figures):
    index = np.arange(400)[::-1][None].repeat(400, 0)
    draw_routes("a.png", GREY[:40, :40], some_routes(index, 20, 20, (4, 4)), [0])
    panel, heat = shown_axes(figures[0])
    assert panel.get_xlabel() == "ranks 1, 2, 3, 4, 5, 6, 7, 8, ...: padding" and len(panel.patches) == 100
    assert texts(panel)["400"] == (2, 2) and texts(heat) == {"400": (38, 38)}  # the last one written
    draw_routes("a.png", GREY[:40, :40], some_routes(index, 20, 20, (1, 1)), [0])
    assert not any(axis.texts for axis in shown_axes(figures[1]))


@pytest.mark.parametrize("shape", [(32, 1280), (1280, 32), (8, 8)])
def test_panels_of_odd_images_have_a_sensible_size(figures, shape):
    image = np.zeros((*shape, 3), np.uint8)
    draw_routes("a.png", image, some_routes([[0]] * 4, cell=(shape[0] / 2, shape[1] / 2)), [0, 1, 2, 3, 0])
    width, height = figures[0].get_size_inches()
    assert width < 20 and 2 < height < 20 and len(shown_axes(figures[0])) == 6
