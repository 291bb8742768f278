"""Blocks that no shipped model uses and some people's own descriptions do; `models.experimental` offers them too."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.common import Conv


class CrossConv(nn.Module):
    """A k x k convolution as a 1 x k one followed by a k x 1 one, with an optional shortcut."""

    def __init__(
        self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, e: float = 1.0, shortcut: bool = False
    ) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H/s, W/s)."""
        change = self.cv2(self.cv1(x))
        return x + change if self.add else change


class Sum(nn.Module):
    """Sum of `n` maps; with `weight`, all but the first have a learned factor between 0 and 2."""

    def __init__(self, n: int, weight: bool = False) -> None:
        super().__init__()
        self.weight = weight
        self.iter = range(n - 1)
        if weight:
            self.w = nn.Parameter(-torch.arange(1.0, n) / 2)

    def forward(self, x: list[Tensor]) -> Tensor:
        """n x (B, C, H, W) -> (B, C, H, W)."""
        factors = 2 * self.w.sigmoid() if self.weight else [1.0 for _ in self.iter]
        return sum((x[i + 1] * factors[i] for i in self.iter), start=x[0])


class MixConv2d(nn.Module):
    """Convolutions of several kernel sizes side by side (arXiv:1907.09595).

    With `equal_ch` the kernels share the output channels evenly, cut where YOLOv5 6.1 cuts them (65 over 3 makes 22,
    21, 22); otherwise in proportion to 1 / side², rounded, at least 1, so that each has about as many weights, and what
    that leaves over goes to the smallest kernel.
    """

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (1, 3), s: int = 1, equal_ch: bool = True) -> None:
        super().__init__()
        if equal_ch:
            ends = [-1, *((kernel + 1) * (c2 - 1) // len(k) for kernel in range(len(k)))]
            widths = [end - start for start, end in itertools.pairwise(ends)]
        else:
            shares = [1 / (side * side) for side in k]
            widths = [max(1, round(c2 * share / sum(shares))) for share in shares]
            widths[shares.index(max(shares))] += c2 - sum(widths)
        self.m = nn.ModuleList(
            nn.Conv2d(c1, width, side, s, side // 2, groups=math.gcd(c1, width), bias=False)
            for side, width in zip(k, widths, strict=True)
        )
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H/s, W/s)."""
        return self.act(self.bn(torch.cat([conv(x) for conv in self.m], 1)))
