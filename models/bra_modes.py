"""The less usual modes of bi-level routing attention: fewer keys and values per region, and the best grid size.

Legend: N regions of all pictures, C channels, h x w tokens of a region before and i x j after downsampling.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

DOWNSAMPLE_MODES = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool", "fracpool", "conv")


class KVDownsample(nn.Module):
    """Base of the ways to thin out a region's keys and values; this one keeps them all.

    `forward` takes (N, C, h, w) and, where the map was padded, `real` (N, 1, h, w), False at padding. Padding then has
    no part in the result, and cells made of padding alone come back as zeros marked False.
    """

    averages = False

    def pool(self, x: Tensor, corner: Tensor | None) -> Tensor:
        """(N, C, h, w) -> (N, C, i, j); `corner` is what `draw` returned."""
        return x

    def draw(self, x: Tensor) -> Tensor | None:
        """Random numbers to be shared by keys, values and mask; None for modes without chance."""
        return None

    def forward(self, kv: Tensor, real: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """(N, C, h, w) -> (N, C, i, j) and the mask that goes with it."""
        corner = self.draw(kv)
        if real is None:
            return self.pool(kv, corner), None
        share = self.pool(real.to(kv.dtype), corner)
        kept = share > 0
        if self.averages:
            return self.pool(kv * real, corner) / share.where(kept, 1), kept
        lowest = torch.finfo(kv.dtype).min
        return self.pool(kv.masked_fill(~real, lowest), corner).masked_fill(~kept, 0), kept


class AdaptiveKV(KVDownsample):
    """Average or maximum over `per_win` x `per_win` cells of a region, whatever its size."""

    def __init__(self, per_win: int, averages: bool) -> None:
        super().__init__()
        self.per_win, self.averages = per_win, averages

    def pool(self, x: Tensor, corner: Tensor | None) -> Tensor:
        """(N, C, h, w) -> (N, C, per_win, per_win)."""
        return (F.adaptive_avg_pool2d if self.averages else F.adaptive_max_pool2d)(x, self.per_win)


class StridedKV(KVDownsample):
    """Average or maximum over cells of `ratio` x `ratio` tokens; a smaller region is one cell."""

    def __init__(self, ratio: int, averages: bool) -> None:
        super().__init__()
        self.ratio, self.averages = ratio, averages

    def pool(self, x: Tensor, corner: Tensor | None) -> Tensor:
        """(N, C, h, w) -> (N, C, h // ratio, w // ratio), at least 1 x 1."""
        cell = (min(self.ratio, x.shape[-2]), min(self.ratio, x.shape[-1]))
        return (F.avg_pool2d if self.averages else F.max_pool2d)(x, cell)


class FractionalKV(KVDownsample):
    """Maximum over cells of irregular size (Graham, https://arxiv.org/abs/1412.6071), about `ratio` times fewer a side.

    Each region draws one grid for all its channels, so that keys and values still belong together. In evaluation the
    grid is fixed.
    """

    def __init__(self, ratio: int, kernel: int | None) -> None:
        super().__init__()
        self.ratio, self.kernel = ratio, kernel or ratio

    def draw(self, x: Tensor) -> Tensor:
        """(N, 1, 2) offsets in [0, 1): random in training, 0.5 otherwise."""
        shape = (x.shape[0], 1, 2)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if self.training:
            return torch.rand(shape, device=x.device, dtype=dtype)
        return torch.full(shape, 0.5, device=x.device, dtype=dtype)

    def pool(self, x: Tensor, corner: Tensor | None) -> Tensor:
        """(N, C, h, w) -> (N, C, h / ratio, w / ratio), rounded, at least 1 x 1."""
        size = [max(1, round(side / self.ratio)) for side in x.shape[-2:]]
        kernel = [min(self.kernel, side - cells + 1) for side, cells in zip(x.shape[-2:], size, strict=True)]
        exact = x.to(corner.dtype)  # the kernel exists for these types only; a maximum loses nothing
        samples = corner.expand(-1, x.shape[1], -1)
        return F.fractional_max_pool2d(exact, kernel, output_size=size, _random_samples=samples).to(x.dtype)


class ConvKV(KVDownsample):
    """A learned depthwise convolution of stride `ratio`; it begins as the average over its kernel."""

    def __init__(self, channels: int, ratio: int, kernel: int | None) -> None:
        super().__init__()
        self.ratio, self.kernel = ratio, kernel or ratio
        self.conv = nn.Conv2d(channels, channels, self.kernel, ratio, groups=channels)
        nn.init.constant_(self.conv.weight, self.kernel**-2)
        nn.init.zeros_(self.conv.bias)

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


def make_downsample(
    mode: str, channels: int, per_win: int | None, ratio: int | None, kernel: int | None
) -> KVDownsample:
    """The module for a `kv_downsample_mode`; ValueError names what is allowed."""
    if mode not in DOWNSAMPLE_MODES:
        raise ValueError(f"kv_downsample_mode={mode!r}: allowed are {', '.join(DOWNSAMPLE_MODES)}")
    if mode == "identity":
        return KVDownsample()
    if mode.startswith("ada_"):
        return AdaptiveKV(_at_least_one("kv_per_win", per_win, mode), averages=mode == "ada_avgpool")
    ratio = _at_least_one("kv_downsample_ratio", ratio, mode)
    kernel = None if kernel is None else _at_least_one("kv_downsample_kernel", kernel, mode)
    if mode == "conv":
        return ConvKV(channels, ratio, kernel)
    if ratio == 1:
        return KVDownsample()
    return FractionalKV(ratio, kernel) if mode == "fracpool" else StridedKV(ratio, averages=mode == "avgpool")


def _at_least_one(name: str, value: int | None, mode: str) -> int:
    if value is None or value < 1:
        raise ValueError(f"{name}={value}: kv_downsample_mode={mode!r} needs a whole number of at least 1")
    return value


@lru_cache(maxsize=256)
def best_side(height: int, width: int, dim: int, topk: int) -> int:
    """Regions per side that cost the fewest multiplications on a height x width map.

    The paper's count: 4 N C^2 for the projections, 2 S^4 C for the routing and 2 K N^2 / S^2 C for the attention, where
    N is the number of tokens after padding to whole regions. Its minimum lies near
    (K / 2)^(1/6) * (height * width)^(1/3).
    """

    def cost(side: int) -> float:
        tokens = (-(-height // side) * side) * (-(-width // side) * side)
        routed = min(topk, side * side)
        return 4 * tokens * dim + 2 * side**4 + 2 * routed * tokens**2 / side**2

    return min(range(1, min(height, width) + 1), key=cost)
