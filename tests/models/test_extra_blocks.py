"""Rare blocks against plain arithmetic."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.extra_blocks import CrossConv, MixConv2d, Sum


@pytest.mark.parametrize("shortcut, s, side", [(False, 1, 6), (True, 1, 6), (False, 2, 3)])
def test_crossconv(shortcut, s, side):
    block = CrossConv(4, 4, 3, s, shortcut=shortcut).eval()
    x = torch.randn(1, 4, 6, 6)
    y = block(x)
    assert y.shape == (1, 4, side, side)
    assert block.cv1.conv.kernel_size == (1, 3) and block.cv2.conv.kernel_size == (3, 1)
    added = y - block.cv2(block.cv1(x))
    torch.testing.assert_close(added, x if shortcut else torch.zeros_like(y), atol=1e-6, rtol=1e-6)


def test_sum_with_and_without_weights_leaves_its_inputs_alone():
    maps = [torch.full((1, 1, 1, 1), value) for value in (1.0, 2.0, 3.0)]
    assert Sum(3)(maps).item() == 6
    weighted = Sum(3, weight=True)
    expected = 1 + 2 * 2 * torch.sigmoid(torch.tensor(-0.5)) + 3 * 2 * torch.sigmoid(torch.tensor(-1.0))
    torch.testing.assert_close(weighted(maps).squeeze(), expected)
    assert [one.item() for one in maps] == [1, 2, 3]


def mixed(total, kernels, equal):
    with torch.device("meta"):
        return [conv.out_channels for conv in MixConv2d(1, total, kernels, equal_ch=equal).m]


@given(total=st.integers(3, 300), kernels=st.integers(1, 3))
def test_equal_channels_are_equal_and_complete(total, kernels):
    widths = mixed(total, [3] * kernels, True)
    assert sum(widths) == total and max(widths) - min(widths) <= 1
    places = torch.linspace(0, kernels - 1e-6, total, dtype=torch.float64).floor()
    assert widths == [int((places == group).sum()) for group in range(kernels)]


@given(total=st.integers(16, 300))
def test_equal_weights_are_complete_and_nearly_equal(total):
    widths = mixed(total, (1, 3), False)
    assert sum(widths) == total
    assert abs(widths[0] - 9 * widths[1]) <= 9
