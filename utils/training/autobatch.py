"""The largest training batch that fits into the memory of a GPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from utils.base.log import LOGGER
from utils.training.guard import OutOfMemory, repeatable, short_of_memory

TRIED = (1, 2, 4, 8, 16)
DEFAULT_BATCH = 16
FRACTION = 0.9  # of the free memory
LEAST_GROWTH = 0.01  # of the memory measured; below it the batch is not what fills it


def autobatch(
    model: nn.Module, imgsz: int = 640, fraction: float = FRACTION, batch_size: int = DEFAULT_BATCH,
    dtype: torch.dtype | None = torch.float16,
) -> int:  # fmt: skip
    """Measure the memory of a few small batches on the model's GPU and extrapolate to `fraction` of what is free.

    `batch_size` is the answer on a CPU, and where fewer than two batches could be measured. `dtype` is that of autocast
    while training; None for none.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        LOGGER.info(f"AutoBatch: the model is on {device.type}, using batch size {batch_size}")
        return batch_size
    trial = copy.deepcopy(model).train().requires_grad_(True)
    used: dict[int, float] = {}  # batch size: GiB at its peak beyond the start
    for size in TRIED:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_reserved(device)
        try:
            try_batch(trial, size, imgsz, dtype)
        except OutOfMemory:
            LOGGER.info(f"AutoBatch: batch size {size} does not fit")
            break
        trial.zero_grad(set_to_none=True)
        used[size] = (torch.cuda.max_memory_reserved(device) - start) / (1 << 30)
    del trial
    gc.collect()
    torch.cuda.empty_cache()
    free, total = (value / (1 << 30) for value in torch.cuda.mem_get_info(device))
    chosen = largest_batch([*used], [*used.values()], free * fraction) if len(used) > 1 else batch_size
    LOGGER.info(
        f"AutoBatch: {free:.2f} of {total:.2f} GiB are free; batch size {chosen} should use {fraction:.0%} of them "
        f"(measured { ({size: round(value, 2) for size, value in used.items()}) })"
    )
    return chosen


def try_batch(model: nn.Module, size: int, imgsz: int, dtype: torch.dtype | None) -> None:
    """Take blank images forward and back under autocast, laid out as in training; OutOfMemory where there is none."""
    device = next(model.parameters()).device
    with short_of_memory(), repeatable():
        images = torch.zeros(size, 3, imgsz, imgsz, device=device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            outputs = model(images)
        sum(output.float().square().mean() for output in outputs).backward()


check_train_batch_size = autobatch  # v6.1's name of it for a training run


def largest_batch(sizes: Sequence[int], used: Sequence[float], budget: float) -> int:
    """Extrapolate memory, linear in the batch size, to the largest batch within the budget; at least 1.

    Where memory does not grow with the batch, the largest measured one is all that is known to fit.
    """
    slope, intercept = np.polyfit(sizes, used, deg=1)
    if slope * max(sizes) < LEAST_GROWTH * max(used):
        return max(sizes)
    return max(1, int((budget - intercept) / slope))
