"""Fitting images: letterbox, and scaling to a longest side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.images.letterbox import GREY, fit_longest, fitted_sizes, letterbox


def black(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


@pytest.mark.parametrize(
    "kwargs, shape, ratio, pad",
    [
        ({}, (64, 64), (0.64, 0.64), (0, 13)),
        ({"auto": False}, (64, 64), (0.64, 0.64), (0, 13)),
        ({"auto": False, "scaleFill": True}, (64, 64), (0.64, 64 / 60), (0, 0)),
        ({"stride": 16}, (48, 64), (0.64, 0.64), (0, 5)),
        ({"new_shape": 128, "scaleup": False}, (64, 128), (1, 1), (14, 2)),
    ],
)
def test_letterbox_worked_examples(kwargs: dict, shape: tuple, ratio: tuple, pad: tuple) -> None:
    image, got_ratio, got_pad = letterbox(black(60, 100), **{"new_shape": 64, **kwargs})
    assert image.shape == (*shape, 3) and image.dtype == np.uint8
    assert got_ratio == pytest.approx(ratio) and got_pad == pytest.approx(pad)


def test_letterbox_pads_with_grey_the_odd_pixel_last() -> None:
    image = letterbox(black(5, 8), 8, auto=False)[0]
    assert image[:, 0, 0].tolist() == [GREY, *[0] * 5, GREY, GREY]
    for shape in ((1, 1), (1, 20000), (20000, 1), (3, 900), (64, 96)):
        image = black(*shape)
        fitted = letterbox(image, (64, 96), auto=False)[0]
        assert fitted.shape == (64, 96, 3) and (fitted is image) == (shape == (64, 96))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(20, 300), st.integers(20, 300), st.booleans(), st.booleans())
def test_letterbox_says_where_things_are(height: int, width: int, auto: bool, scaleup: bool) -> None:
    """A box painted into the image is found where ratio and padding put it."""
    image = np.full((height, width, 3), GREY, np.uint8)
    box = np.array((width // 4, height // 4, width // 4 + width // 2, height // 4 + height // 2))
    image[box[1] : box[3], box[0] : box[2]] = 255
    out, ratio, pad = letterbox(image, (160, 192), auto=auto, scaleup=scaleup)
    assert out.shape[0] <= 160 and out.shape[1] <= 192
    assert not auto or (out.shape[0] - 160) % 32 == (out.shape[1] - 192) % 32 == 0
    rows, cols = np.nonzero(out[..., 0] > 184)
    found = np.array((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
    np.testing.assert_allclose(found, box * (ratio * 2) + pad * 2, atol=1.6)
    np.testing.assert_allclose((found - pad * 2) / (ratio * 2), box, atol=1.6 / min(ratio))


@pytest.mark.parametrize("wide, high, size", [(100, 50, 40), (30, 60, 40), (40, 40, 40), (3000, 2, 320)])
@pytest.mark.parametrize("smooth", [True, False])
def test_longer_side_fits(wide: int, high: int, size: int, smooth: bool) -> None:
    height, width = fit_longest(black(high, wide), size, smooth).shape[:2]
    assert max(height, width) == size and min(height, width) >= 1
    assert [width, height] == fitted_sizes(np.array((wide, high)), size).tolist()
    assert fitted_sizes(np.zeros((0, 2), np.int64), size).shape == (0, 2)


@given(
    st.lists(st.tuples(st.integers(1, 20_000), st.integers(1, 20_000)), min_size=1, max_size=50), st.integers(1, 4096)
)
def test_fitted_sizes_are_v61s(sizes: list[tuple[int, int]], size: int) -> None:
    gains = [size / max(pair) for pair in sizes]
    expected = [[max(int(side * gain), 1) for side in pair] for pair, gain in zip(sizes, gains, strict=True)]
    assert fitted_sizes(np.array(sizes), size).tolist() == expected
