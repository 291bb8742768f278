"""Merging of what several views of an image show, against sahi 0.12.8, ensemble-boxes and perfect detectors."""

import numpy as np
import pytest

from utils.boxes.merging import MERGES, fuse_weighted, join_pieces, merge_greedily, merge_views, overlap
from utils.data.tiles import Tiling

BOXES = np.array(
    [
        [50, 15, 81, 35, 0.8, 0], [6, 17, 34, 45, 0.59, 1], [24, 48, 62, 67, 0.52, 1], [27, 5, 39, 32, 0.21, 1],
        [20, 36, 57, 74, 0.54, 0], [48, 43, 83, 71, 0.09, 1], [59, 11, 77, 29, 0.45, 0], [52, 3, 58, 14, 0.53, 1],
        [33, 16, 49, 33, 0.89, 0], [12, 39, 37, 61, 0.19, 1], [18, 33, 47, 69, 0.07, 0], [15, 9, 50, 41, 0.51, 1],
    ]
)  # fmt: skip
# sahi.postprocess.combine.GreedyNMMPostprocess(0.5, "IOS", class_agnostic)
GREEDY = [
    [33, 16, 49, 33, 0.89, 0], [50, 11, 81, 35, 0.8, 0], [6, 9, 50, 45, 0.59, 1], [18, 33, 57, 74, 0.54, 0],
    [52, 3, 58, 14, 0.53, 1], [24, 48, 62, 67, 0.52, 1], [27, 5, 39, 32, 0.21, 1], [12, 39, 37, 61, 0.19, 1],
    [48, 43, 83, 71, 0.09, 1],
]  # fmt: skip
GREEDY_AGNOSTIC = [
    [15, 9, 50, 41, 0.89, 0], [50, 11, 81, 35, 0.8, 0], [6, 17, 34, 45, 0.59, 1], [12, 33, 62, 74, 0.54, 0],
    [52, 3, 58, 14, 0.53, 1], [27, 5, 39, 32, 0.21, 1], [48, 43, 83, 71, 0.09, 1],
]  # fmt: skip


@pytest.mark.parametrize("merge", MERGES)
def test_nothing_and_one(merge):
    views = np.array([[0, 0, 100, 100], [0, 0, 60, 60]])
    assert merge_views(np.zeros((0, 6)), np.zeros(0, int), views, merge, 0.5).shape == (0, 6)
    assert merge_views(BOXES[:1], np.array([1]), views, merge, 0.5).tolist() == BOXES[:1].tolist()


def test_greedy_merging_is_sahis_and_weighted_fusion_that_of_ensemble_boxes():
    np.testing.assert_allclose(merge_greedily(BOXES, 0.5), GREEDY)
    np.testing.assert_allclose(merge_greedily(BOXES, 0.5, agnostic=True), GREEDY_AGNOSTIC)
    fused = fuse_weighted(BOXES, 0.45)  # weighted_boxes_fusion(..., conf_type="max"), which averages one pair
    np.testing.assert_allclose(fused[3], [19.77, 35.656, 55.852, 73.426, 0.54, 0], atol=1e-3)
    rest = BOXES[np.argsort(-BOXES[:, 4])]
    np.testing.assert_allclose(np.delete(fused, 3, 0), rest[(rest[:, 4] != 0.54) & (rest[:, 4] != 0.07)])


def test_a_piece_goes_to_its_whole_and_a_small_object_in_a_large_one_stays():
    views = np.array([[0, 0, 200, 100], [0, 0, 100, 100], [80, 0, 180, 100]])
    rows = np.array(
        [
            [85, 10, 175, 90, 0.4, 0],  # whole in the second tile
            [85, 10, 100, 90, 0.9, 0],  # its piece in the first: narrow, and surer
            [90, 40, 100, 50, 0.8, 0],  # another object there, at the same edge
            [85, 10, 100, 90, 0.7, 1],  # one of another class
        ]
    )
    joined = join_pieces(rows, np.array([2, 1, 1, 1]), views)
    assert joined.tolist() == [[85, 10, 175, 90, 0.9, 0], rows[2].tolist(), rows[3].tolist()]
    both = np.array([[60, 10, 100, 90, 0.4, 0], [80, 12, 120, 90, 0.5, 0]])  # neither tile shows all of it
    assert join_pieces(both, np.array([1, 2]), views).tolist() == [[60, 10, 120, 90, 0.5, 0]]


def scene(rng, size, count, sides):
    """Boxes (n, 6) of up to three classes in an image, none hidden by more than a tenth."""
    boxes = np.zeros((0, 6))
    for _ in range(2 * count):
        side = np.exp(rng.uniform(*np.log(sides), 2))
        corner = rng.random(2) * (size - side)
        box = np.array([*corner, *(corner + side), 1, rng.integers(3)])
        if not (overlap(box, boxes, smaller=True) > 0.1).any():
            boxes = np.vstack((boxes, box))
    return boxes


def look(objects, view, least, rng):
    """What a perfect detector reports of a view: the visible part of all objects of which three tenths are visible."""
    found, bounds = objects.copy(), np.split(np.asarray(view, float), 2)
    found[:, :4] = np.clip(found[:, :4], *(np.tile(bound, 2) for bound in bounds))
    sides, all_sides = (boxes[:, 2:4] - boxes[:, :2] for boxes in (found, objects))
    found[:, 4] = rng.uniform(0.3, 1, len(found))
    return found[(sides.prod(1) >= 0.3 * all_sides.prod(1)) & (sides.min(1) >= least)]


@pytest.mark.parametrize("seed", range(30))
def test_perfect_detectors_leave_no_double_at_seams_and_lose_nothing(seed):
    rng = np.random.default_rng(seed)
    size, tiling = rng.integers(400, 1200, 2), Tiling(int(rng.integers(150, 390)), float(rng.choice([0.1, 0.2, 0.5])))
    objects = scene(rng, size, 40, (6, 0.9 * tiling.size))
    grid = tiling.grid(*size)
    views = np.concatenate(([[0, 0, *size]], grid))
    found = [look(objects, view, 4 * max(view[2:] - view[:2]) / tiling.size, rng) for view in views]
    origins, rows = np.repeat(np.arange(len(views)), list(map(len, found))), np.concatenate(found)
    assert len(rows) > 1.5 * len(objects)
    for merge in MERGES:
        merged = merge_views(rows, origins, views, merge, 0.45)
        same = overlap(objects[:, None], merged) * (objects[:, None, 5] == merged[:, 5])
        assert len(merged) == len(objects) and (same.max(1) > 0.6).all(), merge
