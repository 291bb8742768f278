"""The less usual modes of bi-level routing attention: fewer keys and values per region, and the best grid size.

Legend: N regions of all images, C channels, h x w tokens of a region before and i x j after downsampling.
"""

from __future__ import annotations

from functools import lru_cache
from operator import index
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from models.bra.arguments import one_of, whole_number

DOWNSAMPLE_MODES = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool", "fracpool", "conv")


class KVDownsample(nn.Module):
    """Base of the ways to thin out a region's keys and values; this one keeps them all.

    `forward` takes (N, C, h, w) and, where the map was padded, `real` (N, 1, h, w), False at padding. Padding then has
    no part in the result, and cells made of padding alone come back as zeros marked False.
    """

    averages = False

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, i, j)."""
        return x

    def forward(self, kv: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(N, C, h, w) -> (N, C, i, j) and the mask that goes with it."""
        if real is None:
            return self.pool(kv), None
        shown = kv * real if self.averages else kv.masked_fill(~real, torch.finfo(kv.dtype).min)
        cells, share = self.pool(torch.cat((shown, real.to(kv.dtype)), 1)).split((kv.shape[1], 1), 1)
        kept = share > 0
        return (cells / share.where(kept, 1) if self.averages else cells.masked_fill(~kept, 0)), kept


class PooledKV(KVDownsample):
    """Average or maximum over cells of a region: `per_win` x `per_win` of them, or `ratio` x `ratio` tokens each."""

    def __init__(self, per_win: int | None, ratio: int, averages: bool) -> None:
        super().__init__()
        self.per_win, self.ratio, self.averages = per_win, ratio, averages

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, per_win, per_win), or (N, C, h // ratio, w // ratio), at least 1 x 1."""
        if self.per_win is not None:
            return (F.adaptive_avg_pool2d if self.averages else F.adaptive_max_pool2d)(x, self.per_win)
        cell = (min(self.ratio, x.shape[-2]), min(self.ratio, x.shape[-1]))
        return (F.avg_pool2d if self.averages else F.max_pool2d)(x, cell)


class FractionalKV(KVDownsample):
    """Maximum over cells of irregular size (Graham, https://arxiv.org/abs/1412.6071), about `ratio` times fewer a side.

    Along a side of s tokens there are n = s / ratio cells, rounded, at least one. Cell i begins at the paper's
    pseudo-random sequence, floor(a (i + u)) - floor(a u), with a = (s - kernel) / (n - 1) and u from 0 to 1. It is
    `kernel` tokens long, or longer where the next cell would leave tokens out, so that every token is looked at. Where
    none would be left out this is what `torch.nn.functional.fractional_max_pool2d` computes. Each region draws one u
    for its rows and one for its columns, shared by all channels, so that keys and values still belong together; in
    evaluation u is 0.5.

    Where a is whole, as with a ratio that divides the side and no kernel of its own, the sequence has one form only:
    the cells are those of maxpool. A larger kernel, or a side that the ratio does not divide, brings chance back.
    """

    def __init__(self, ratio: int, kernel: int | None) -> None:
        super().__init__()
        self.ratio, self.kernel = ratio, kernel or ratio

    def pool(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h / ratio, w / ratio), rounded, at least 1 x 1."""
        chance = torch.rand(len(x), 2, device=x.device) if self.training else torch.full((1, 2), 0.5, device=x.device)
        x = x.permute(0, 2, 3, 1)  # channels last: whole rows of memory are picked
        for axis in (1, 0):  # columns, then rows; each time along dimension 2
            tokens, seen = self.windows(x.shape[2], chance[:, axis])
            hidden = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, float("-inf"))
            picked = x.index_select(2, tokens.flatten()).unflatten(2, tokens.shape)  # (N, side, cells, reach, C)
            # A sum, as its gradient costs nothing; that of filling in would be another copy
            x = (picked + hidden[:, None, :, :, None]).amax(3).transpose(1, 2)
        return x.permute(0, 3, 1, 2)

    def windows(self, side: int, chance: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens that a cell may see whatever is drawn, (cells, reach), and which of them it sees, (N, cells, reach).

        `chance` is u, (N,). All is in whole numbers, as rounding would move a cell: with a = slack / steps and
        phase = floor(u * slack), floor(a (i + u)) is (i * slack + phase) // steps. Only the phase moves a cell, by one
        token at most; so what is picked is the same for all regions, and its gradient is added up row by row.
        """
        side = int(side) if torch.jit.is_tracing() else side  # a trace counts in tensors
        cells = max(1, round(side / self.ratio))
        length = side if cells == 1 else min(self.kernel, side - cells + 1)
        slack, steps = side - length, max(1, cells - 1)
        reach = max(length, -(-slack // steps)) + 1
        phase = (chance * slack).long()[:, None]
        multiples = torch.arange(cells + 1, device=chance.device) * slack
        begin = ((multiples + phase) // steps - phase // steps)[..., None]  # (N, cells + 1, 1)
        end = torch.maximum(begin[:, :-1] + length, begin[:, 1:])
        tokens = (multiples // steps)[:-1, None] + torch.arange(reach, device=chance.device)
        return tokens.clamp(max=side - 1), (tokens >= begin[:, :-1]) & (tokens < end) & (tokens < side)


class ConvKV(KVDownsample):
    """A learned depthwise convolution of stride `ratio`; it begins as the average over its kernel."""

    def __init__(self, channels: int, ratio: int, kernel: int | None) -> None:
        super().__init__()
        self.ratio, self.kernel = ratio, kernel or ratio
        self.conv = nn.Conv2d(channels, channels, self.kernel, ratio, groups=channels)
        nn.init.constant_(self.conv.weight, self.kernel**-2)
        nn.init.zeros_(cast("nn.Parameter", self.conv.bias))

    def forward(self, kv: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(N, C, h, w) -> (N, C, ceil(h / ratio), ceil(w / ratio)); padding counts as zeros."""
        if real is None:
            return self.conv(self._fill(kv)), None
        kept = F.max_pool2d(self._fill(real.to(kv.dtype)), self.kernel, self.ratio) > 0
        return self.conv(self._fill(kv * real)) * kept, kept

    def _fill(self, x: Tensor) -> Tensor:
        """Zeros around x so that every token is seen and the cells number ceil(side / ratio)."""
        edges: list[int] = []
        for side in (x.shape[-1], x.shape[-2]):
            missing = max(0, (-(-side // self.ratio) - 1) * self.ratio + self.kernel - side)
            edges += [missing // 2, missing - missing // 2]
        return F.pad(x, edges) if any(edges) else x


def make_downsample(mode: str, channels: int, per_win: int | None, ratio: Any, kernel: Any) -> KVDownsample:
    """The module for a `kv_downsample_mode`; ValueError names what is allowed."""
    one_of("kv_downsample_mode", mode, DOWNSAMPLE_MODES)
    if mode == "identity":
        return KVDownsample()
    note = f" for kv_downsample_mode={mode!r}"
    if mode.startswith("ada_"):
        return PooledKV(whole_number("kv_per_win", per_win, note=note), 1, averages=mode == "ada_avgpool")
    ratio = whole_number("kv_downsample_ratio", ratio, note=note)
    kernel = None if kernel is None else whole_number("kv_downsample_kernel", kernel, note=note)
    if mode == "conv":
        return ConvKV(channels, ratio, kernel)
    if ratio == 1:
        return KVDownsample()
    return FractionalKV(ratio, kernel) if mode == "fracpool" else PooledKV(None, ratio, averages=mode == "avgpool")


def best_side(height: int, width: int, dim: int, topk: int) -> int:
    """Regions per side that cost the fewest multiplications on a height x width map.

    The paper's count: 4 N C^2 for the projections, 2 S^4 C for the routing and 2 K N^2 / S^2 C for the attention, where
    N is the number of tokens after padding to whole regions. Its minimum lies near
    (K / 2)^(1/6) * (height * width)^(1/3).
    """
    # A compiler searches once for a map size anyhow, and warns of caches; its sizes are symbols, a trace's tensors
    search = _cheapest_side.__wrapped__ if torch.compiler.is_compiling() else _cheapest_side
    return search(index(height), index(width), dim, topk)


@lru_cache(maxsize=256)
def _cheapest_side(height: int, width: int, dim: int, topk: int) -> int:
    costs = []
    for side in range(1, min(height, width) + 1):
        tokens = (-(-height // side) * side) * (-(-width // side) * side)
        costs.append(4 * tokens * dim + 2 * side**4 + 2 * min(topk, side * side) * tokens**2 / side**2)
    return 1 + costs.index(min(costs))
