"""What a PyTorch program needs around its model: devices, seeds, averages, early stopping, fusing and counting."""

from __future__ import annotations

import copy
import itertools
import math
import platform
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.log import LOGGER
from utils.transfer import intersect_dicts as intersect_dicts  # v6.1 has it here


# -------------------------------------------------------------------------------------------------------- devices
def select_device(device: str | torch.device = "", batch_size: int = 0) -> torch.device:
    """The device a name means: "" the first GPU if there is one, "cpu", "mps", "0", "cuda:0", "0,1".

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
    """The numbers in "0,2" or "cuda:0,2". Raises ValueError for another form or for a GPU that is not there."""
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


def device_summary(device: torch.device) -> str:
    """One line for the log: Python, torch, and what will compute."""
    versions = f"Python-{platform.python_version()} torch-{torch.__version__}"
    if device.type != "cuda":
        return f"{versions} {device.type.upper()}"
    gpu = torch.cuda.get_device_properties(device)
    return f"{versions} CUDA:{device.index or 0} ({gpu.name}, {gpu.total_memory / 2**20:.0f}MiB)"


def seed_everything(seed: int, deterministic: bool | None = False) -> None:
    """Seed Python, numpy and torch on all devices; `deterministic` prefers algorithms that repeat bit for bit.

    None leaves the algorithms as they are. An operation without such an algorithm runs all the same, and PyTorch's
    warning names it: on CUDA, among others, the gradient of adaptive pooling (BRA's ada_avgpool and ada_maxpool), whose
    last bits may vary from run to run. Another GPU, another PyTorch or another number of processes may differ always.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic is not None:
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        torch.use_deterministic_algorithms(deterministic, warn_only=True)


def time_sync() -> float:
    """Seconds on a clock that only goes forward, once the GPU has finished what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


# ---------------------------------------------------------------------------------------------- models as objects
def is_parallel(model: nn.Module) -> bool:
    """True for a model wrapped by DataParallel or DistributedDataParallel."""
    return isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def de_parallel(model: nn.Module) -> nn.Module:
    """The model inside such a wrapper, or the model itself."""
    return model.module if is_parallel(model) else model


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


def fuse_conv_and_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that computes bn(conv(x)) as in evaluation, in the convolution's type and on its device.

    With factor f = gamma / sqrt(var + eps): weight f * W, bias f * (b - mean) + beta.
    """
    fused = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        bias=True, padding_mode=conv.padding_mode, device=conv.weight.device, dtype=conv.weight.dtype,
    )  # fmt: skip
    exact = torch.promote_types(conv.weight.dtype, torch.float32)
    factor = bn.weight.to(exact) / torch.sqrt(bn.running_var.to(exact) + bn.eps)
    shift = -bn.running_mean.to(exact) if conv.bias is None else conv.bias.to(exact) - bn.running_mean.to(exact)
    with torch.no_grad():
        fused.weight.copy_(conv.weight.to(exact) * factor[:, None, None, None])
        fused.bias.copy_(factor * shift + bn.bias.to(exact))
    return fused.train(conv.training).requires_grad_(False)


def scale_img(img: Tensor, ratio: float = 1.0, same_shape: bool = False, gs: int = 32) -> Tensor:
    """Resize pictures (B, C, H, W) by `ratio` and pad them, grey, right and below.

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


# ------------------------------------------------------------------------------------------------------- training
class ModelEMA:
    """Exponential moving average of everything in a model's state that is a fraction.

    The decay starts near 0 and approaches `decay` over about `tau` updates, so that the average leaves the random
    start behind soon. `ema` is the averaged model: in evaluation mode, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, tau: float = 2000, updates: int = 0) -> None:
        self.ema = copy.deepcopy(de_parallel(model)).eval().requires_grad_(False)
        self.updates = updates
        self._limit, self._tau = decay, tau

    def decay(self, updates: int) -> float:
        """Weight of the past after so many updates."""
        return self._limit * (1 - math.exp(-updates / self._tau))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the model's present state into the average; whole numbers (batches seen) are copied."""
        self.updates += 1
        news = de_parallel(model).state_dict()
        olds = self.ema.state_dict()
        averaged = [key for key, value in olds.items() if value.is_floating_point()]
        for key in olds.keys() - set(averaged):
            olds[key].copy_(news[key])
        new = [news[key].to(olds[key]) for key in averaged]
        torch._foreach_lerp_([olds[key] for key in averaged], new, 1 - self.decay(self.updates))

    def update_attr(
        self, model: nn.Module, include: Collection[str] = (), exclude: Collection[str] = ("process_group", "reducer")
    ) -> None:
        """Copy attributes such as names and hyp from the model to the average."""
        copy_attr(self.ema, de_parallel(model), include, exclude)


class EarlyStopping:
    """Says stop when `patience` epochs have passed since fitness last rose strictly; patience 0 never does."""

    def __init__(self, patience: int = 30) -> None:
        self.patience = patience or math.inf
        self.best_fitness, self.best_epoch = -math.inf, 0
        self.possible_stop = False

    def __call__(self, epoch: int, fitness: float) -> bool:
        """True when this should be the last epoch; `possible_stop` tells that the next one may be."""
        if fitness > self.best_fitness:
            self.best_epoch, self.best_fitness = epoch, float(fitness)
        self.possible_stop = epoch - self.best_epoch >= self.patience - 1
        if stop := self.exhausted(epoch):
            LOGGER.info(f"Stopping early: no improvement in {self.patience} epochs since epoch {self.best_epoch}")
        return stop

    def exhausted(self, epoch: int) -> bool:
        """Was patience at its end when this epoch was over?"""
        return epoch - self.best_epoch >= self.patience


# ------------------------------------------------------------------------------------------------------- counting
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
