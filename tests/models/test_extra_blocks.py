"""Rare blocks against plain arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.extra_blocks import CrossConv, MixConv2d, Sum, _equal_channels, _equal_weights


@pytest.mark.parametrize("shortcut, s, side", [(False, 1, 6), (True, 1, 6), (False, 2, 3)])
def test_crossconv(shortcut, s, side):
    block = CrossConv(4, 4, 3, s, shortcut=shortcut).eval()
    x = torch.randn(1, 4, 6, 6)
    y = block(x)
    assert y.shape == (1, 4, side, side)
    assert block.cv1.conv.kernel_size == (1, 3) and block.cv2.conv.kernel_size == (3, 1)
    added = y - block.cv2(block.cv1(x))
    torch.testing.assert_close(added, x if shortcut else torch.zeros_like(y), atol=1e-6, rtol=1e-6)


def test_sum_of_one_map_is_that_map():
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(Sum(1)([x]), x)


def test_sum_with_and_without_weights_leaves_its_inputs_alone():
    maps = [torch.full((1, 1, 1, 1), value) for value in (1.0, 2.0, 3.0)]
    assert Sum(3)(maps).item() == 6
    weighted = Sum(3, weight=True)
    expected = 1 + 2 * 2 * torch.sigmoid(torch.tensor(-0.5)) + 3 * 2 * torch.sigmoid(torch.tensor(-1.0))
    torch.testing.assert_close(weighted(maps).squeeze(), expected)
    assert [one.item() for one in maps] == [1, 2, 3]


@pytest.mark.parametrize("equal_ch", [True, False])
def test_mixconv_has_the_channels_asked_for(equal_ch):
    assert MixConv2d(4, 10, (1, 3, 5), equal_ch=equal_ch).eval()(torch.randn(1, 4, 8, 8)).shape == (1, 10, 8, 8)


@given(total=st.integers(3, 300), kernels=st.integers(1, 3))
def test_equal_channels_are_equal_and_complete(total, kernels):
    widths = _equal_channels(total, kernels)
    assert sum(widths) == total and max(widths) - min(widths) <= 1
    places = torch.linspace(0, kernels - 1e-6, total, dtype=torch.float64).floor()
    assert widths == [int((places == group).sum()) for group in range(kernels)]


@given(total=st.integers(16, 300))
def test_equal_weights_are_complete_and_nearly_equal(total):
    widths = _equal_weights(total, (1, 3))
    assert sum(widths) == total
    assert abs(widths[0] - 9 * widths[1]) <= 9
