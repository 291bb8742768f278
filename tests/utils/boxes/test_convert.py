"""Box and polygon geometry: worked values, round trips, kinds and types of arrays, arguments left alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.boxes import convert as B

CORNERS = np.array([[10.0, 20.0, 30.0, 60.0], [-4.0, 0.0, 4.0, 2.0]])
CENTRED = np.array([[20.0, 40.0, 20.0, 40.0], [0.0, 1.0, 8.0, 2.0]])
KINDS = pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])


@KINDS
@pytest.mark.parametrize(
    "convert", [B.xyxy2xywh, B.xywh2xyxy, B.xywhn2xyxy, B.xyxy2xywhn, lambda x: B.clip_boxes(x, (5, 5))]
)
def test_no_boxes(kind, convert):
    assert convert(kind(np.zeros((0, 4), np.float32))).shape == (0, 4)


@KINDS
def test_corners_and_centres(kind):
    np.testing.assert_array_equal(B.xyxy2xywh(kind(CORNERS)), CENTRED)
    np.testing.assert_array_equal(B.xywh2xyxy(kind(CENTRED)), CORNERS)


@KINDS
def test_the_kind_and_type_stay_and_the_argument_is_not_written_to(kind):
    given_boxes = kind(CORNERS.astype(np.float32))
    before = given_boxes + 0
    for result in (
        B.xyxy2xywh(given_boxes),
        B.clip_boxes(given_boxes, (5, 5)),
        B.scale_boxes((8, 8), given_boxes, (4, 4)),
        B.xyxy2xywhn(given_boxes, 7, 9, clip=True),
        B.xyn2xy(given_boxes[:, :2], 3, 4, 1, 1),
    ):
        assert type(result) is type(given_boxes) and result.dtype == given_boxes.dtype
    np.testing.assert_array_equal(given_boxes, before)


@KINDS
def test_whole_numbers_do_not_cut_fractions(kind):
    np.testing.assert_allclose(B.xyxy2xywh(kind(np.array([[0, 0, 3, 5]]))), [[1.5, 2.5, 3, 5]])


def test_further_columns_and_leading_dimensions_are_carried():
    rows = np.concatenate((CORNERS, [[0.9, 7], [0.8, 3]]), axis=1)[None]
    result = B.xyxy2xywh(rows)
    np.testing.assert_array_equal(result[0, :, :4], CENTRED)
    np.testing.assert_array_equal(result[..., 4:], rows[..., 4:])


@given(
    st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=1, max_size=5),
    st.integers(1, 2000),
    st.integers(1, 2000),
)
def test_fractions_there_and_back(values, width, height):
    fractions = np.array(values, dtype=np.float64)
    pixels = B.xywhn2xyxy(fractions, width, height)
    np.testing.assert_allclose(B.xyxy2xywhn(pixels, width, height), fractions, atol=1e-9)


def test_padding_clipping_and_scaling_back():
    np.testing.assert_allclose(B.xywhn2xyxy(np.array([[0.5, 0.5, 0.5, 1.0]]), 100, 40, 7, 3), [[32, 3, 82, 43]])
    np.testing.assert_allclose(B.xyn2xy(np.array([[0.5, 0.25]]), 100, 40, 7, 3), [[57, 13]])
    outside = np.array([[-5.0, -6.0, 70.0, 80.0], [10.0, 10.0, 20.0, 20.0]])
    np.testing.assert_array_equal(B.clip_boxes(outside, (40, 50)), [[0, 0, 50, 40], [10, 10, 20, 20]])
    np.testing.assert_allclose(B.xyxy2xywhn(outside[:1], 50, 40, clip=True, eps=10), [[0.4, 0.375, 0.8, 0.75]])
    box = np.array([[0.0, 0.0, 64.0, 48.0]])
    np.testing.assert_allclose(B.scale_boxes((64, 64), box, (480, 640), ((0.1, 0.1), (0, 8))), [[0, 0, 640, 400]])
    np.testing.assert_allclose(B.scale_boxes((64, 64), box, (480, 640)), [[0, 0, 640, 400]])


def test_polygons():
    assert B.segments2boxes([]).shape == (0, 4)
    triangle = np.array([[0.0, 0.0], [4.0, 1.0], [2.0, 6.0]])
    np.testing.assert_array_equal(B.segments2boxes([triangle, triangle + 1]), [[2, 3, 4, 6], [3, 4, 4, 6]])
    points = np.array([[-3.0, 5.0], [2.0, 3.0], [8.0, 4.0], [9.0, 99.0]])
    np.testing.assert_array_equal(B.segment2box(points, 10, 10), [2, 3, 8, 4])
    np.testing.assert_array_equal(B.segment2box(points + 1000, 10, 10), np.zeros(4))
    np.testing.assert_array_equal(B.segment2box(np.zeros((0, 2)), 10, 10), np.zeros(4))
    line = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 30.0]])
    (result,) = B.resample_segments([line], n=5)
    np.testing.assert_allclose(result, [[0, 0], [5, 0], [10, 0], [10, 15], [10, 30]])
    assert B.resample_segments([]) == []
