"""What is asked of any PyTorch network: unwrapped, its attributes, fused, its input resized, its size and its cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from utils.base.devices import time_sync
from utils.base.log import LOGGER

Network = TypeVar("Network", bound=nn.Module)


def is_parallel(model: nn.Module) -> bool:
    """True for a model wrapped by DataParallel or DistributedDataParallel."""
    return isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def de_parallel(model: nn.Module) -> nn.Module:
    """The model inside such a wrapper, or the model itself."""
    return cast(nn.Module, model.module) if is_parallel(model) else model


def moved(model: Network, device: torch.device) -> Network:
    """Return the network on a device with channels last: cuDNN and oneDNN need no copies around convolutions then."""
    return model.to(device).to(memory_format=torch.channels_last)


def copy_attr(target: Any, source: Any, include: Collection[str] = (), exclude: Collection[str] = ()) -> None:
    """Copy the public instance attributes of `source`: those in `include` (all if empty), none in `exclude`."""
    for name, value in vars(source).items():
        if not name.startswith("_") and name not in exclude and (name in include or not include):
            setattr(target, name, value)


def initialize_weights(model: nn.Module) -> None:
    """YOLOv5's settings: batch norm with eps 1e-3 and momentum 0.03, activations in place; weights stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-3, 0.03
        elif isinstance(module, (nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU)):
            module.inplace = True


def start_at_zero(*layers: nn.Module) -> None:
    """Let layers whose output is added to something add nothing until they are trained, and mark them as such.

    What comes before them gets gradients from the second step on (https://arxiv.org/abs/2003.04887).
    """
    for layer in layers:
        vars(layer)["starts_at_zero"] = True
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def started_at_zero(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of a network that `start_at_zero` marked, by name."""
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "starts_at_zero")}


def fuse_conv_and_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """Return one convolution that computes bn(conv(x)) as in evaluation, in the convolution's type and on its device.

    The product is computed in float32 at least, whatever the type of the weights.
    """
    own: Any = conv  # whose pairs torch declares as tuples of any length
    fused = nn.Conv2d(
        own.in_channels, own.out_channels, own.kernel_size, own.stride, own.padding, own.dilation, own.groups,
        bias=True, padding_mode=own.padding_mode, device=own.weight.device, dtype=own.weight.dtype,
    )  # fmt: skip
    exact = torch.promote_types(conv.weight.dtype, torch.float32)
    parts = (conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.weight, bn.bias)
    weight, bias, mean, var, scale, shift = (None if part is None else part.detach().to(exact) for part in parts)
    assert weight is not None and mean is not None and var is not None
    state = fuse_conv_bn_weights(weight, bias, mean, var, bn.eps, scale, shift)
    fused.load_state_dict(dict(zip(("weight", "bias"), state, strict=True)))
    return fused.train(conv.training).requires_grad_(False)


def scale_img(img: Tensor, ratio: float = 1.0, same_shape: bool = False, gs: int = 32) -> Tensor:
    """Resize images (B, C, H, W) by `ratio` and pad them, grey, right and below.

    Sides grow to the next multiple of `gs`, or with `same_shape` back to H and W. Ratio 1 returns the input.
    """
    if ratio == 1.0:
        return img
    height, width = img.shape[-2:]
    smaller = F.interpolate(img, size=(int(height * ratio), int(width * ratio)), mode="bilinear", align_corners=False)
    if not same_shape:
        height, width = (math.ceil(side * ratio / gs) * gs for side in (height, width))
    grey = 0.447  # mean of ImageNet
    return F.pad(smaller, [0, width - smaller.shape[3], 0, height - smaller.shape[2]], value=grey)


# ------------------------------------------------------------------------------------------------------ size and cost
@dataclass(frozen=True, slots=True)
class ModelSummary:
    """Size of a model; `gflops` are those of one image, two per multiply-add."""

    layers: int
    parameters: int
    gradients: int
    gflops: float

    def __str__(self) -> str:
        sizes = f"{self.layers} layers, {self.parameters:,} parameters, {self.gradients:,} gradients"
        return f"{sizes}, {self.gflops:.2f} GFLOPs"


def run_on_meta(model: nn.Module, *shape: int) -> Any:
    """Return what the model gives for an input of this shape, with shapes and without numbers.

    Nothing is computed and nothing about the model changes: no statistics, no random state, no device.
    """
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    stand_ins = {name: tensor.detach().to("meta") for name, tensor in tensors}
    dtype = next((value.dtype for value in stand_ins.values() if value.is_floating_point()), None)
    with torch.no_grad():
        return torch.func.functional_call(model, stand_ins, (torch.empty(shape, device="meta", dtype=dtype),))


def count_flops(model: nn.Module, imgsz: int | Sequence[int] = 640, channels: int = 3) -> int:
    """Return the floating point operations for one image of this size, products inside attention included.

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
    y, device = None, next((part.device for part in tree_leaves(x) if isinstance(part, Tensor)), None)
    for _ in range(n):
        start = time_sync(device)
        y = op(x)
        middle = time_sync(device)
        total = sum(part.sum() for part in tree_leaves(y) if isinstance(part, Tensor))
        if isinstance(total, Tensor) and total.requires_grad:
            total.backward()
            backward += time_sync(device) - middle
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
