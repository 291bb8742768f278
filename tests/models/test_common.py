"""The blocks, each against the same thing computed another way."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import models.common as common
from models.common import C3, C3TR, SPP, SPPF, Bottleneck, BottleneckCSP, C3Ghost, Contract, Conv, Expand, Focus


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def keys(module):
    return set(module.state_dict())


def shake_statistics(module):
    """Make batch statistics differ from their start, as training does."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module.eval()


def test_conv_of_no_images_gives_none():
    assert Conv(3, 4).eval()(torch.zeros(0, 3, 8, 8)).shape == (0, 4, 8, 8)


def test_conv_is_convolution_norm_and_silu():
    block = shake_statistics(Conv(3, 8, 3, 2))
    x = torch.randn(2, 3, 9, 7)
    maps = F.conv2d(x, block.conv.weight, stride=2, padding=1)
    bn = block.bn
    maps = (maps - bn.running_mean.view(-1, 1, 1)) / (bn.running_var.view(-1, 1, 1) + bn.eps).sqrt()
    maps = maps * bn.weight.view(-1, 1, 1) + bn.bias.view(-1, 1, 1)
    torch.testing.assert_close(block(x), maps * torch.sigmoid(maps))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fusing_keeps_the_numbers_and_drops_the_norm(dtype):
    block = shake_statistics(Conv(4, 6, 3, g=2)).to(dtype)
    x = torch.randn(2, 4, 5, 5, dtype=dtype)
    before = block(x)
    block.fuse()
    block.fuse()
    assert keys(block) == {"conv.weight", "conv.bias"}
    assert block.conv.weight.dtype == dtype
    torch.testing.assert_close(block(x), before)


def test_focus_puts_corners_in_the_order_of_checkpoints():
    block = Focus(1, 4)
    block.conv = nn.Identity()
    x = torch.arange(16.0).view(1, 1, 4, 4)
    first_square = block(x)[0, :, 0, 0]
    assert first_square.tolist() == [x[0, 0, 0, 0], x[0, 0, 1, 0], x[0, 0, 0, 1], x[0, 0, 1, 1]]


@pytest.mark.parametrize("c1, shortcut, added", [(8, True, True), (8, False, False), (4, True, False)])
def test_bottleneck_adds_its_input_only_where_it_can(c1, shortcut, added):
    block = shake_statistics(Bottleneck(c1, 8, shortcut))
    x = torch.randn(1, c1, 4, 4)
    change = block.cv2(block.cv1(x))
    torch.testing.assert_close(block(x), change + x if added else change)


@pytest.mark.parametrize("kind", [BottleneckCSP, C3, C3TR, C3Ghost])
def test_cross_stage_blocks_keep_the_size_and_take_a_depth(kind):
    block = kind(8, 16, 2)
    assert block.eval()(torch.randn(1, 8, 6, 5)).shape == (1, 16, 6, 5)
    assert len(block.m.tr if kind is C3TR else block.m) == 2


def test_spp_and_sppf_compute_the_same():
    chained, parallel = shake_statistics(SPPF(8, 4, 5)), SPP(8, 4, (5, 9, 13)).eval()
    parallel.load_state_dict(chained.state_dict())
    x = torch.randn(1, 8, 20, 15)
    torch.testing.assert_close(chained(x), parallel(x))


def test_half_of_a_ghost_is_a_convolution_and_half_follows_from_it():
    block = shake_statistics(common.GhostConv(4, 8, 3, 2))
    y = block(torch.randn(1, 4, 8, 8))
    torch.testing.assert_close(y[:, 4:], block.cv2(y[:, :4]))


def test_transformer_sees_all_pixels_and_has_no_order_of_its_own():
    """Position enters through a pixel-wise map only, so shuffled pixels give equally shuffled outputs."""
    block = common.TransformerBlock(8, 8, 4, 2).eval()
    x = torch.randn(2, 8, 3, 5)
    order = torch.randperm(15)
    shuffled = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(block(shuffled).flatten(2), block(x).flatten(2)[..., order], atol=1e-5, rtol=1e-4)
    moved = x.clone()
    moved[0, :, 0, 0] += 1
    assert not torch.allclose(block(moved)[0, :, 2, 4], block(x)[0, :, 2, 4])
    torch.testing.assert_close(block(moved)[1], block(x)[1])


@settings(max_examples=20, deadline=None)
@given(gain=st.integers(1, 4), rows=st.integers(1, 3), cols=st.integers(1, 3), channels=st.integers(1, 3))
def test_expand_undoes_contract(gain, rows, cols, channels):
    x = torch.arange(2.0 * channels * rows * cols * gain * gain).view(2, channels, rows * gain, cols * gain)
    small = Contract(gain)(x)
    assert small.shape == (2, channels * gain * gain, rows, cols)
    assert torch.equal(Expand(gain)(small), x)


def test_contract_counts_places_in_the_square_before_channels():
    x = torch.arange(8.0).view(1, 2, 2, 2)
    assert Contract(2)(x).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_concat_and_classify():
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)]
    assert common.Concat()(maps).shape == (2, 8, 4, 4)
    head = common.Classify(8, 10)
    means = torch.cat([one.mean((2, 3)) for one in maps], 1)
    expected = means @ head.conv.weight.flatten(1).T + head.conv.bias
    torch.testing.assert_close(head(maps), expected)
    assert head(torch.randn(2, 8, 3, 3)).shape == (2, 10)


def test_names_of_v61_that_moved_are_still_found_and_others_are_not():
    assert common.DetectMultiBackend.__module__ == "models.backends"
    with pytest.raises(AttributeError, match="Nothing"):
        _ = common.Nothing
