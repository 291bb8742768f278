"""Who takes part in a comparison of attention layers: the layers, the attention alone, and the memory they take."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pairing import peak_memory
from models.bra.attention import BiLevelRoutingAttention
from models.bra.functions import BACKENDS, Routes, route, routed_attention, triton_runs_on

Shape = tuple[int, int, int, int]
NAMES = ("reference", "dense", "plain", *(name for name in BACKENDS if name != "reference"))


@dataclass(frozen=True)
class Setting:
    """Under which conditions everything is run.

    dtype: of autocast; float32 means none. reference: Python file with the reference module. rounds: at most so many
    timed rounds; fewer (but three) where they would take longer than `budget` seconds.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    threads: int = 1
    reference: Path | None = None
    rounds: int = 20
    budget: float = 12.0

    @property
    def warm_up(self) -> int:
        """Rounds that do not count, after a first run of each rival: GPUs go on choosing kernels and clock rates."""
        return 2 if self.device.type == "cuda" else 0


class DenseAttention(nn.Module):
    """Every token attends to every token: the same layers as BRA without regions."""

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.wo = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, dim, height, width = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, H * W, head width) each
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        values = v.transpose(2, 3).reshape(batch, dim, height, width)
        out = out.transpose(1, 2).reshape(batch, dim, height, width) + self.lepe(values)
        return self.wo(out.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Rival:
    """Something to be run forward, or forward and backward, on the same noise every time.

    Args:
        call: maps the inputs to one tensor of the shape of the first of them.
        inputs: what it is called with, in this order, by name.
        weights: what else gets gradients, by name.
        setting: device and precision; the inputs are already there.
    """

    def __init__(
        self, call: Callable[..., Tensor], inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor], setting: Setting
    ) -> None:
        self.call, self.inputs = call, list(inputs.values())
        self.leaves = {**inputs, **weights}
        self.device = setting.device
        self.seed = noise(self.inputs[0].shape, 9, self.device, self.inputs[0].dtype)  # gradient of the output
        self.autocast = torch.autocast(setting.device.type, setting.dtype, enabled=setting.dtype is not torch.float32)

    def forward(self) -> None:
        """Run it once without gradients, and wait for the end."""
        with torch.no_grad(), self.autocast:
            self.call(*self.inputs)
        self._wait()

    def both(self) -> None:
        """Run it once forward and backward, and wait for the end."""
        self.results()

    def results(self) -> dict[str, Tensor]:
        """Output and gradients of one run forward and backward, by name."""
        self.clear()
        with self.autocast:
            out = self.call(*self.inputs)
        out.backward(self.seed.to(out.dtype))
        self._wait()
        gradients = {f"gradient of {name}": leaf.grad for name, leaf in self.leaves.items() if leaf.grad is not None}
        return {"output": out.detach(), **gradients}

    def clear(self) -> None:
        """Forget the gradients of the last run."""
        for leaf in self.leaves.values():
            leaf.grad = None

    def differing(self) -> list[str]:
        """Names of the results that two runs do not agree on bit by bit."""
        first, second = self.results(), self.results()
        return [name for name, value in first.items() if not torch.equal(value, second[name])]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def noise(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers that depend on nothing but shape and seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def build(name: str, dim: int, reference: Path | None) -> nn.Module:
    """A layer by name: "reference", "dense", "plain" (our written-out backend) or a backend of ours by its own name.

    All but the dense one start from the same weights. Raises ValueError for a name that is none of these.
    """
    torch.manual_seed(0)
    if name == "dense":
        return DenseAttention(dim)
    if name == "reference":
        if reference is None:
            raise ValueError("the rival 'reference' is the module of a file; name it with --reference FILE")
        spec = importlib.util.spec_from_file_location("bra_reference", reference)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.BiLevelRoutingAttention(dim)
    return BiLevelRoutingAttention(dim, backend=_backend(name))


def around(module: nn.Module, shape: Shape, setting: Setting) -> Rival:
    """A module as a rival, on a map of this shape."""
    module = module.to(setting.device)
    x = noise(shape, 1, setting.device).requires_grad_()
    return Rival(module, {"x": x}, dict(module.named_parameters()), setting)


def layer(name: str, shape: Shape, setting: Setting) -> Rival:
    """A layer by name with projections, routing and local context, on a map of this shape.

    ValueError where it would not run as what it is called: our layer takes another backend instead of "triton" then.
    """
    if name == "triton" and not triton_runs_on(setting.device):
        raise ValueError(f"backend 'triton' runs on CUDA, not on {setting.device.type}")
    return around(build(name, shape[1], setting.reference), shape, setting)


def core(name: str, shape: Shape, setting: Setting) -> Rival:
    """What attention of this name does between q, k, v (in `setting.dtype` throughout) and its output; 8 heads.

    The reference's cannot be taken out of its module: ValueError.
    """
    if name == "reference":
        raise ValueError("the reference is a module as a whole; its attention alone cannot be run")
    size = core_size(name, shape)
    inputs = {part: noise(size, seed, setting.device, setting.dtype) for seed, part in enumerate("qkv", start=2)}
    for value in inputs.values():
        value.requires_grad_()
    if name == "dense":
        return Rival(F.scaled_dot_product_attention, inputs, {}, setting)
    bra = BiLevelRoutingAttention(shape[1])
    means = [inputs[part].detach().mean(2).flatten(2) for part in "qk"]
    routes = Routes(route(*means, bra.topk, bra.scale).index)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return routed_attention(q, k, v, routes, bra.scale, _backend(name))

    return Rival(attend, inputs, {}, setting)


def core_size(name: str, shape: Shape) -> tuple[int, ...]:
    """Shape of each of q, k, v and output of `core`, padding to whole regions included."""
    batch, dim, height, width = shape
    bra = BiLevelRoutingAttention(dim)
    if name == "dense":
        return batch, bra.num_heads, height * width, dim // bra.num_heads
    grid = bra.region_grid(height, width)
    return batch, grid.rows * grid.cols, grid.height * grid.width, bra.num_heads, dim // bra.num_heads


def peak(
    prepare: Callable[[str, Shape, Setting], Rival], name: str, shape: Shape, setting: Setting, backward: bool
) -> int:
    """Bytes at the peak of one forward, or forward and backward, beyond weights and inputs.

    On a GPU its allocator tells; on a CPU it is what a fresh process grows by. Workspaces that libraries keep from
    their first use on do not count.
    """
    if setting.device.type != "cuda":
        return peak_memory(_prepared, prepare, name, shape, setting, backward)
    rival = prepare(name, shape, setting)
    run = rival.both if backward else rival.forward
    run()
    rival.clear()
    before = torch.cuda.memory_allocated(setting.device)
    torch.cuda.reset_peak_memory_stats(setting.device)
    run()
    return torch.cuda.max_memory_allocated(setting.device) - before


def extra_memory(name: str, shape: Shape, setting: Setting) -> tuple[float, float]:
    """What the attention alone needs beyond q, k, v, its output and their gradients, in % of q, k, v and output.

    Forward, and forward and backward.
    """
    one = math.prod(core_size(name, shape)) * setting.dtype.itemsize
    forward = peak(core, name, shape, setting, False) - one
    both = peak(core, name, shape, setting, True) - 4 * one  # output, gradients of q, k, v
    return 100 * max(0, forward) / (4 * one), 100 * max(0, both) / (4 * one)


def ready(names: list[str], shape: Shape, setting: Setting) -> tuple[dict[str, Rival], list[str]]:
    """The rivals that can be run on a map of this shape, each after one run, and a line on each that cannot."""
    rivals: dict[str, Rival] = {}
    left_out = []
    for name in names:
        try:
            rival = layer(name, shape, setting)
            rival.both()
        except (ValueError, torch.OutOfMemoryError) as error:
            left_out.append(f"{name} is left out on {'x'.join(map(str, shape))}: {str(error).splitlines()[0]}")
            continue
        rival.clear()
        rivals[name] = rival
    return rivals, left_out


def _backend(name: str) -> str:
    """Backend of `routed_attention` that a rival's name stands for."""
    return "reference" if name == "plain" else name


def _prepared(
    prepare: Callable[[str, Shape, Setting], Rival], name: str, shape: Shape, setting: Setting, backward: bool
) -> Callable[[], None]:
    """What the fresh process of `peak` runs."""
    torch.set_num_threads(setting.threads)
    prepare(name, (1, shape[1], 7, 7), setting).both()  # loads what loads at the first use
    rival = prepare(name, shape, setting)
    return rival.both if backward else rival.forward
