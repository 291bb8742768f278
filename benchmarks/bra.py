"""How fast bi-level routing attention is, next to a reference module, other backends and dense attention.

    python -m benchmarks.bra --reference bra_reference.py      paired with the module of that file
    python -m benchmarks.bra                                   backends and dense attention among themselves

A ratio says how many times faster we are than the baseline, from rounds that run both in turn in one process. Memory is
what a fresh process grows by during one forward and backward.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from benchmarks.pairing import geometric_mean, interleave, median_ratio, peak_memory
from models.attention import BiLevelRoutingAttention

Shape = tuple[int, int, int, int]
SHAPES: tuple[Shape, ...] = (
    (8, 128, 40, 40),
    (8, 256, 20, 20),
    (4, 512, 40, 40),
    (4, 1024, 20, 20),
    (4, 128, 80, 80),
    (2, 128, 160, 160),
)


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


def build(name: str, dim: int, reference: Path | None) -> nn.Module:
    """A rival by name: "reference", "dense", "plain" (our written-out backend) or a backend of ours by its own name.

    All but the dense one start from the same weights.
    """
    torch.manual_seed(0)
    if name == "dense":
        return DenseAttention(dim)
    if name == "reference":
        spec = importlib.util.spec_from_file_location("bra_reference", reference)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.BiLevelRoutingAttention(dim)
    return BiLevelRoutingAttention(dim, backend="reference" if name == "plain" else name)


def one_pass(name: str, shape: Shape, backward: bool, options: argparse.Namespace) -> Callable[[], None]:
    """What is timed: one forward, or forward and backward, of a rival on noise."""
    torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    module = build(name, shape[1], options.reference).to(device)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_(backward)
    seed = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(device)
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)

    def run() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        with torch.set_grad_enabled(backward), autocast:
            out = module(x)
        if backward:
            out.backward(seed.to(out.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def memory(name: str, shape: Shape, options: argparse.Namespace) -> int:
    """Bytes at the peak of one forward and backward, beyond weights and input."""
    if torch.device(options.device).type == "cpu":
        return peak_memory(one_pass, name, shape, True, options)
    run = one_pass(name, shape, True, options)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def compare(names: list[str], options: argparse.Namespace) -> dict[str, list[tuple[float, ...]]]:
    """Print a line per shape and rival; return its ratios (forward, both, memory) over `names[0]`, the baseline."""
    where = f"{options.threads} threads, {options.device}, {options.dtype}, torch {torch.__version__}"
    print(f"baseline: {names[0]}; {where}")
    print(f"{'shape':>20} {'rival':>10} {'forward':>9} {'fwd + bwd':>9} {'memory':>9}   times faster, times smaller")
    table: dict[str, list[tuple[float, ...]]] = {name: [] for name in names[1:]}
    for shape in options.shapes:
        seconds = [
            interleave({name: one_pass(name, shape, backward, options) for name in names}, options.rounds)
            for backward in (False, True)
        ]
        peaks = {name: memory(name, shape, options) for name in names} if options.memory else {}
        for name in names[1:]:
            row = [median_ratio(times[names[0]], times[name]) for times in seconds]
            row += [peaks[names[0]] / max(1, peaks[name])] if peaks else []
            table[name].append(tuple(row))
            print(f"{'x'.join(map(str, shape)):>20} {name:>10} " + " ".join(f"{x:9.2f}" for x in row), flush=True)
    for name, rows in table.items():
        means = " ".join(f"{geometric_mean(column):9.2f}" for column in zip(*rows, strict=True))
        print(f"{'geometric mean':>20} {name:>10} {means}")
    return table


def parse_shape(text: str) -> Shape:
    """"8x128x40x40" -> (8, 128, 40, 40)."""
    parts = tuple(int(part) for part in text.split("x"))
    if len(parts) != 4 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give batch x channels x height x width, as in 8x128x40x40")
    return parts


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bra", description=__doc__.split("\n")[0])
    parser.add_argument("--reference", type=Path, help="Python file with the BiLevelRoutingAttention to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds per shape")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of autocast")
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=SHAPES)
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory column out")
    options = parser.parse_args(arguments)
    if options.reference is not None and not options.reference.is_file():
        parser.error(f"no file {options.reference}")
    rivals = ["reference", "auto"] if options.reference else ["dense", "plain", "auto"]
    compare(rivals, options)


if __name__ == "__main__":
    main()
