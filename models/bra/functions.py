"""Bi-level routed attention as functions: pick regions by their means, then attend to the tokens of the picked ones.

Method: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", https://arxiv.org/abs/2303.08810.

Legend of the shapes used throughout
    B  images                R  regions of an image     K  regions that each region is routed to
    T  query tokens a region L  key tokens a region     H  heads    D, E  width of a head in q and k, in v
"""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.bra.arguments import one_of, whole_number

BACKENDS = ("auto", "reference", "sdpa", "triton", "export")
CHUNK_BYTES = 2**20  # scores, keys and values that a thread works on at a time on CPU: within a core's own cache
ROW_BYTES = 2**24  # scores of one head of one region that may be in memory at once


class Routes(NamedTuple):
    """Where each region looks.

    index: (B, R, K) numbers of the routed regions, best first.
    weight: (B, R, K) factors for the keys and values of a routed region, or None for plain selection.
    key_mask: (B, R, L) True where a key token may be attended to, or None when all may.
    """

    index: Tensor  # type: ignore[assignment]  # hides a method of tuples that nobody calls
    weight: Tensor | None = None
    key_mask: Tensor | None = None


def route(query_means: Tensor, key_means: Tensor, topk: int, scale: float, allowed: Tensor | None = None) -> Routes:
    """Rank regions by the affinity of their mean query and mean key; keep the best.

    Args:
        query_means, key_means: (B, R, C) means over the tokens of each region.
        topk: regions to keep; more than there are means all of them.
        scale: factor of the affinities before the softmax that makes the weights.
        allowed: (B, R) or (1, R) True where a region may be routed to; the others come last, with weight 0.

    Half-precision means are compared in float32: rounding would tie regions that differ.
    """
    topk = whole_number("topk", topk)
    if query_means.ndim != 3 or query_means.shape != key_means.shape:
        found = f"query_means {tuple(query_means.shape)}, key_means {tuple(key_means.shape)}"
        raise ValueError(f"{found}: give both as (B, R, C)")
    batch, regions = query_means.shape[:2]
    if allowed is not None and (allowed.dtype != torch.bool or allowed.shape not in ((1, regions), (batch, regions))):
        raise ValueError(f"allowed {tuple(allowed.shape)} of {allowed.dtype}: give torch.bool, (B, R) or (1, R)")
    if query_means.dtype in (torch.float16, torch.bfloat16):
        query_means, key_means = query_means.float(), key_means.float()
    kind = query_means.device.type  # meta tensors have no autocast to turn off; others are not asked whether they have
    with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
        affinity = (query_means * scale) @ key_means.transpose(-2, -1)  # (B, R, R)
    if allowed is not None:
        affinity = affinity.masked_fill(~allowed.unsqueeze(-2), float("-inf"))
    best, index = affinity.topk(min(topk, affinity.shape[-1]), dim=-1)
    return Routes(index, best.softmax(dim=-1))


def select_regions(x: Tensor, index: Tensor) -> Tensor:
    """Copy the routed regions of x (B, R, ...) side by side: (B, R, K, ...) for index (B, R, K).

    A region is one row of memory, so this is `index_select`, whose backward adds whole rows; `gather` through an
    expanded view computes the same and walks B*R*R*... elements backward.
    """
    rows = x.flatten(0, 1).index_select(0, _row_numbers(index, x.shape[1]))
    return rows.unflatten(0, index.shape)


def routed_attention(
    q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Softmax attention of each region's queries over the tokens of its routed regions.

    Args:
        q: (B, R, T, H, D) queries. k: (B, R, L, H, D) keys. v: (B, R, L, H, E) values.
        routes: from `route`, or made by hand.
        scale: factor of the logits, D ** -0.5 when None.
        backend: "reference" and "export" (gather, 4-D matrix products and softmax, which every exporter knows), "sdpa"
            (PyTorch's fused attention), "triton" (kernels that read routed regions in place; CUDA, plain selection
            only) or "auto": "export" while a model is traced or exported, otherwise "sdpa", on CPUs a few regions at a
            time. The kernels are taken on request only: they agree under Triton's interpreter but were never run on a
            GPU.

    Returns:
        (B, R, T, H, E). Backends agree up to rounding.

    Raises ValueError for shapes that do not fit and, on a CPU outside of compilers and traces, for numbers of regions
    out of range and for masks that leave a region no key.
    """
    _check(q, k, v, routes)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    one_of("backend", backend, BACKENDS)
    if backend == "triton":
        return _fused(q, k, v, routes, scale)
    written_out = ("reference", "export", "auto" if torch.jit.is_tracing() or torch.compiler.is_exporting() else "")
    if backend in written_out:
        return attention_and_weights(q, k, v, routes, scale)[0]
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    if all((eager, q.device.type == "cpu", routes.weight is None, q.dtype == k.dtype == v.dtype, q.numel() > 0)):
        return _ChunkedAttention.apply(q, k, v, routes, scale)
    queries, keys, values, mask = _selected(q, k, v, routes)
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).unflatten(0, (-1, q.shape[1]))


def attention_and_weights(q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> tuple[Tensor, Tensor]:
    """The definition, written out: output (B, R, T, H, E) and attention weights (B, R, H, T, K * L).

    Its operators are those that every exporter and runtime has; the batch may stay dynamic.
    """
    q, k, v, mask = _selected(q, k, v, routes)
    logits = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    weights = logits.softmax(dim=-1)
    shape = (-1, routes.index.shape[1])
    return (weights.to(v.dtype) @ v).transpose(1, 2).unflatten(0, shape), weights.unflatten(0, shape)


def triton_runs_on(device: torch.device) -> bool:
    """Whether the fused kernels can be started there: on CUDA, or anywhere under Triton's interpreter."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _check(q: Tensor, k: Tensor, v: Tensor, routes: Routes) -> None:
    """Raise ValueError for shapes that do not fit each other, or routes that do not fit them.

    Numbers are looked at where that costs next to nothing: not on a GPU, which would be waited for, nor while a
    compiler or a trace writes down what is done.
    """
    if not q.ndim == k.ndim == v.ndim == 5:
        raise ValueError(f"q, k, v must be (B, R, tokens, heads, width), got {q.ndim}, {k.ndim}, {v.ndim} dimensions")
    if q.shape[:2] != k.shape[:2] or k.shape[:4] != v.shape[:4] or q.shape[3:] != k.shape[3:]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    index = routes.index
    if index.ndim != 3 or index.shape[:2] != k.shape[:2]:
        found = f"routes for {tuple(index.shape)}, queries for {tuple(k.shape[:2])} regions"
        raise ValueError(f"{found}: give routes.index as (B, R, K)")
    if index.shape[2] < 1:
        raise ValueError(f"routes.index {tuple(index.shape)}: a region needs at least one region to look at")
    if index.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"routes.index is {index.dtype}: give numbers of regions as torch.int64")
    _check_extras(*routes, k)


def _check_extras(index: Tensor, weight: Tensor | None, mask: Tensor | None, k: Tensor) -> None:
    if weight is not None and weight.shape != index.shape:
        found = f"routes.weight {tuple(weight.shape)} for routes.index {tuple(index.shape)}"
        raise ValueError(f"{found}: give one weight for each route")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != k.shape[:3]):
        found = f"routes.key_mask {tuple(mask.shape)} of {mask.dtype}"
        raise ValueError(f"{found}: give torch.bool, one for each key: {tuple(k.shape[:3])}")
    if type(index) is Tensor and index.device.type == "cpu" and index.numel() > 0:
        _check_numbers(index, mask)


def _check_numbers(index: Tensor, mask: Tensor | None) -> None:
    """A region out of range would be one of the next image; a softmax of nothing is not a number."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return
    last = index.shape[1] - 1
    low, high = (int(bound) for bound in index.aminmax())
    if low < 0 or high > last:
        raise ValueError(f"routes.index goes from {low} to {high}: give numbers of regions from 0 to {last}")
    if mask is not None and not mask.any(2).gather(1, index.flatten(1).long()).view(index.shape).any(2).all():
        raise ValueError("routes.key_mask leaves a region without any key to attend to: give each at least one")


def _row_numbers(index: Tensor, regions: int) -> Tensor:
    """(B, R, K) numbers of regions within an image of `regions` -> (B * R * K) numbers within the batch."""
    first = torch.arange(index.shape[0], device=index.device) * regions
    return (index + first[:, None, None]).flatten()


def _selected(q: Tensor, k: Tensor, v: Tensor, routes: Routes) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries (B * R, H, T, width), keys and values (B * R, H, K * L, width) of the routed regions, weighted, and which
    of them count, (B * R, 1, 1, K * L).
    """
    k, v = select_regions(k, routes.index), select_regions(v, routes.index)
    if routes.weight is not None:
        weight = routes.weight.to(k.dtype)[..., None, None, None]
        k, v = k * weight, v * weight
    mask = None if routes.key_mask is None else select_regions(routes.key_mask, routes.index)
    mask = None if mask is None else mask.flatten(2, 3).flatten(0, 1)[:, None, None]
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k.flatten(2, 3), v.flatten(2, 3)))
    return q, k, v, mask


def _fused(q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> Tensor:
    """The Triton kernels; ValueError where they cannot run."""
    if routes.weight is not None or routes.key_mask is not None or q.shape[-1] != v.shape[-1]:
        raise ValueError("backend 'triton' takes no routing weights, no mask and one head width; use 'sdpa' or 'auto'")
    if find_spec("triton") is None:
        raise ValueError("backend 'triton' needs the package triton; install it or use 'sdpa' or 'auto'")
    if not triton_runs_on(q.device):
        raise ValueError(f"backend 'triton' runs on CUDA, not on {q.device.type}; use 'sdpa' or 'auto'")
    from models.bra.triton_kernels import LARGEST_WIDTH, FusedAttention

    if q.shape[-1] > LARGEST_WIDTH:
        raise ValueError(f"heads are {q.shape[-1]} wide; backend 'triton' takes at most {LARGEST_WIDTH}")
    rows = _row_numbers(routes.index, k.shape[1]).unflatten(0, (-1, routes.index.shape[-1]))
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return FusedAttention.apply(q, k, v, rows, scale).unflatten(0, routes.index.shape[:2])


class _ChunkedAttention(torch.autograd.Function):
    """Routed attention for CPUs: a few heads of a few regions at a time, so that their scores stay in the cache.

    Nothing K-fold is ever stored: the backward selects again, computes the scores again, and adds the gradients of
    selected rows straight into the gradients of k and v, in a fixed order. Half precision is widened chunk by chunk.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> Tensor:
        """(B, R, T, H, E)."""
        regions, heads = q.shape[:2], q.shape[3]
        routed = _row_numbers(routes.index, q.shape[1]).view(math.prod(regions), 1, routes.index.shape[-1]) * heads
        routed = (routed + torch.arange(heads)[:, None]).flatten(0, 1)
        hidden = None if routes.key_mask is None else ~routes.key_mask.flatten(0, 1).repeat_interleave(heads, 0)
        q, k, v = (x.transpose(2, 3).flatten(0, 2).contiguous() for x in (q, k, v))
        rows = _HeadRows(q, k, v, routed, hidden, scale, torch.promote_types(q.dtype, torch.float32))
        ctx.save_for_backward(q, k, v, routed, hidden)
        ctx.scale, ctx.regions = scale, regions
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        chunks, room = rows.chunks()
        memory = torch.empty(room, dtype=rows.wide)
        for chunk in chunks:
            scores, _, _, values = rows.attend(chunk, memory)
            out[chunk] = scores @ values
        return out.unflatten(0, (*regions, -1)).transpose(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v; that of the scores is made of them, as in the backward of any softmax."""
        q, k, v, routed, hidden = ctx.saved_tensors
        rows = _HeadRows(q, k, v, routed, hidden, ctx.scale, wide := torch.promote_types(q.dtype, torch.float32))
        grad = grad.transpose(2, 3).flatten(0, 2)
        q_grad = torch.empty_like(rows.q)
        k_grad, v_grad = (torch.zeros(x.shape, dtype=wide) for x in (rows.k, rows.v))
        chunks, room = rows.chunks()
        memory, more = torch.empty(room, dtype=wide), torch.empty(room, dtype=wide)
        for chunk in chunks:
            scores, queries, keys, values = rows.attend(chunk, memory)
            out_grad, routed = grad[chunk].to(wide), rows.routed[chunk[0]].flatten()
            v_grad.index_add_(0, routed, (scores.mT @ out_grad).view(-1, *v_grad.shape[1:]))
            logit_grad = torch.bmm(out_grad, values.mT, out=more[: scores.numel()].view(scores.shape))
            torch.ops.aten._softmax_backward_data.out(logit_grad, scores, -1, wide, grad_input=logit_grad)
            k_grad.index_add_(0, routed, (logit_grad.mT @ queries).view(-1, *k_grad.shape[1:]))
            q_grad[chunk] = (logit_grad @ keys).mul_(ctx.scale)
        grads = (x.to(grad.dtype).unflatten(0, (*ctx.regions, -1)).transpose(2, 3) for x in (q_grad, k_grad, v_grad))
        return *grads, None, None


class _HeadRows(NamedTuple):
    """The attention as rows, one for each head of each region: N = B * R * H of them."""

    q: Tensor  # (N, T, D)
    k: Tensor  # (N, L, D)
    v: Tensor  # (N, L, E)
    routed: Tensor  # (N, K) rows whose keys and values a row attends to
    hidden: Tensor | None  # (N, L) True where a key may not be attended to
    scale: float
    wide: torch.dtype  # what is computed in

    def chunks(self) -> tuple[list[tuple[slice, slice]], int]:
        """Rows and their query tokens that make about CHUNK_BYTES of work a thread, and the scores of the largest.

        Only a row with more than ROW_BYTES of scores is cut into runs of query tokens.
        """
        keys = self.routed.shape[1] * self.k.shape[1]
        size = keys * self.wide.itemsize
        tokens = min(self.q.shape[1], max(1, ROW_BYTES // size))
        step = max(1, CHUNK_BYTES // (size * (tokens + 2 * self.k.shape[2]))) * torch.get_num_threads()
        rows = [slice(first, first + step) for first in range(0, len(self.routed), step)]
        runs = [slice(first, first + tokens) for first in range(0, self.q.shape[1], tokens)]
        return [(row, run) for row in rows for run in runs], min(step, len(self.routed)) * tokens * keys

    def attend(self, chunk: tuple[slice, slice], memory: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Softmax (n, t, K * L), scaled queries (n, t, D), selected keys and values (n, K * L, width), all wide.

        The scores lie in `memory`, which is used for every chunk: fresh pages would cost more than the arithmetic.
        """
        routed = self.routed[chunk[0]]
        keys, values = (
            x.index_select(0, routed.flatten()).to(self.wide).view(len(routed), -1, x.shape[-1])
            for x in (self.k, self.v)
        )
        queries = self.q[chunk].to(self.wide) * self.scale
        shape = (*queries.shape[:2], keys.shape[1])
        scores = torch.bmm(queries, keys.mT, out=memory[: math.prod(shape)].view(shape))
        if self.hidden is not None:
            scores.masked_fill_(self.hidden[routed].flatten(1)[:, None], float("-inf"))
        return torch.softmax(scores, -1, out=scores), queries, keys, values
