"""Devices by name, and seeds."""

import os
import random

import numpy as np
import pytest
import torch

from utils.base.devices import gpu_indices, many_shapes, seed_everything, select_device, time_sync, tune_cuda


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "card")


def test_select_device_with_gpus(gpus):
    names = {"": 0, "cuda": 0, "1": 1, "cuda:1": 1, "10,11": 10, " 2, 3": 2}
    assert {name: select_device(name).index for name in names} == names and select_device("CPU").type == "cpu"
    assert gpu_indices("cuda:10,11") == [10, 11] and select_device("0,1", batch_size=4).index == 0
    with pytest.raises(ValueError, match="multiple of the 2 GPUs"):
        select_device("0,1", batch_size=5)
    for name in ("gpu", "0;1", "-1", "0,", "cuda:x"):
        with pytest.raises(ValueError, match="expected cpu"):
            select_device(name)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert select_device("") == torch.device("cpu")
    with pytest.raises(ValueError, match="there is: cpu"):
        select_device("0")


def test_the_clock_waits_for_the_gpu_in_question(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: waited.append(*device or [None]))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert time_sync() <= time_sync("cpu") <= time_sync(torch.device("cpu")) and not waited
    time_sync("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    time_sync()
    assert time_sync("cpu") and waited == ["cuda:1", None]


@pytest.fixture
def settings_put_back(monkeypatch):
    """What concerns CUDA's algorithms, as it was before the test."""
    cudnn, attention = torch.backends.cudnn, torch.backends.cuda
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = cudnn.benchmark, cudnn.deterministic, attention.cudnn_sdp_enabled()
    yield
    cudnn.benchmark, cudnn.deterministic = before[:2]
    attention.enable_cudnn_sdp(before[2])
    torch.use_deterministic_algorithms(False)


def test_convolutions_are_searched_for_one_shape_only_and_attention_is_not_cudnn_s(settings_put_back):
    cudnn = torch.backends.cudnn
    seed_everything(0, deterministic=False)
    for one_shape in (True, False, True):
        tune_cuda(one_shape)
        assert cudnn.benchmark is one_shape and not torch.backends.cuda.cudnn_sdp_enabled()
    with many_shapes():
        assert not cudnn.benchmark
    assert cudnn.benchmark
    seed_everything(0, deterministic=True)
    tune_cuda(one_shape=True)  # a search may end differently
    assert not cudnn.benchmark and cudnn.deterministic


def test_deterministic_is_an_error_where_something_cannot_repeat(settings_put_back, monkeypatch):
    seed_everything(5, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
    seed_everything(5, deterministic=True)  # its own setting is no mistake of the user's
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    seed_everything(5, deterministic=True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    seed_everything(5)
    seed_everything(5, deterministic=True)  # nothing of cuBLAS runs on a CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0: .* :4096:8 or :16:8"):
        seed_everything(5, deterministic=True)


def draw() -> tuple[float, float, float]:
    """A number of each generator that is seeded."""
    return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - the one that others draw from


def test_seeds_repeat_everything_and_alone_leave_the_algorithms():
    seed_everything(5)
    first = draw()
    seed_everything(5, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled() and draw() == first
    seed_everything(6)
    assert not torch.are_deterministic_algorithms_enabled() and draw() != first
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.benchmark, cudnn.deterministic = True, True
        torch.use_deterministic_algorithms(True, warn_only=False)
        seed_everything(2**64 - 1, deterministic=None)
        first = draw()
        assert (cudnn.benchmark, cudnn.deterministic) == (True, True) and torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        cudnn.benchmark, cudnn.deterministic = before
    seed_everything(2**64 - 1)
    assert draw() == first
