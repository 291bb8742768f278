"""How large a network is, how many operations it takes, and how long."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.base.devices import time_sync
from utils.base.log import LOGGER


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Size of a model; `gflops` are those of one picture, two per multiply-add."""

    layers: int
    parameters: int
    gradients: int
    gflops: float

    def __str__(self) -> str:
        sizes = f"{self.layers} layers, {self.parameters:,} parameters, {self.gradients:,} gradients"
        return f"{sizes}, {self.gflops:.2f} GFLOPs"


def run_on_meta(model: nn.Module, *shape: int) -> Any:
    """What the model returns for an input of this shape, with shapes and without numbers.

    Nothing is computed and nothing about the model changes: no statistics, no random state, no device.
    """
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    stand_ins = {name: tensor.detach().to("meta") for name, tensor in tensors}
    dtype = next((value.dtype for value in stand_ins.values() if value.is_floating_point()), None)
    with torch.no_grad():
        return torch.func.functional_call(model, stand_ins, (torch.empty(shape, device="meta", dtype=dtype),))


def count_flops(model: nn.Module, imgsz: int | Sequence[int] = 640, channels: int = 3) -> int:
    """Floating point operations for one picture of this size, products inside attention included.

    The first count of a process takes seconds: PyTorch's shape rules are a large import.
    """
    from torch.utils.flop_counter import FlopCounterMode  # slow to import and seldom needed

    height, width = (imgsz, imgsz) if isinstance(imgsz, int) else imgsz
    with FlopCounterMode(display=False) as counter:
        run_on_meta(model, 1, channels, height, width)
    return counter.get_total_flops()


def model_info(model: nn.Module, verbose: bool = False, img_size: int | Sequence[int] = 640) -> ModelSummary:
    """Count layers, parameters and operations of a model that has `yaml["ch"]` input channels (3 if it does not say).

    `verbose` logs one line per parameter.
    """
    parameters = list(model.named_parameters())
    if verbose:
        LOGGER.info(f"{'index':>5} {'name':>40} {'gradient':>9} {'parameters':>12} {'mean':>10} {'std':>10}  shape")
        for index, (name, p) in enumerate(parameters):
            mean, std = p.mean().item(), p.std(correction=0).item()
            numbers = f"{p.requires_grad!s:>9} {p.numel():>12} {mean:>10.3g} {std:>10.3g}"
            LOGGER.info(f"{index:>5} {name:>40} {numbers}  {list(p.shape)}")
    return ModelSummary(
        layers=len(list(model.modules())),
        parameters=sum(p.numel() for _, p in parameters),
        gradients=sum(p.numel() for _, p in parameters if p.requires_grad),
        gflops=count_flops(model, img_size, getattr(model, "yaml", {}).get("ch", 3)) / 1e9,
    )


class Cost(NamedTuple):
    """What running a module once takes; memory is the GPU's, backward is nan where there is none."""

    parameters: int
    gflops: float
    memory_gb: float
    forward_ms: float
    backward_ms: float
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None


def profile(
    inputs: Tensor | Sequence[Tensor],
    ops: Callable[[Tensor], Any] | Sequence[Callable[[Tensor], Any]],
    n: int = 10,
    device: torch.device | str | None = None,
) -> list[Cost | None]:
    """Run every op on every input `n` times, forward and backward, and report averages.

    An op that fails (out of memory, a shape it cannot take) is logged and stands as None.
    """
    results: list[Cost | None] = []
    tensors = [inputs] if isinstance(inputs, Tensor) else inputs
    for x, op in itertools.product(tensors, [ops] if callable(ops) else ops):
        x = x.detach().to(device or x.device).requires_grad_(x.is_floating_point())
        try:
            results.append(cost_of(op.to(x.device) if isinstance(op, nn.Module) else op, x, n))
        except RuntimeError as error:
            LOGGER.warning(f"{getattr(op, '__name__', type(op).__name__)} on {tuple(x.shape)}: {error}")
            results.append(None)
    return results


def cost_of(op: Callable[[Any], Any], x: Any, n: int = 10) -> Cost:
    """Run `op` on `x`, a tensor or a list of them, `n` times; backward too where gradients are on."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        op(x)
    forward = backward = 0.0
    y = None
    for _ in range(n):
        start = time_sync()
        y = op(x)
        middle = time_sync()
        total = sum(part.sum() for part in _tensors(y))
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
            backward += time_sync() - middle
        else:
            backward = math.nan
        forward += middle - start
    return Cost(
        parameters=sum(p.numel() for p in op.parameters()) if isinstance(op, nn.Module) else 0,
        gflops=counter.get_total_flops() / 1e9,
        memory_gb=torch.cuda.memory_reserved() / 1e9 if torch.cuda.is_initialized() else 0.0,
        forward_ms=forward / n * 1e3,
        backward_ms=backward / n * 1e3,
        input_shape=tuple(x.shape) if isinstance(x, Tensor) else None,
        output_shape=tuple(y.shape) if isinstance(y, Tensor) else None,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
