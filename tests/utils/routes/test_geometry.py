"""Regions in pixels, against the same said pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.routes.geometry import RoutingMap


def routes(rows, cols, cell_height, cell_width, topk=1, seed=0):
    """Any routes over such a grid."""
    rng = np.random.default_rng(seed)
    index = np.stack([rng.permutation(rows * cols)[:topk] for _ in range(rows * cols)])
    return RoutingMap("layer", rows, cols, cell_height, cell_width, index, np.full(index.shape, 1 / topk))


def test_one_region_and_regions_of_broken_pixels():
    whole = routes(1, 1, 30, 50)
    assert whole.boxes(30, 50).tolist() == [[0, 0, 50, 30]] and not whole.is_padding(30, 50).any()
    assert whole.region_at(49.9, 29.9) == 0 and whole.topk == 1
    cell = 2 * 320 / 12  # a map of 12 tokens cut into 7 regions of 2, under an image of 320 pixels
    grid = routes(7, 7, cell, cell)
    assert 6 * cell == pytest.approx(320)
    hidden = grid.is_padding(320, 320).reshape(7, 7)
    assert hidden[6].all() and hidden[:, 6].all() and hidden.sum() == 13
    x, y = grid.edges(320, 320)
    assert x.tolist() == y.tolist() == [0, 53.333, 106.667, 160, 213.333, 266.667, 320, 320]


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5), cols=st.integers(1, 5), cell_height=st.integers(1, 6), cell_width=st.integers(1, 6),
    data=st.data(),
)  # fmt: skip
def test_every_pixel_is_in_one_region(rows, cols, cell_height, cell_width, data):
    height = data.draw(st.integers(1, rows * cell_height))
    width = data.draw(st.integers(1, cols * cell_width))
    grid = routes(rows, cols, cell_height, cell_width)
    painted = np.full((height, width), -1)
    for number, (left, top, right, bottom) in enumerate(grid.boxes(height, width).astype(int)):
        assert (painted[top:bottom, left:right] == -1).all()
        painted[top:bottom, left:right] = number
    asked = [[grid.region_at(x, y) for x in range(width)] for y in range(height)]
    assert painted.tolist() == asked
    assert grid.is_padding(height, width).tolist() == [number not in painted for number in range(rows * cols)]
    right, bottom = np.nextafter((width, height), 0)
    assert grid.region_at(right, bottom) == asked[-1][-1]
