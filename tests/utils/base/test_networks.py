"""What is asked of any network: attributes, fusing, sizes and costs."""

import math
from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.base.networks import (
    copy_attr,
    cost_of,
    count_flops,
    de_parallel,
    fuse_conv_and_bn,
    initialize_weights,
    is_parallel,
    model_info,
    moved,
    profile,
    run_on_meta,
    scale_img,
)


def test_wrappers_attributes_and_settings():
    model = nn.Linear(1, 1)
    wrapped = nn.DataParallel(model)
    assert is_parallel(wrapped) and not is_parallel(model)
    assert de_parallel(wrapped) is model and de_parallel(model) is model
    source, target = SimpleNamespace(a=1, b=2, _private=3), SimpleNamespace()
    copy_attr(target, source, exclude=["b"])
    assert vars(target) == {"a": 1}
    copy_attr(target, source, include=["b"])
    assert vars(target) == {"a": 1, "b": 2}
    model = nn.Sequential(nn.BatchNorm2d(2), nn.SiLU(), nn.ReLU(), nn.Sigmoid())
    initialize_weights(model)
    assert (model[0].eps, model[0].momentum, model[1].inplace, model[2].inplace) == (1e-3, 0.03, True, True)


def test_networks_lie_on_a_device_as_its_convolutions_like_them():
    model = moved(nn.Conv2d(4, 8, 3), torch.device("meta"))
    assert model.weight.device.type == "meta" and model.weight.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), bias=st.booleans(), groups=st.sampled_from([1, 2]), dilation=st.integers(1, 2))
def test_fused_convolution_is_convolution_then_norm(seed, bias, groups, dilation):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 6, 3, 2, 1, dilation, groups, bias).double()
    norm = nn.BatchNorm2d(6).double()
    norm(conv(3 * torch.randn(4, 4, 16, 16, dtype=torch.float64) + 1))
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.eval()
    x = torch.randn(2, 4, 16, 16, dtype=torch.float64)
    fused = fuse_conv_and_bn(conv, norm)
    assert not any(p.requires_grad for p in fused.parameters())
    torch.testing.assert_close(fused(x), norm(conv(x)))
    rounded = fuse_conv_and_bn(conv.half(), norm.half())
    exact = fuse_conv_and_bn(conv.double(), norm.double())
    for found, expected in zip(rounded.parameters(), exact.parameters(), strict=True):  # not added up in 16 bits
        torch.testing.assert_close(found, expected.half(), rtol=2**-10, atol=0)


def test_scale_img():
    x = torch.rand(1, 3, 64, 96)
    assert scale_img(x) is x
    smaller = scale_img(x, 0.5)
    assert smaller.shape == (1, 3, 32, 64)  # 48 columns, filled up to 64
    torch.testing.assert_close(smaller[..., :48], torch.nn.functional.avg_pool2d(x, 2))
    assert (smaller[..., 48:] == 0.447).all()
    assert scale_img(x, 0.5, same_shape=True).shape == x.shape


def test_running_on_meta_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert run_on_meta(model, 2, 3, 8, 8).shape == (2, 4, 6, 6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert run_on_meta(model.double(), 1, 3, 8, 8).dtype == torch.float64


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, H*W, 3)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)


def test_flops_of_worked_examples():
    assert count_flops(nn.Identity(), 8) == 0
    assert count_flops(nn.Conv2d(3, 4, 3, padding=1), (8, 6)) == 2 * 3 * 9 * 4 * 8 * 6
    assert count_flops(nn.Conv2d(1, 4, 1, groups=1), 4, channels=1) == 2 * 4 * 16
    assert count_flops(Attention(), 4) == 2 * 2 * 16 * 16 * 3


def test_model_info(caplog):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU())
    model[0].bias.requires_grad_(False)
    with caplog.at_level("INFO", "yolov5"):
        summary = model_info(model, verbose=True, img_size=10)
    assert (summary.layers, summary.parameters, summary.gradients, summary.gflops) == (3, 16, 12, 2 * 12 * 100 / 1e9)
    assert "0.weight" in caplog.text and str(summary).startswith("3 layers, 16 parameters, 12 gradients")


def test_profile_reports_each_op_on_each_input(caplog):
    good, bad = nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)
    first, second, third, fourth = profile([torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8)], [good, bad], n=2)
    assert second is None and fourth is None and "Conv2d on (1, 3, 4, 4)" in caplog.text
    assert (first.parameters, first.output_shape, third.input_shape) == (16, (1, 4, 4, 4), (1, 3, 8, 8))
    assert third.gflops == 4 * first.gflops > 0 and first.forward_ms > 0 and first.backward_ms > 0
    with torch.no_grad():
        assert math.isnan(cost_of(nn.Conv2d(3, 1, 1), torch.rand(1, 3, 4, 4), n=1).backward_ms)
    assert cost_of(lambda maps: torch.cat(maps), [torch.rand(1), torch.rand(1)], n=1).input_shape is None
