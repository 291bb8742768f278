"""BiFormer, the pyramid of transformer blocks with bi-level routing attention, and its blocks for detectors.

Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, https://arxiv.org/abs/2303.08810.
Parameters are named as in the authors' checkpoints, so that those load. Maps are (B, C, H, W) outside of blocks.
"""

from __future__ import annotations

import difflib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.bra.arguments import drop_rate, head_widths, odd_kernel, real_number, true_or_false, whole_number
from models.bra.attention import BiLevelRoutingAttention
from models.common import C3
from utils.base.networks import start_at_zero

__all__ = [
    "C3BRA", "BiFormer", "BiFormerBlock", "BiFormerMerging", "BiFormerStage", "BiFormerStem", "DropPath",
    "GlobalAttention", "biformer_base", "biformer_small", "biformer_stl", "biformer_tiny", "pyramid_state",
]  # fmt: skip

GLOBAL_WITH_CONTEXT, GLOBAL = -2, -1  # values of topk that ask for attention over the whole map, as the authors do
ROUTING = signature(BiLevelRoutingAttention).parameters.keys() - {"dim", "topk", "side_dwconv", "residual"}


class DropPath(nn.Module):
    """Stochastic depth, https://arxiv.org/abs/1603.09382: in training skip a residual branch for some samples.

    A branch is kept with probability 1 - rate and scaled up, so that its expectation stays.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = drop_rate(rate)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape with the samples first."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class GlobalAttention(nn.Module):
    """Attention over the whole map plus a depthwise convolution of the input: for maps too small to cut up."""

    def __init__(self, dim: int, num_heads: int = 8, side_dwconv: int = 5) -> None:
        super().__init__()
        dim, _, self.num_heads = head_widths(dim, None, num_heads)
        kernel = odd_kernel("side_dwconv", side_dwconv)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.lepe = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) if kernel else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(rearrange(x, "b c h w -> b (h w) c"))
        q, k, v = rearrange(qkv, "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.num_heads).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        out = rearrange(out, "b heads (h w) d -> b h w (heads d)", h=x.shape[2], w=x.shape[3])
        if self.lepe is not None:
            out = out + self.lepe(x).permute(0, 2, 3, 1)
        return self.proj(out).permute(0, 3, 1, 2)


class BiFormerBlock(nn.Module):
    """Position by a depthwise convolution, then attention and an MLP, each added to what came in.

    Args:
        dim: channels.
        topk: regions to route to; -2 attends to the whole map with local context, -1 without.
        head_dim: width of a head of routed attention; heads are wider where dim is no multiple of it.
        mlp_ratio: width of the MLP over dim.
        drop_path: rate of stochastic depth.
        before_attn_dwconv: kernel of the position's convolution, 0 for none.
        side_dwconv: kernel of attention's local context, 0 for none.
        pre_norm: normalise what goes into a branch; otherwise what comes out of the sum.
        layer_scale_init_value: first value of a learned factor per channel of both branches, none unless above 0.
        plain_mlp: the MLP of the STL layout (linear, GELU, linear); otherwise with the place of a fourth layer.
        residual: all that is added starts at zero: put into a trained network, the block changes nothing until it is
            trained. Needs `pre_norm` and an output layer.
        attention: further arguments of `BiLevelRoutingAttention`; with the whole map only num_heads (8) has a meaning.
    """

    def __init__(
        self, dim: int, topk: int = 4, head_dim: int = 32, mlp_ratio: float = 3, drop_path: float = 0.0,
        before_attn_dwconv: int = 3, side_dwconv: int = 5, pre_norm: bool = True, layer_scale_init_value: float = -1,
        plain_mlp: bool = False, residual: bool = False, **attention: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        true_or_false(pre_norm=pre_norm, plain_mlp=plain_mlp, residual=residual)
        dim, kernel = whole_number("dim", dim), odd_kernel("before_attn_dwconv", before_attn_dwconv)
        side_dwconv = odd_kernel("side_dwconv", side_dwconv)
        ratio = real_number("mlp_ratio", mlp_ratio, lambda value: 0 < value < math.inf, "a number above 0")
        if (hidden := int(ratio * dim)) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio} leaves nothing of {dim} channels; give at least 1 / {dim}")
        first = real_number("layer_scale_init_value", layer_scale_init_value, math.isfinite, "a number")
        self.pos_embed = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) if kernel else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _attention(dim, topk, head_dim, side_dwconv, attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        middle = [nn.GELU()] if plain_mlp else [nn.Identity(), nn.GELU()]
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), *middle, nn.Linear(hidden, dim))
        self.drop_path = DropPath(drop_path)
        self.pre_norm = pre_norm
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((dim,), first)) if first > 0 else None for _ in range(2))
        if residual:
            self._start_as_nothing()

    def _start_as_nothing(self) -> None:
        """Raise ValueError where the sum itself is normalised, or attention has no last layer to start at zero."""
        if not self.pre_norm:
            raise ValueError("residual=True needs norms before the branches: set pre_norm=true")
        attention: Any = self.attn
        last = attention.proj if isinstance(attention, GlobalAttention) else attention.wo
        if isinstance(last, nn.Identity):
            raise ValueError("residual=True needs attention's output layer: set param_attention=qkvo")
        start_at_zero(last, self.mlp[-1], *filter(None, [self.pos_embed]))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = x.permute(0, 2, 3, 1)  # channels last, for the norms and linear layers
        attended = self.attn((self.norm1(x) if self.pre_norm else x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path(attended if self.gamma1 is None else attended * self.gamma1)
        x = x if self.pre_norm else self.norm1(x)
        mixed = self.mlp(self.norm2(x) if self.pre_norm else x)
        x = x + self.drop_path(mixed if self.gamma2 is None else mixed * self.gamma2)
        return (x if self.pre_norm else self.norm2(x)).permute(0, 3, 1, 2)


def _attention(dim: int, topk: int, head_dim: int, side_dwconv: int, further: dict[str, Any]) -> nn.Module:
    """Attention to routed regions, or to the whole map.

    There are dim / head_dim heads where that divides, else the next smaller number that divides dim. Further arguments
    are those of routed attention, whether the attention at hand is a routed one or not.
    """
    heads = next(n for n in range(max(1, dim // whole_number("head_dim", head_dim)), 0, -1) if dim % n == 0)
    for name in sorted(further.keys() - ROUTING):
        known = sorted(ROUTING | (signature(BiFormerBlock).parameters.keys() - {"dim", "attention"}))
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown argument {name!r}; {hint}a block and its attention take {', '.join(known)}")
    if topk in (GLOBAL, GLOBAL_WITH_CONTEXT):
        kernel = side_dwconv if whole_number("topk", topk, GLOBAL_WITH_CONTEXT) == GLOBAL_WITH_CONTEXT else 0
        return GlobalAttention(dim, further.get("num_heads", 8), kernel)
    note = f"; {GLOBAL_WITH_CONTEXT} attends to the whole map with local context, {GLOBAL} without"
    routed = {"num_heads": heads, "side_dwconv": side_dwconv, **further}
    return BiLevelRoutingAttention(dim, topk=whole_number("topk", topk, note=note), **routed)


class BiFormerStem(nn.Sequential):
    """Images or maps (B, c1, H, W) -> (B, c2, H / 4, W / 4): two strided convolutions."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(
            nn.Conv2d(c1, c2 // 2, 3, 2, 1), nn.BatchNorm2d(c2 // 2), nn.GELU(),
            nn.Conv2d(c2 // 2, c2, 3, 2, 1), nn.BatchNorm2d(c2),
        )  # fmt: skip


class BiFormerMerging(nn.Sequential):
    """(B, c1, H, W) -> (B, c2, H / 2, W / 2): a strided convolution between stages."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__(nn.Conv2d(c1, c2, 3, 2, 1), nn.BatchNorm2d(c2))


class BiFormerStage(nn.Sequential):
    """`n` blocks one after the other.

    In a model description: [from, n, BiFormerStage, [channels, topk, drop_path, {further arguments of a block}]].
    `drop_path` is one rate for all blocks, or the first and last of evenly growing ones. Maps that do not divide into
    regions are padded.
    """

    def __init__(
        self, c1: int, c2: int, n: int = 1, topk: int = 4, drop_path: float | Sequence[float] = 0.0, **block: Any
    ) -> None:
        if c1 != c2:
            raise ValueError(f"a stage keeps its channels: {c1} come in, {c2} asked for; put BiFormerMerging before")
        count = whole_number("n", n)
        ends = drop_path if isinstance(drop_path, (list, tuple)) else (drop_path, drop_path)
        if len(ends) != 2:
            raise ValueError(f"drop_path={drop_path!r}: give one rate, or the first and last of evenly growing ones")
        first, last = map(drop_rate, ends)
        block = {"auto_pad": True, **block}
        rates = (first + (last - first) * i / max(1, count - 1) for i in range(count))
        super().__init__(*(BiFormerBlock(c1, topk, drop_path=rate, **block) for rate in rates))


class BiFormer(nn.Module):
    """The classifier: four stages, each on maps half as wide, then the mean over the last map and a linear layer.

    Args:
        depth, embed_dim, mlp_ratios, topks: blocks, channels, MLP width and routed regions of the four stages.
        num_classes: outputs, 0 for none (`forward` then returns features).
        in_chans: channels of the images.
        n_win: regions per side.
        drop_path_rate: stochastic depth of the last block, growing from 0 at the first.
        auto_pad: take maps that do not divide into n_win regions.
        swin_layout: the STL variant: 4 x 4 patches, merging of 2 x 2, after Swin-T.
        block: further arguments of `BiFormerBlock` and its attention.
    """

    def __init__(
        self, depth: Sequence[int], embed_dim: Sequence[int], mlp_ratios: Sequence[float] = (3, 3, 3, 3),
        topks: Sequence[int] = (1, 4, 16, -2), num_classes: int = 1000, in_chans: int = 3, n_win: int | str = 7,
        drop_path_rate: float = 0.0, auto_pad: bool = False, swin_layout: bool = False, **block: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        stages = {"depths": depth, "widths": embed_dim, "mlp_ratios": mlp_ratios, "topks": topks}
        for name, values in zip(("depth", "embed_dim", "mlp_ratios", "topks"), stages.values(), strict=True):
            if not isinstance(values, (list, tuple)) or not values:
                raise ValueError(f"{name}={values!r}: give a list with one number for each stage")
        if len(set(map(len, stages.values()))) > 1:
            counts = ", ".join(map("{} {}".format, map(len, stages.values()), stages))
            raise ValueError(f"{counts}: give as many of each as there are stages")
        true_or_false(swin_layout=swin_layout)
        num_classes, in_chans = whole_number("num_classes", num_classes, 0), whole_number("in_chans", in_chans)
        depth = list(map(partial(whole_number, "depth"), depth))
        embed_dim = list(map(partial(whole_number, "embed_dim"), embed_dim))
        pairs, first = list(pairwise(embed_dim)), embed_dim[0]
        if swin_layout:
            stem = nn.Sequential(nn.Conv2d(in_chans, first, 4, 4), nn.BatchNorm2d(first))
            mergings = [nn.Sequential(nn.BatchNorm2d(c1), nn.Conv2d(c1, c2, 2, 2)) for c1, c2 in pairs]
        else:
            stem = BiFormerStem(in_chans, first)
            mergings = [BiFormerMerging(c1, c2) for c1, c2 in pairs]
        self.downsample_layers = nn.ModuleList([stem, *mergings])
        block = {"n_win": n_win, "auto_pad": auto_pad, "plain_mlp": swin_layout, **block}
        step, done, made = drop_rate(drop_path_rate) / max(1, sum(depth) - 1), 0, []
        for width, count, topk, ratio in zip(embed_dim, depth, topks, mlp_ratios, strict=True):
            rates = (step * done, step * (done + count - 1))  # of the stage's first and last block
            stage = BiFormerStage(width, width, count, topk, rates, mlp_ratio=ratio, **block)
            made.append(nn.Sequential(OrderedDict(blocks=stage)) if swin_layout else stage)  # as in checkpoints of it
            done += count
        self.stages = nn.ModuleList(made)
        self.norm = nn.BatchNorm2d(embed_dim[-1])
        self.head = nn.Linear(embed_dim[-1], num_classes) if num_classes else nn.Identity()

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """Images (B, in_chans, H, W) -> the map of every stage, strides 4, 8, 16, 32."""
        maps = []
        for reduction, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(reduction(x))
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.head(self.norm(self.forward_stages(x)[-1]).mean((2, 3)))


# The paper's sizes, each a function of the changed arguments of `BiFormer`: T, S and B of 13.1, 25.5 and 56.8 million
# parameters, and STL of 28.4 million, in the layout of Swin-T
biformer_tiny = partial(BiFormer, depth=(2, 2, 8, 2), embed_dim=(64, 128, 256, 512))
biformer_small = partial(BiFormer, depth=(4, 4, 18, 4), embed_dim=(64, 128, 256, 512))
biformer_base = partial(BiFormer, depth=(4, 4, 18, 4), embed_dim=(96, 192, 384, 768))
biformer_stl = partial(
    BiFormer, depth=(2, 2, 6, 2), embed_dim=(96, 192, 384, 768), mlp_ratios=(4, 4, 4, 4), swin_layout=True,
    before_attn_dwconv=0,
)  # fmt: skip


def pyramid_state(published: Mapping[str, Tensor], detector: nn.Module) -> dict[str, Tensor]:
    """Return, by the detector's keys, what the state of a `BiFormer` has for one that is built on the same pyramid.

    Stem and mergings take its downsample layers, stages its stages, in order. Raises ValueError unless it has every
    tensor of these rows; classifiers are left out.
    """
    kinds: dict[str, Any] = {"downsample_layers": (BiFormerStem, BiFormerMerging), "stages": BiFormerStage}
    names: dict[str, str] = {}
    for part, classes in kinds.items():
        rows = [row for row in detector.get_submodule("model").named_children() if isinstance(row[1], classes)]
        for number, (place, row) in enumerate(rows):
            names |= {f"model.{place}.{key}": f"{part}.{number}.{key}" for key in row.state_dict()}
    here = detector.state_dict()
    odd = [name for key, name in names.items() if getattr(published.get(name), "shape", None) != here[key].shape]
    if odd or not names:
        fault = f"{odd[0]} is missing or of another shape" if odd else "it has no such rows"
        remedy = "choose the models/hub/yolov5-biformer-*.yaml of its size by --cfg"
        raise ValueError(f"not BiFormer's pyramid of this model ({fault}); {remedy}")
    return {key: published[name] for key, name in names.items()}


class C3BRA(C3):
    """C3 with a BiFormer block in place of each bottleneck: a drop-in for C3 in model descriptions.

    Arguments after C3's (channels in and out, repeats, shortcut, groups, expansion) belong to the block.
    `shortcut` and `g` have no meaning here: blocks add to what comes in, and their convolutions are depthwise.
    With `residual` bottlenecks stay as they are, and `n` blocks that begin as nothing follow them: with the weights of
    a C3 it computes what that does until it is trained.
    """

    def __init__(
        self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5, residual: bool = False,
        **block: Any,
    ) -> None:  # fmt: skip
        true_or_false(residual=residual)
        super().__init__(c1, c2, n if residual else 0, shortcut, g, e)
        hidden = int(c2 * e)
        blocks = BiFormerStage(hidden, hidden, n, residual=residual, **block)
        self.m = nn.Sequential(*self.m.children(), *blocks) if residual else blocks
