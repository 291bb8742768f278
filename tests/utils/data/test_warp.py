"""Labels through maps of the plane, held against dense brute force."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.base.config import Hyp
from utils.data.augmentations import (
    NO_POLYGON,
    Sample,
    Warp,
    box_candidates,
    clip_polygon,
    random_warp,
    shift,
    warp_labels,
    warp_points,
)

STILL = replace(Hyp(), degrees=0.0, translate=0.0, scale=0.0, shear=0.0, perspective=0.0)
WILD = replace(STILL, degrees=40.0, translate=0.3, scale=0.5, shear=12.0, perspective=0.0008)
WHOLE = Warp(np.eye(3), 1.0, (100, 80))


def convex_polygon(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """(k, 2) corners on an ellipse, in order, inside a width x height image."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    radii = rng.uniform(8, 30, 2)
    centre = rng.uniform(radii + 1, (width - radii[0] - 1, height - radii[1] - 1))
    return (centre + radii * np.stack((np.cos(angles), np.sin(angles)), 1)).astype(np.float32)


def dense_fill(polygon: np.ndarray, steps: int = 60) -> np.ndarray:
    """Points all over a convex polygon: the fan of its triangles, finely divided."""
    u, v = np.meshgrid(np.linspace(0, 1, steps), np.linspace(0, 1, steps))
    inside = u + v <= 1 + 1e-9
    u, v = u[inside, None], v[inside, None]
    fan = [polygon[0] + u * (b - polygon[0]) + v * (c - polygon[0]) for b, c in pairwise(polygon[1:])]
    return np.concatenate(fan)


def bounds(points: np.ndarray) -> np.ndarray:
    return np.concatenate((points.min(0), points.max(0)))


def test_a_sample_has_a_polygon_for_each_label():
    image = np.zeros((4, 5, 3), np.uint8)
    assert Sample(image, np.zeros((0, 5), np.float32)).segments == ()
    assert [points.shape for points in Sample(image, np.zeros((3, 5), np.float32)).segments] == [(0, 2)] * 3
    with pytest.raises(ValueError, match="3 labels but 1 polygons"):
        Sample(image, np.zeros((3, 5), np.float32), (np.zeros((4, 2), np.float32),))
    labels, segments = warp_labels(np.zeros((0, 5), np.float32), (), WHOLE)
    assert labels.shape == (0, 5) and segments == (), "no labels stay no labels"


def test_still_settings_give_the_identity_and_shifts_move_points():
    still = random_warp((100, 80), (100, 80), STILL, np.random.default_rng(0))
    np.testing.assert_allclose(still.matrix, np.eye(3), atol=1e-12)
    assert still.scale == 1
    warp = random_warp((100, 80), (60, 50), WILD, np.random.default_rng(3))
    point, expected = np.array((31.0, 17.0)), warp_points(np.array((51.0, 22.0)), warp.matrix)
    np.testing.assert_allclose(warp_points(point, warp.matrix @ shift(20, 5)), expected)


@pytest.mark.parametrize("key", ["degrees", "translate", "scale", "shear", "perspective"])
def test_every_limit_bounds_its_own_change(key: str):
    limit = {"degrees": 20.0, "translate": 0.2, "scale": 0.4, "shear": 8.0, "perspective": 0.001}[key]
    rng = np.random.default_rng(1)
    largest = 0.0
    for _ in range(200):
        warp = random_warp((200, 100), (200, 100), replace(STILL, **{key: limit}), rng)
        centre = warp_points(np.array((100.0, 50.0)), warp.matrix)
        (a, b), (c, _) = warp.matrix[:2, :2]
        seen = {
            "degrees": abs(np.degrees(np.arctan2(b, a))),
            "translate": max(abs(centre - (100, 50)) / (200, 100)),
            "scale": abs(warp.scale - 1),
            "shear": np.degrees(np.arctan(max(abs(b), abs(c)))),
            "perspective": abs(warp.matrix[2, :2]).max(),
        }[key]
        if key != "translate":
            np.testing.assert_allclose(centre, (100, 50), atol=1e-9)
        largest = max(largest, seen)
    assert 0.9 * limit < largest <= limit * (1 + 1e-9)


def test_a_point_behind_the_viewer_is_nowhere():
    matrix = np.array(((1, 0, 0), (0, 1, 0), (-0.1, 0, 1.0)))
    assert np.isnan(warp_points(np.array((20.0, 3.0)), matrix)).all()
    labels = np.array(((0, 5, 5, 20, 20), (1, 1, 1, 5, 5)), np.float32)  # the first one reaches behind
    kept, _ = warp_labels(labels, (np.zeros((0, 2)),) * 2, Warp(matrix, 1.0, (100, 100)))
    assert kept[:, 0].tolist() == [1]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_polygons_give_the_box_of_their_visible_points(seed: int):
    rng = np.random.default_rng(seed)
    polygons = tuple(convex_polygon(rng, 200, 160) for _ in range(4))
    labels = np.stack([np.concatenate(((i,), bounds(points))) for i, points in enumerate(polygons)]).astype(np.float32)
    warp = random_warp((200, 160), (180, 150), WILD, rng)
    kept, segments = warp_labels(labels, polygons, warp)
    assert len(kept) == len(segments)
    for row, points in zip(kept, segments, strict=True):
        dense = warp_points(dense_fill(polygons[int(row[0])]), warp.matrix)
        dense = dense[((dense >= 0) & (dense <= warp.size)).all(1)]
        np.testing.assert_allclose(row[1:], bounds(dense), atol=1.0)
        np.testing.assert_allclose(row[1:], bounds(points), atol=1e-3)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_boxes_give_the_box_of_their_mapped_points(seed: int):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, (150, 120), (6, 2))
    labels = np.concatenate((np.arange(6)[:, None], low, low + rng.uniform(3, 40, (6, 2))), 1).astype(np.float32)
    warp = random_warp((200, 160), (180, 150), WILD, rng)
    kept, segments = warp_labels(labels, (np.zeros((0, 2), np.float32),) * 6, warp)
    expected = {}
    for kind, x1, y1, x2, y2 in labels:
        corners = np.array(((x1, y1), (x2, y1), (x2, y2), (x1, y2)))
        dense = warp_points(dense_fill(corners), warp.matrix)
        box = np.clip(bounds(dense), 0, (180, 150, 180, 150))
        sides, old = box[2:] - box[:2], np.array((x2 - x1, y2 - y1)) * warp.scale
        if sides.min() > 2 and sides.prod() > 0.1 * old.prod() and sides.max() < 100 * sides.min():
            expected[int(kind)] = box
    assert kept[:, 0].astype(int).tolist() == list(expected)
    assert len(segments) == len(kept)
    np.testing.assert_allclose(kept[:, 1:], np.array(list(expected.values())).reshape(-1, 4), atol=1e-2)


def test_a_label_and_its_polygon_leave_together():
    """v6.1 paired the polygons that were left with labels by position: the wrong box, and a label too few."""
    far = np.array(((500, 500), (540, 500), (540, 540)), np.float32)
    near = np.array(((10, 10), (40, 12), (30, 40)), np.float32)
    around = np.array(((-50, -50), (150, -50), (150, 130), (-50, 130)), np.float32)
    rows = ((0, 500, 500, 540, 540), (1, 50, 50, 70, 60), (2, 10, 10, 40, 40), (3, -50, -50, 150, 130))
    kept, segments = warp_labels(np.array(rows, np.float32), (far, NO_POLYGON, near, around), WHOLE)
    np.testing.assert_array_equal(kept, [*rows[1:3], (3, 0, 0, 100, 80)])
    assert [len(points) for points in segments] == [0, 3, 4]
    for left, count in ((0.15, 1), (0.05, 0)):  # what is left of a box is judged at the new scale
        box = np.array([(0, 40 * left - 40, 10, 40 * left, 30)], np.float32)
        assert len(warp_labels(box, (NO_POLYGON,), Warp(np.diag((0.5, 0.5, 1.0)), 0.5, (100, 80)))[0]) == count


@pytest.mark.parametrize(
    "polygon, expected",
    [
        ([], []),
        ([(1, 1), (5, 1), (5, 5)], [(1, 1), (5, 1), (5, 5)]),  # inside: untouched
        ([(-9, -9), (-5, -9), (-5, -5)], []),
        ([(-5, 2), (5, 2), (5, 8), (-5, 8)], [(5, 2), (5, 8), (0, 8), (0, 2)]),
        ([(5, -5), (15, 5), (5, 15), (-5, 5)], [(0, 0), (10, 0), (10, 10), (0, 10)]),  # a diamond around the square
    ],
)
def test_clip_polygon(polygon: list, expected: list):
    clipped = clip_polygon(np.array(polygon, float).reshape(-1, 2), (10, 10))
    assert {tuple(point) for point in clipped} == {tuple(point) for point in expected}


def test_box_candidates_of_each_kind():
    assert box_candidates(np.zeros((4, 0)), np.zeros((4, 0))).shape == (0,)
    before = np.array([(0, 0, 20, 20)] * 5, float)
    after = np.array([(0, 0, 20, 20), (0, 0, 2, 20), (0, 0, 3, 20), (0, 0, 6, 6), (0, 0, 400, 3.9)], float)
    #                 whole            thin           enough         9 % left      longer than 100 : 1
    assert box_candidates(before.T, after.T).tolist() == [True, False, True, False, False]
    assert box_candidates(before.T, after.T, area_thr=np.full(5, 0.01)).tolist() == [True, False, True, True, False]
