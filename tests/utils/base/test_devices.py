"""Devices, seeds, averages, stopping, fusing and counting."""

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from utils.base.devices import device_summary, gpu_indices, seed_everything, select_device, time_sync  # fmt: skip
from utils.base.networks import (
    copy_attr,
    cost_of,
    count_flops,
    de_parallel,
    fuse_conv_and_bn,
    initialize_weights,
    is_parallel,
    model_info,
    profile,
    run_on_meta,
    scale_img,
)
from utils.training.average import EarlyStopping, ModelEMA


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "card")


@pytest.mark.parametrize(
    "name, expected",
    [("", "cuda:0"), ("cuda", "cuda:0"), ("1", "cuda:1"), ("cuda:1", "cuda:1"), ("10,11", "cuda:10"),
     (" 2, 3", "cuda:2"), ("CPU", "cpu")],
)  # fmt: skip
def test_select_device_with_gpus(gpus, name, expected):
    assert str(select_device(name)) == expected


def test_all_gpus_of_a_name(gpus):
    assert gpu_indices("cuda:10,11") == [10, 11]


def test_a_batch_must_be_shared_evenly(gpus):
    assert select_device("0,1", batch_size=4).index == 0
    with pytest.raises(ValueError, match="multiple of the 2 GPUs"):
        select_device("0,1", batch_size=5)


@pytest.mark.parametrize("name", ["gpu", "0;1", "-1", "0,", "cuda:x"])
def test_names_that_mean_nothing(gpus, name):
    with pytest.raises(ValueError, match="expected cpu"):
        select_device(name)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_device("") == torch.device("cpu")
    with pytest.raises(ValueError, match="there is: cpu"):
        select_device("0")


def test_device_summary():
    assert torch.__version__ in device_summary(torch.device("cpu")) and "CPU" in device_summary(torch.device("cpu"))


def test_seeds_repeat_everything():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything(5)
    first = draw()
    seed_everything(5, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and draw() == first
    seed_everything(6)
    assert not torch.are_deterministic_algorithms_enabled() and draw() != first


def test_seeds_alone_leave_the_algorithms():
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = True, True
        torch.use_deterministic_algorithms(True, warn_only=False)
        seed_everything(2**64 - 1, deterministic=None)
        first = random.random(), np.random.rand(), torch.rand(1).item()
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (True, True)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before
    seed_everything(2**64 - 1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_clock_goes_forward():
    assert time_sync() <= time_sync()


def test_parallel_wrappers():
    model = nn.Linear(1, 1)
    wrapped = nn.DataParallel(model)
    assert is_parallel(wrapped) and not is_parallel(model)
    assert de_parallel(wrapped) is model and de_parallel(model) is model


def test_copy_attr():
    source, target = SimpleNamespace(a=1, b=2, _private=3), SimpleNamespace()
    copy_attr(target, source, exclude=["b"])
    assert vars(target) == {"a": 1}
    copy_attr(target, source, include=["b"])
    assert vars(target) == {"a": 1, "b": 2}


def test_initialize_weights():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.SiLU(), nn.ReLU(), nn.Sigmoid())
    initialize_weights(model)
    assert (model[0].eps, model[0].momentum, model[1].inplace, model[2].inplace) == (1e-3, 0.03, True, True)


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


def test_scale_img():
    x = torch.rand(1, 3, 64, 96)
    assert scale_img(x) is x
    smaller = scale_img(x, 0.5)
    assert smaller.shape == (1, 3, 32, 64)  # 48 columns, filled up to 64
    torch.testing.assert_close(smaller[..., :48], torch.nn.functional.avg_pool2d(x, 2))
    assert (smaller[..., 48:] == 0.447).all()
    assert scale_img(x, 0.5, same_shape=True).shape == x.shape


def test_average_of_a_worked_example():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = ModelEMA(nn.DataParallel(model), decay=0.5, tau=1)
    nn.init.constant_(model.weight, 1.0)
    average.update(model)
    past = 0.5 * (1 - math.exp(-1))
    assert average.ema.weight.item() == pytest.approx(1 - past) and average.updates == 1
    nn.init.constant_(model.weight, 2.0)
    average.update(nn.DataParallel(model))
    later = 0.5 * (1 - math.exp(-2))
    assert average.ema.weight.item() == pytest.approx((1 - past) * later + 2 * (1 - later))


@pytest.mark.parametrize("updates, decay", [(0, 0), (1, 0.0005), (100, 0.04877), (2000, 0.63206), (10000, 0.99316)])
def test_decay_ramp(updates, decay):
    assert ModelEMA(nn.Identity()).decay(updates) == pytest.approx(decay, abs=5e-6)


def test_average_takes_part_in_nothing_and_counts_batches():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = ModelEMA(model, updates=5)
    model(torch.rand(2, 1, 3, 3))
    average.update(model)
    assert not average.ema.training and not any(p.requires_grad for p in average.ema.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert average.ema[1].num_batches_tracked == 1 and average.updates == 6


def test_average_copies_attributes():
    model = nn.Identity()
    average = ModelEMA(model)
    model.names, model.reducer = ["a"], 1
    average.update_attr(model)
    assert average.ema.names == ["a"] and not hasattr(average.ema, "reducer")


def run(patience, fitness):
    stopper = EarlyStopping(patience)
    for epoch, value in enumerate(fitness):
        if stopper(epoch, value):
            return epoch
    return None


@pytest.mark.parametrize(
    "patience, fitness, stop",
    [(1, [], None), (2, [0.1, 0.1, 0.09, 0.08], 2), (2, [0.1, 0.1, 0.2, 0.1, 0.2], 4), (0, [0.5] * 50, None),
     (2, [0.0, 0.0, 0.0], 2), (2, [math.nan] * 4, 2), (3, [0.1, 0.2, 0.3, 0.4], None)],
)  # fmt: skip
def test_early_stopping_wants_strict_improvement(patience, fitness, stop):
    assert run(patience, fitness) == stop


def test_early_stopping_warns_one_epoch_ahead():
    stopper = EarlyStopping(2)
    told = [(stopper(epoch, 0.1), stopper.possible_stop) for epoch in range(3)]
    assert told == [(False, False), (False, True), (True, True)]
    assert (stopper.best_epoch, stopper.best_fitness) == (0, 0.1)


def test_running_on_meta_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert run_on_meta(model, 2, 3, 8, 8).shape == (2, 4, 6, 6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert run_on_meta(model.double(), 1, 3, 8, 8).dtype == torch.float64


def test_flops_of_worked_examples():
    assert count_flops(nn.Identity(), 8) == 0
    assert count_flops(nn.Conv2d(3, 4, 3, padding=1), (8, 6)) == 2 * 3 * 9 * 4 * 8 * 6
    assert count_flops(nn.Conv2d(1, 4, 1, groups=1), 4, channels=1) == 2 * 4 * 16


def test_flops_see_products_of_attention():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]  # (B, 1, H*W, 3)
            return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

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


def test_cost_without_gradients_has_no_backward():
    with torch.no_grad():
        assert math.isnan(cost_of(nn.Conv2d(3, 1, 1), torch.rand(1, 3, 4, 4), n=1).backward_ms)
    assert cost_of(lambda maps: torch.cat(maps), [torch.rand(1), torch.rand(1)], n=1).input_shape is None
