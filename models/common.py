"""The blocks YOLOv5 is built of.

Every block maps feature maps (B, C, H, W) to feature maps and takes `c1` input and `c2` output channels first, then
the kernel `k`, stride `s`, padding `p` and groups `g` of its convolutions. Attribute names decide the keys of a
checkpoint and are those of YOLOv5 6.1.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from models.bra.attention import BiLevelRoutingAttention, KVGather, QKVLinear, TopkRouting
from utils.base.networks import fuse_conv_and_bn

__all__ = [
    "C3", "C3SPP", "C3TR", "SPP", "SPPF", "BiLevelRoutingAttention", "Bottleneck", "BottleneckCSP", "C3Ghost",
    "Classify", "Concat", "Contract", "Conv", "DWConv", "Expand", "Focus", "GhostBottleneck", "GhostConv", "KVGather",
    "QKVLinear", "TopkRouting", "TransformerBlock", "TransformerLayer", "autopad",
]  # fmt: skip

Size = int | tuple[int, int]
Act = bool | nn.Module

_MOVED = {
    "DetectMultiBackend": "models.backends",
    "AutoShape": "models.api.autoshape",
    "Detections": "models.api.autoshape",
}


def __getattr__(name: str) -> Any:
    """YOLOv5 6.1 keeps a few wrappers here; they are found in their own files when somebody asks (PEP 562)."""
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MOVED[name]), name)


def autopad(k: Size, p: Size | None = None) -> Size:
    """The padding `p`, or the one that keeps the size of a map under an odd kernel `k` with stride 1."""
    if p is not None:
        return p
    return k // 2 if isinstance(k, int) else (k[0] // 2, k[1] // 2)


class Conv(nn.Module):
    """Convolution, batch normalisation, activation (SiLU for `act=True`, none for False, or the module given)."""

    def __init__(
        self, c1: int, c2: int, k: Size = 1, s: Size = 1, p: Size | None = None, g: int = 1, act: Act = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p), groups=g, bias=False)
        self.bn: nn.BatchNorm2d | None = nn.BatchNorm2d(c2)
        default = nn.SiLU() if act is True else nn.Identity()
        self.act = act if isinstance(act, nn.Module) else default

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H', W')."""
        x = self.conv(x)
        return self.act(x if self.bn is None else self.bn(x))

    def fuse(self) -> None:
        """Fold the normalisation, as it is in evaluation, into the convolution. A second call changes nothing."""
        if self.bn is not None:
            self.conv = fuse_conv_and_bn(self.conv, self.bn)
            self.bn = None


class DWConv(Conv):
    """Depth-wise convolution: as many groups as the channels of both sides allow."""

    def __init__(self, c1: int, c2: int, k: Size = 1, s: Size = 1, act: Act = True) -> None:
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), act=act)


class Focus(nn.Module):
    """Every 2x2 square of pixels becomes one pixel with four times the channels, then a `Conv`."""

    def __init__(
        self, c1: int, c2: int, k: Size = 1, s: Size = 1, p: Size | None = None, g: int = 1, act: Act = True
    ) -> None:
        super().__init__()
        self.conv = Conv(4 * c1, c2, k, s, p, g, act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H/2, W/2); H and W even."""
        corners = [x[..., row::2, col::2] for col in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(corners, 1))


# ------------------------------------------------------------------------------------------------ residual blocks
class Bottleneck(nn.Module):
    """Narrow 1x1 and wide 3x3 convolution, with the input added when `shortcut` is asked for and channels agree."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden, c2, 3, 1, g=g)
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H, W)."""
        change = self.cv2(self.cv1(x))
        return x + change if self.add else change


class BottleneckCSP(nn.Module):
    """Cross-stage partial block (arXiv:1911.11929): half of the channels pass `n` bottlenecks, half go by them."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1, 1)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act = nn.SiLU()
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H, W)."""
        both = torch.cat((self.cv3(self.m(self.cv1(x))), self.cv2(x)), 1)
        return self.cv4(self.act(self.bn(both)))


class C3(nn.Module):
    """`BottleneckCSP` with three `Conv` and no normalisation of its own."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5) -> None:
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(c1, hidden, 1, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        self.m = self._inner(hidden, n, shortcut, g)

    def _inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """What the first half of the channels passes through; the variants below replace it."""
        return nn.Sequential(*(Bottleneck(width, width, shortcut, g, e=1.0) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H, W)."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C3TR(C3):
    """`C3` around a transformer of `n` layers and four heads."""

    def _inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return TransformerBlock(width, width, 4, n)


class C3Ghost(C3):
    """`C3` around `n` ghost bottlenecks."""

    def _inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*(GhostBottleneck(width, width) for _ in range(n)))


class C3SPP(C3):
    """`C3` around spatial pyramid pooling with the kernels `k`."""

    def __init__(
        self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13), n: int = 1, shortcut: bool = True, g: int = 1,
        e: float = 0.5,
    ) -> None:  # fmt: skip
        self._kernels = tuple(k)
        super().__init__(c1, c2, n, shortcut, g, e)

    def _inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return SPP(width, width, self._kernels)


# -------------------------------------------------------------------------------------------------------- pooling
class SPP(nn.Module):
    """Spatial pyramid pooling (arXiv:1406.4729): the map beside its maxima over windows of several sizes."""

    def __init__(self, c1: int, c2: int, k: Sequence[int] = (5, 9, 13)) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(side, stride=1, padding=side // 2) for side in k)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H, W)."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class SPPF(nn.Module):
    """`SPP` by one window applied three times over: 5 gives the maxima over 5, 9 and 13 at less cost."""

    def __init__(self, c1: int, c2: int, k: int = 5) -> None:
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1, 1)
        self.cv2 = Conv(hidden * 4, c2, 1, 1)
        self.m = nn.MaxPool2d(k, stride=1, padding=k // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H, W)."""
        small = self.cv1(x)
        middle = self.m(small)
        large = self.m(middle)
        return self.cv2(torch.cat((small, middle, large, self.m(large)), 1))


# -------------------------------------------------------------------------------------------- ghosts, transformers
class GhostConv(nn.Module):
    """Half of the channels by a convolution, the other half cheaply from them (GhostNet, arXiv:1911.11907)."""

    def __init__(self, c1: int, c2: int, k: Size = 1, s: Size = 1, g: int = 1, act: Act = True) -> None:
        super().__init__()
        half = c2 // 2
        self.cv1 = Conv(c1, half, k, s, g=g, act=act)
        self.cv2 = Conv(half, half, 5, 1, g=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H', W'); c2 even."""
        real = self.cv1(x)
        return torch.cat((real, self.cv2(real)), 1)


class GhostBottleneck(nn.Module):
    """Residual block of ghost convolutions; with stride 2 both branches halve the map."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1) -> None:
        super().__init__()
        hidden, halves = c2 // 2, s == 2
        self.conv = nn.Sequential(
            GhostConv(c1, hidden, 1, 1),
            DWConv(hidden, hidden, k, s, act=False) if halves else nn.Identity(),
            GhostConv(hidden, c2, 1, 1, act=False),
        )
        self.shortcut = (
            nn.Sequential(DWConv(c1, c1, k, s, act=False), Conv(c1, c2, 1, 1, act=False)) if halves else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H/s, W/s)."""
        return self.conv(x) + self.shortcut(x)


class TransformerLayer(nn.Module):
    """Self-attention and a linear pair, each added to its input; without layer norm, after arXiv:2010.11929."""

    def __init__(self, c: int, num_heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(c, c, bias=False)
        self.k = nn.Linear(c, c, bias=False)
        self.v = nn.Linear(c, c, bias=False)
        self.ma = nn.MultiheadAttention(embed_dim=c, num_heads=num_heads)
        self.fc1 = nn.Linear(c, c, bias=False)
        self.fc2 = nn.Linear(c, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(tokens, B, c) -> (tokens, B, c)."""
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)
        x = x + attended
        return x + self.fc2(self.fc1(x))


class TransformerBlock(nn.Module):
    """`num_layers` transformer layers over the pixels of a map, with a learned linear map as position code."""

    def __init__(self, c1: int, c2: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else None
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*(TransformerLayer(c2, num_heads) for _ in range(num_layers)))
        self.c2 = c2

    def forward(self, x: Tensor) -> Tensor:
        """(B, c1, H, W) -> (B, c2, H, W)."""
        if self.conv is not None:
            x = self.conv(x)
        tokens = x.flatten(2).permute(2, 0, 1)  # (H*W, B, c2)
        tokens = self.tr(tokens + self.linear(tokens))
        return tokens.permute(1, 2, 0).reshape(x.shape)


# ------------------------------------------------------------------------------------------------- shape changers
class Contract(nn.Module):
    """Squares of `gain` x `gain` pixels become channels: (B, C, H, W) -> (B, C*g*g, H/g, W/g)."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """New channels in the order row within the square, column within it, old channel."""
        return rearrange(x, "b c (h row) (w col) -> b (row col c) h w", row=self.gain, col=self.gain)


class Expand(nn.Module):
    """Channels become squares of `gain` x `gain` pixels, the inverse of `Contract`."""

    def __init__(self, gain: int = 2) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C/(g*g), H*g, W*g)."""
        return rearrange(x, "b (row col c) h w -> b c (h row) (w col)", row=self.gain, col=self.gain)


class Concat(nn.Module):
    """Several maps side by side along `dimension`."""

    def __init__(self, dimension: int = 1) -> None:
        super().__init__()
        self.d = dimension

    def forward(self, x: list[Tensor]) -> Tensor:
        """[(B, C1, H, W), (B, C2, H, W), ...] -> (B, C1 + C2 + ..., H, W) for dimension 1."""
        return torch.cat(x, self.d)


class Classify(nn.Module):
    """Class scores from the average of a map, or of several maps."""

    def __init__(self, c1: int, c2: int, k: Size = 1, s: Size = 1, p: Size | None = None, g: int = 1) -> None:
        super().__init__()
        self.aap = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv2d(c1, c2, k, s, autopad(k, p), groups=g)
        self.flat = nn.Flatten()

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        """(B, c1, H, W), or a list whose channels sum to c1 -> (B, c2)."""
        maps = x if isinstance(x, list) else [x]
        return self.flat(self.conv(torch.cat([self.aap(one) for one in maps], 1)))
