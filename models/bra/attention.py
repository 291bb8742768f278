"""Bi-level routing attention (BRA) as modules with the parameter names of published checkpoints.

Method: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", https://arxiv.org/abs/2303.08810.
The arithmetic of the attention itself is in `models.bra.functions`; its legend of shapes holds here too, and
C is the number of channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from models.bra import arguments as check
from models.bra import functions
from models.bra.functions import Routes, route
from models.bra.modes import KVDownsample, best_side, make_downsample
from utils.base.networks import start_at_zero

__all__ = ["BiLevelRoutingAttention", "KVGather", "QKVLinear", "TopkRouting"]


class RegionGrid(NamedTuple):
    """A map cut into rows x cols regions of height x width tokens each."""

    rows: int
    cols: int
    height: int
    width: int


def split_regions(x: Tensor, grid: RegionGrid) -> Tensor:
    """(B, C, rows * height, cols * width) -> (B, R, T, C)."""
    return rearrange(
        x, "b c (rows height) (cols width) -> b (rows cols) (height width) c", rows=grid.rows, cols=grid.cols,
        height=grid.height, width=grid.width,
    )  # fmt: skip


def join_regions(x: Tensor, grid: RegionGrid) -> Tensor:
    """(B, R, T, C) -> (B, rows * height, cols * width, C)."""
    return rearrange(
        x, "b (rows cols) (height width) c -> b (rows height) (cols width) c", rows=grid.rows, cols=grid.cols,
        height=grid.height, width=grid.width,
    )  # fmt: skip


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns of maps (B, H, W, C) that are at least as large: (B, height, width, C)."""
    if torch.compiler.is_exporting():  # torch 2.11 does not see it where sizes are open, and would make up new ones
        torch._check(height <= x.shape[1])
        torch._check(width <= x.shape[2])
    return x[:, :height, :width]


class PointwiseLinear(nn.Linear):
    """`nn.Linear`, with the same parameters and numbers, for the channels of each position: (..., N, C) -> (..., N, D).

    In float32 on a CPU the product runs as a 1 x 1 convolution over channels-last memory. PyTorch hands that to oneDNN
    instead of the BLAS behind `nn.Linear`, which leaves half of an AMD processor's AVX-512 unused. bfloat16 products go
    to oneDNN anyhow, and compilers choose for themselves.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., N, C) -> (..., N, D)."""
        plain = x.device.type == "cpu" and x.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
        eager = not torch.compiler.is_compiling() and not torch.jit.is_tracing()
        if not (eager and plain and x.ndim > 2 and x.numel() > 0 and torch.backends.mkldnn.is_available()):
            return super().forward(x)
        # Leading dimensions as the batch: below 16 images and with one thread PyTorch would take BLAS again
        maps = x.reshape(-1, x.shape[-2], 1, x.shape[-1]).permute(0, 3, 1, 2)  # (batch, C, N, 1)
        out = F.conv2d(maps, self.weight[:, :, None, None], self.bias)
        return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], self.out_features)


class TopkRouting(nn.Module):
    """Choose for every region the `topk` regions whose mean key fits its mean query best.

    Args:
        qk_dim: channels of the means.
        topk: regions to keep, at most as many as there are.
        qk_scale: factor of the affinities, qk_dim ** -0.5 when None.
        param_routing: pass the means through a learned linear layer first.
        diff_routing: let gradients reach the means through the routing weights.
    """

    def __init__(
        self, qk_dim: int, topk: int = 4, qk_scale: float | None = None, param_routing: bool = False,
        diff_routing: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check.true_or_false(param_routing=param_routing, diff_routing=diff_routing)
        self.qk_dim, self.topk = check.whole_number("qk_dim", qk_dim), check.whole_number("topk", topk)
        self.scale = check.logit_scale(qk_scale, self.qk_dim)
        self.diff_routing = diff_routing
        self.emb = nn.Linear(qk_dim, qk_dim) if param_routing else nn.Identity()

    def forward(self, query: Tensor, key: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Means (B, R, C) of queries and keys -> softmax weights and numbers of the chosen regions, (B, R, K) each."""
        if not self.diff_routing:
            query, key = query.detach(), key.detach()
        index, weight, _ = route(self.emb(query), self.emb(key), self.topk, self.scale, allowed)
        assert weight is not None  # `route` always gives weights
        return weight, index


class KVGather(nn.Module):
    """Collect the keys and values of routed regions, as they are or multiplied by the routing weights.

    Args:
        mul_weight: "none", "soft" (times the weight), or "hard" (times one, with the gradient of the weight:
            straight-through).
    """

    def __init__(self, mul_weight: str = "none") -> None:
        super().__init__()
        self.mul_weight = check.one_of("mul_weight", mul_weight, ("none", "soft", "hard"))

    def factors(self, r_weight: Tensor) -> Tensor | None:
        """What the selected keys and values are multiplied by, None for nothing."""
        if self.mul_weight == "none":
            return None
        return r_weight if self.mul_weight == "soft" else (r_weight - r_weight.detach()) + 1

    def forward(self, r_idx: Tensor, r_weight: Tensor, kv: Tensor) -> Tensor:
        """Routes (B, R, K) and kv (B, R, L, C) -> (B, R, K, L, C)."""
        selected, factors = functions.select_regions(kv, r_idx), self.factors(r_weight)
        return selected if factors is None else selected * factors.to(kv.dtype)[..., None, None]


class QKVLinear(nn.Module):
    """One linear layer for queries, keys (qk_dim channels each) and values (dim channels)."""

    def __init__(self, dim: int, qk_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.dim, self.qk_dim = dim, qk_dim
        self.qkv = PointwiseLinear(dim, 2 * qk_dim + dim, bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) -> queries (..., qk_dim), keys and values together (..., qk_dim + dim)."""
        q, kv = self.qkv(x).split([self.qk_dim, self.qk_dim + self.dim], dim=-1)
        return q, kv


class BiLevelRoutingAttention(nn.Module):
    """Attention in which each region of the map looks only at the few regions it is routed to, plus local context.

    Args:
        dim: channels in and out.
        n_win: regions per side, or "auto" for the number that costs least on the map at hand.
        num_heads: attention heads; dim and qk_dim must be multiples of it.
        qk_dim: channels of queries and keys, dim when None.
        qk_scale: factor of the logits: a number above 0, None for qk_dim ** -0.5 (the authors' choice), or "head" for
            (qk_dim / num_heads) ** -0.5.
        kv_per_win, kv_downsample_ratio, kv_downsample_kernel, kv_downsample_mode: thin out keys and values of each
            region, see `models.bra.modes`.
        topk: regions that each region is routed to; all of them where there are fewer.
        param_attention: "qkvo", or "qkv" for no output layer.
        param_routing: learned linear layer before routing (needs diff_routing).
        diff_routing: gradients reach the routing; without soft_routing straight-through.
        soft_routing: multiply keys and values of a region by its routing weight.
        side_dwconv: kernel of the depthwise convolution of v that is added to the output, odd, or 0 for none.
        auto_pad: zero-pad maps that do not divide into regions (before qkv, so that biases reach the padding, as in
            published weights); otherwise such maps are an error.
        mask_padding: padding is neither attended to nor routed to, nor seen by the convolution.
        region_size: tokens per side of a region, one number or (height, width), instead of n_win.
        backend: see `models.bra.functions.routed_attention`; where "triton" cannot run, as on the CPU on which
            models are built, the layer takes "auto".
        residual: give x + attention(x), with an output layer that starts at zero: put into a trained network, the layer
            changes nothing until it is trained (https://arxiv.org/abs/2003.04887). Published weights have no such sum.
    """

    def __init__(
        self, dim: int, n_win: int | str = 7, num_heads: int = 8, qk_dim: int | None = None,
        qk_scale: float | str | None = None, kv_per_win: int | None = 4, kv_downsample_ratio: int | None = 4,
        kv_downsample_kernel: int | None = None, kv_downsample_mode: str = "identity", topk: int = 4,
        param_attention: str = "qkvo", param_routing: bool = False, diff_routing: bool = False,
        soft_routing: bool = False, side_dwconv: int = 3, auto_pad: bool = True, mask_padding: bool = False,
        region_size: int | tuple[int, int] | None = None, backend: str = "auto", residual: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        check.true_or_false(soft_routing=soft_routing, param_routing=param_routing, diff_routing=diff_routing)
        check.true_or_false(auto_pad=auto_pad, mask_padding=mask_padding, residual=residual)
        dim, qk_dim, num_heads = check.head_widths(dim, qk_dim, num_heads)
        self.dim, self.qk_dim, self.num_heads, self.topk = dim, qk_dim, num_heads, check.whole_number("topk", topk)
        self.n_win, self.region_size = check.region_layout(n_win, region_size)
        self.scale = check.logit_scale(qk_scale, qk_dim, num_heads)
        self.backend = check.one_of("backend", backend, functions.BACKENDS)
        self.auto_pad, self.mask_padding, self.residual = auto_pad, mask_padding, residual
        has_output = check.one_of("param_attention", param_attention, ("qkvo", "qkv")) == "qkvo"
        if param_routing and not diff_routing:
            raise ValueError("param_routing=True learns nothing without diff_routing=True; set both or neither")
        if residual and not has_output:
            raise ValueError("residual=True needs the output layer, which starts at zero: set param_attention=qkvo")

        kernel = check.odd_kernel("side_dwconv", side_dwconv)
        self.lepe = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) if kernel else None
        self.router = TopkRouting(qk_dim, topk, self.scale, param_routing, diff_routing)
        self.kv_gather = KVGather("soft" if soft_routing else "hard" if diff_routing else "none")
        self.qkv = QKVLinear(dim, qk_dim)
        self.wo = PointwiseLinear(dim, dim) if has_output else nn.Identity()
        if residual:
            start_at_zero(self.wo)
        self.kv_down = make_downsample(
            kv_downsample_mode, qk_dim + dim, kv_per_win, kv_downsample_ratio, kv_downsample_kernel
        )

    def forward(self, x: Tensor, ret_attn_mask: bool = False) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, H, W) -> (B, C, H, W).

        With `ret_attn_mask`: output (B, H, W, C), routing weights and routed regions (B, R, K) each, and attention
        weights (B * R, heads, T, K * L).
        """
        height, width = x.shape[-2:]
        grid = self.region_grid(height, width)
        missing = (grid.rows * grid.height - height, grid.cols * grid.width - width)
        regions = split_regions(F.pad(x, (0, missing[1], 0, missing[0])), grid)
        # Cut apart once: a cut of a cut costs another copy of all gradients
        q, k, v = self.qkv.qkv(regions).split([self.qk_dim, self.qk_dim, self.dim], dim=-1)  # (B, R, T, channels) each
        real = None  # (1, R, T, 1), False at padding; None where padding does not matter
        if self.mask_padding and missing != (0, 0):
            tall = torch.arange(height + missing[0], device=x.device) < height
            wide = torch.arange(width + missing[1], device=x.device) < width
            real = split_regions((tall[:, None] & wide)[None, None], grid)
            k, v = k * real, v * real
        r_weight, r_idx = self._route(q, k, real)
        keys, values, key_mask = self._downsample(k, v, grid, real)
        routes = Routes(r_idx, self.kv_gather.factors(r_weight), key_mask)
        q, keys, values = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, keys, values))
        attention = None
        if ret_attn_mask:
            out, attention = functions.attention_and_weights(q, keys, values, routes, self.scale)
        else:
            backend = "auto" if self.backend == "triton" and not functions.triton_runs_on(x.device) else self.backend
            out = functions.routed_attention(q, keys, values, routes, self.scale, backend)
        out = crop(join_regions(out.flatten(-2), grid), height, width)
        if self.lepe is not None:  # local context: a depthwise convolution of the values over the whole map
            context = self.lepe(join_regions(v, grid).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            out = out + crop(context, height, width)
        out = self.wo(out).permute(0, 3, 1, 2)
        if self.residual:
            out = x + out
        return out if attention is None else (out.permute(0, 2, 3, 1), r_weight, r_idx, attention.flatten(0, 1))

    @torch.no_grad()
    def start_as_identity(self, share: float = 1 / 16) -> bool:
        """Let the layer begin by handing on its input, so that it hides nothing where trained layers surround it.

        Values and the output layer pass each channel on, made smaller; the centre of the convolution, made larger by as
        much, brings it back: out = x + share * attention(x), of which the attention is a mean of tokens. The factors
        are spread over all three, as the steps of an optimiser are alike for small weights and large ones. Queries and
        keys stay as they are. Return False, with nothing changed, for a layer without convolution.
        """
        if self.lepe is None:
            return False
        with_output = isinstance(self.wo, PointwiseLinear)
        values, channels = self.qkv.qkv, slice(2 * self.qk_dim, None)
        same = torch.eye(self.dim) * (share**0.5 if with_output else share)
        values.weight[channels], values.bias[channels] = same, 0
        if with_output:
            self.wo.load_state_dict({"weight": same, "bias": torch.zeros(self.dim)})
        for parameter in self.lepe.parameters():
            nn.init.zeros_(parameter)
        nn.init.dirac_(self.lepe.weight, groups=self.dim).div_(share)
        return True

    @property
    def cuts_by_formula(self) -> bool:
        """Whether how a map is cut follows from its size without a case distinction, which exporters cannot keep."""
        fixed_count = self.region_size is None and self.n_win != "auto"
        return fixed_count and self.auto_pad and not self.mask_padding and type(self.kv_down) is KVDownsample

    def region_grid(self, height: int, width: int) -> RegionGrid:
        """How a height x width map is cut into regions, whole ones after padding."""
        # Divisions round up, never of a number below zero on the way: exported graphs round towards zero
        if self.region_size is not None:
            tall, wide = min(self.region_size[0], height), min(self.region_size[1], width)
            grid = RegionGrid((height + tall - 1) // tall, (width + wide - 1) // wide, tall, wide)
        else:
            n_win = self.n_win
            side = best_side(height, width, self.dim, self.topk) if isinstance(n_win, str) else n_win
            grid = RegionGrid(side, side, (height + side - 1) // side, (width + side - 1) // side)
        if not self.auto_pad and (grid.rows * grid.height, grid.cols * grid.width) != (height, width):
            cut = f"{grid.rows} x {grid.cols} regions"
            raise ValueError(f"a {height} x {width} map does not divide into {cut}; set auto_pad=True")
        return grid

    def _route(self, q: Tensor, k: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Routing weights and routed regions, (B, R, K) each, from the means over the tokens of each region."""
        if not self.router.diff_routing:
            q, k = q.detach(), k.detach()
        if real is None:
            return self.router(q.mean(2), k.mean(2))
        count = real.sum(2)  # (1, R, 1)
        q_mean, k_mean = ((t * real).sum(2) / count.clamp(min=1) for t in (q, k))
        return self.router(q_mean, k_mean, (count > 0).squeeze(-1))

    def _downsample(
        self, k: Tensor, v: Tensor, grid: RegionGrid, real: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """k, v (B, R, T, C) -> (B, R, L, C), and which keys count, (B, R, L), None for all."""
        batch, regions = k.shape[:2]
        if type(self.kv_down) is KVDownsample:
            return k, v, None if real is None else real.squeeze(-1).expand(batch, -1, -1)
        kv = torch.cat([k, v], dim=-1)  # thinned out together: one random grid, one convolution
        cells = kv.unflatten(2, (grid.height, grid.width)).flatten(0, 1).permute(0, 3, 1, 2)  # (B * R, C, h, w)
        if real is not None:
            real = real.expand(batch, -1, -1, -1).reshape(batch * regions, 1, grid.height, grid.width)
        cells, kept = self.kv_down(cells, real)
        mask = None if kept is None else kept.reshape(batch, regions, -1)
        cells = cells.permute(0, 2, 3, 1).reshape(batch, regions, -1, kv.shape[-1])
        return *cells.split([self.qk_dim, self.dim], dim=-1), mask
