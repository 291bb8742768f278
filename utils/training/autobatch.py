"""The largest training batch that fits into the memory of a GPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from utils.base.log import LOGGER

TRIED = (1, 2, 4, 8, 16)
DEFAULT_BATCH = 16
FRACTION = 0.9  # of the free memory
LEAST_GROWTH = 0.01  # of the memory measured; below it the batch is not what fills it


def check_train_batch_size(model: nn.Module, imgsz: int = 640, dtype: torch.dtype | None = torch.float16) -> int:
    """The batch size for training `model` with pictures of side `imgsz`: what fits the GPU, 16 on a CPU.

    Args:
        dtype: of autocast while training; None for none.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        LOGGER.info(f"AutoBatch: the model is on {device.type}, using batch size {DEFAULT_BATCH}")
        return DEFAULT_BATCH
    return autobatch(model, imgsz, dtype=dtype)


def autobatch(
    model: nn.Module,
    imgsz: int = 640,
    fraction: float = FRACTION,
    batch_size: int = DEFAULT_BATCH,
    dtype: torch.dtype | None = torch.float16,
) -> int:
    """Measure the memory of a few small batches on the model's GPU and extrapolate to `fraction` of what is free.

    Args:
        batch_size: the answer where fewer than two batches could be measured.
    """
    device = next(model.parameters()).device
    trial = copy.deepcopy(model).train()
    for parameter in trial.parameters():
        parameter.requires_grad_(True)
    sizes, used = measure_batches(partial(_train_step, trial, imgsz, dtype), TRIED, device)
    del trial
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    budget = free * fraction
    chosen = largest_batch(sizes, used, budget) if len(sizes) > 1 else batch_size
    gib = 1 << 30
    LOGGER.info(
        f"AutoBatch: {free / gib:.2f} of {total / gib:.2f} GiB are free; batch size {chosen} should use"
        f" {fraction:.0%} of them (measured {dict(zip(sizes, (round(value / gib, 2) for value in used), strict=True))})"
    )
    return chosen


def measure_batches(
    step: Callable[[int], None], sizes: Sequence[int], device: torch.device
) -> tuple[list[int], list[float]]:
    """Run `step` with rising batch sizes: those that fitted, and the bytes each took at its peak beyond the start."""
    fitted, used = [], []
    for size in sizes:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_reserved(device)
        try:
            step(size)
        except torch.OutOfMemoryError:
            LOGGER.info(f"AutoBatch: batch size {size} does not fit")
            break
        fitted.append(size)
        used.append(float(torch.cuda.max_memory_reserved(device) - start))
    return fitted, used


def largest_batch(sizes: Sequence[int], used: Sequence[float], budget: float) -> int:
    """Extrapolate memory, linear in the batch size, to the largest batch within the budget; at least 1.

    Where memory does not grow with the batch, the largest measured one is all that is known to fit.
    """
    slope, intercept = np.polyfit(sizes, used, deg=1)
    if slope * max(sizes) < LEAST_GROWTH * max(used):
        return max(sizes)
    return max(1, int((budget - intercept) / slope))


def _train_step(model: nn.Module, imgsz: int, dtype: torch.dtype | None, batch_size: int) -> None:
    """One forward and backward pass on empty pictures."""
    device = next(model.parameters()).device
    images = torch.zeros(batch_size, 3, imgsz, imgsz, device=device)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):
        outputs = model(images)
    sum(output.float().square().mean() for output in outputs).backward()
    model.zero_grad(set_to_none=True)
