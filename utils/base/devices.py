"""Devices by name, seeds, and a clock that waits for the GPU."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS reads it at its first product
REPEATING = (":4096:8", ":16:8")  # values with which its products repeat bit for bit


def select_device(device: str | torch.device = "", batch_size: int = 0) -> torch.device:
    """Return the device a name means: "" the first GPU if there is one, "cpu", "mps", "0", "cuda:0", "0,1".

    Of several GPUs the first is returned (`gpu_indices` gives all). The environment is left as it is. Raises
    ValueError for a device this machine lacks or a batch size that the GPUs cannot share evenly.
    """
    name = str(device).strip().lower().removeprefix("cuda:")
    if name in ("", "cuda"):
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r}: this machine has no MPS; there is: {_devices_here()}")
    if name in ("cpu", "mps"):
        return torch.device(name)
    indices = gpu_indices(device)
    if batch_size > 0 and batch_size % len(indices):
        raise ValueError(f"batch size {batch_size} must be a multiple of the {len(indices)} GPUs in device {device!r}")
    return torch.device(f"cuda:{indices[0]}")


def gpu_indices(device: str | torch.device) -> list[int]:
    """Return the numbers in "0,2" or "cuda:0,2". Raises ValueError for another form or for a GPU that is not there."""
    name = str(device).strip().lower().replace("cuda:", "").replace(" ", "")
    if not re.fullmatch(r"\d+(,\d+)*", name):
        raise ValueError(f"device {device!r}: expected cpu, mps, or GPU numbers such as 0 or 0,1")
    indices = [int(number) for number in name.split(",")]
    if max(indices) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: this machine has no such GPU; there is: {_devices_here()}")
    return indices


def _devices_here() -> str:
    gpus = [f"{index} ({torch.cuda.get_device_name(index)})" for index in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])])


def seed_everything(seed: int, deterministic: bool | None = False) -> None:
    """Seed Python, numpy and torch on all devices; with `deterministic` only algorithms run that repeat bit for bit.

    None leaves the algorithms as they are. An operation that has no such algorithm is then PyTorch's RuntimeError: on
    CUDA, among others, the gradient of adaptive pooling (BRA's ada_avgpool and ada_maxpool). Another GPU, another
    PyTorch or another number of processes may differ always. Raise ValueError where the environment has a setting of
    cuBLAS that does not repeat.
    """
    setting = os.environ.setdefault(WORKSPACE, REPEATING[0]) if deterministic else REPEATING[0]
    if setting not in REPEATING and torch.cuda.is_available():
        raise ValueError(
            f"{WORKSPACE}={setting}: products that repeat need {' or '.join(REPEATING)}; set it so, or not at all"
        )
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - packages of others draw from it
    torch.manual_seed(seed)
    if deterministic is not None:
        torch.backends.cudnn.deterministic = deterministic
        torch.use_deterministic_algorithms(deterministic)


def tune_cuda(one_shape: bool = False) -> None:
    """Let CUDA search for its fastest algorithms only where the search pays.

    cuDNN tries all its convolutions on every new shape, which is for images of `one_shape`. Attention is not left to
    cuDNN, which PyTorch prefers on Hopper: it makes a plan for every new shape, flash attention needs none.
    """
    torch.backends.cudnn.benchmark = one_shape and not torch.backends.cudnn.deterministic
    torch.backends.cuda.enable_cudnn_sdp(False)


def moment(device: torch.device | str) -> Any:
    """Return a point in the work of a device, for `seconds_between`: on a GPU a mark in its queue; nobody waits."""
    if torch.device(device).type != "cuda":
        return time.perf_counter()
    mark = torch.cuda.Event(enable_timing=True)
    mark.record(torch.cuda.current_stream(device))
    return mark


def seconds_between(first: Any, last: Any) -> float:
    """Return the seconds from one `moment` to a later one, once the device has come to it."""
    if isinstance(first, float):
        return last - first
    last.synchronize()
    return first.elapsed_time(last) / 1e3


@contextmanager
def many_shapes() -> Iterator[None]:
    """Let cuDNN search for no algorithms in the block, through which images of many shapes go."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def time_sync(device: torch.device | str | None = None) -> float:
    """Return the seconds of a clock that only goes forward, once a GPU has finished what it was given.

    It is `device`, where that is a GPU; without one the current GPU, if any was used.
    """
    if device is None and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    elif device is not None and torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
