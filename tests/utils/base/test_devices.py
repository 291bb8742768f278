"""Devices by name, and seeds."""

import random

import numpy as np
import pytest
import torch

from utils.base.devices import gpu_indices, seed_everything, select_device


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
