"""Tiles of images, against sahi 0.12.8's slices, and windows to train on."""

import numpy as np
import pytest

from utils.data.augmentations import Sample
from utils.data.tiles import VISIBLE, Tiling, choose_tiling, draw_window


def test_no_tiles_and_flags_that_need_them():
    assert Tiling(640).grid(640, 640).shape == (0, 4) and choose_tiling(0, None, None) is None
    assert choose_tiling(640, None, "wbf", 8) == Tiling(640, 0.2, "wbf", 8)
    for flags in ((0, 0.3, None), (0, None, "nms"), (0, 0.0, None)):
        with pytest.raises(ValueError, match="give --tile SIZE") as caught:
            choose_tiling(*flags)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "width, height, size, share, count, some",
    [
        (1000, 700, 512, 0.2, 6, {1: [410, 0, 922, 512], 2: [488, 0, 1000, 512], 5: [488, 188, 1000, 700]}),
        (1024, 1024, 512, 0.0, 4, {1: [512, 0, 1024, 512], 3: [512, 512, 1024, 1024]}),
        (1300, 400, 640, 0.2, 3, {0: [0, 0, 640, 400], 1: [512, 0, 1152, 400], 2: [660, 0, 1300, 400]}),
        (4000, 3000, 640, 0.25, 48, {1: [480, 0, 1120, 640], 47: [3360, 2360, 4000, 3000]}),
        (1000, 1000, 300, 0.33, 25, {1: [201, 0, 501, 300], 24: [700, 700, 1000, 1000]}),
    ],
)
def test_tiles_lie_where_sahi_puts_its_slices(width, height, size, share, count, some):
    grid = Tiling(size, share).grid(width, height)
    assert len(grid) == count and {i: grid[i].tolist() for i in some} == some


def test_windows_show_labels_by_their_visible_part():
    rng = np.random.default_rng(0)
    image = np.arange(300 * 400, dtype=np.uint32).view(np.uint8).reshape(300, 400, 4)[..., :3]
    polygon = np.array([[100, 100], [140, 100], [140, 140], [100, 140]], np.float32)
    labels = np.array([[0, 100, 100, 140, 140], [1, 250, 20, 258, 28], [2, 0, 0, 400, 300]], np.float32)
    sample, seen, kept = Sample(image, labels, (polygon, np.zeros((0, 2), np.float32), polygon[:0])), [], []
    assert draw_window(Sample(image[:64, :64], labels[:0]), 64, rng).image.shape == (64, 64, 3)
    for _ in range(300):
        window = draw_window(sample, 64, rng)
        if window.image is image:
            seen.append("whole")
            continue
        assert not np.shares_memory(window.image, image), "or all of a photograph stays in memory with its window"
        number = int(np.ascontiguousarray(np.pad(window.image[0, 0], (0, 1))).view(np.uint32)[0])
        top, left = divmod(number, 400)
        assert np.array_equal(window.image, image[top : top + 64, left : left + 64])
        cut = (labels[:, 1:] - (left, top) * 2).clip(0, 64)
        share = (cut[:, 2:] - cut[:, :2]).prod(1) / (labels[:, 3:] - labels[:, 1:3]).prod(1)
        expected = share >= VISIBLE
        np.testing.assert_allclose(window.labels, np.hstack((labels[:, :1], cut))[expected], atol=1e-4)
        kept += window.labels[:, 0].tolist()
        seen.append("object" if expected.any() else "other")
    assert set(kept) == {0, 1} and 30 < seen.count("whole") < 90 and seen.count("object") > 80
