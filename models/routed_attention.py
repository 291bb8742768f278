"""Bi-level routed attention as functions: pick regions by their means, then attend to the tokens of the picked ones.

Method: Zhu et al., "BiFormer: Vision Transformer with Bi-Level Routing Attention", https://arxiv.org/abs/2303.08810.

Legend of the shapes used throughout
    B  pictures              R  regions of a picture    K  regions that each region is routed to
    T  query tokens a region L  key tokens a region     H  heads    D, E  width of a head in q and k, in v
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BACKENDS = ("auto", "reference", "sdpa", "triton", "export")
CHUNK_BYTES = 2**21  # selected keys and values handled at a time on CPU: about what a core's own cache holds


class Routes(NamedTuple):
    """Where each region looks.

    index: (B, R, K) numbers of the routed regions, best first.
    weight: (B, R, K) factors for the keys and values of a routed region, or None for plain selection.
    key_mask: (B, R, L) True where a key token may be attended to, or None when all may.
    """

    index: Tensor
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
    if topk < 1:
        raise ValueError(f"topk={topk}: a region needs at least one region to look at")
    if query_means.dtype in (torch.float16, torch.bfloat16):
        query_means, key_means = query_means.float(), key_means.float()
    with _no_autocast(query_means.device.type):
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
        backend: "reference" (plain matrix products), "sdpa" (PyTorch's fused attention), "triton" (kernels that read
            routed regions in place; CUDA, plain selection only), "export" (nothing but gather, 4-D matrix products and
            softmax, which every exporter knows) or "auto": "export" while a model is traced or exported, otherwise
            "sdpa", on CPUs a few regions at a time. The kernels are taken on request only: they agree under Triton's
            interpreter but were never run on a GPU.

    Returns:
        (B, R, T, H, E). Backends agree up to rounding.
    """
    _check(q, k, v, routes)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    if backend == "reference":
        return attention_and_weights(q, k, v, routes, scale)[0]
    if backend == "triton":
        return _fused(q, k, v, routes, scale)
    if backend == "export" or (backend == "auto" and _is_exporting()):
        return _gather_and_attend(q, k, v, routes, scale)
    if q.device.type == "cpu" and _is_plain(q, k, v, routes):
        return _ChunkedAttention.apply(q, k, v, routes.index, scale)
    return _select_and_attend(q, k, v, routes, scale)


def attention_and_weights(q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> tuple[Tensor, Tensor]:
    """The definition, written out: output (B, R, T, H, E) and attention weights (B, R, H, T, K * L)."""
    k, v, mask = _selected(k, v, routes)
    logits = torch.einsum("brthd,brshd->brhts", q * scale, k)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, :, None, None], float("-inf"))
    weights = logits.softmax(dim=-1)
    return torch.einsum("brhts,brshe->brthe", weights.to(v.dtype), v), weights


def _no_autocast(device_type: str) -> AbstractContextManager:
    """Full precision for a while; devices without autocast (meta) have nothing to turn off."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _check(q: Tensor, k: Tensor, v: Tensor, routes: Routes) -> None:
    if not q.ndim == k.ndim == v.ndim == 5:
        raise ValueError(f"q, k, v must be (B, R, tokens, heads, width), got {q.ndim}, {k.ndim}, {v.ndim} dimensions")
    if q.shape[:2] != k.shape[:2] or k.shape[:4] != v.shape[:4] or q.shape[3:] != k.shape[3:]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if routes.index.shape[:2] != q.shape[:2]:
        raise ValueError(f"routes for {tuple(routes.index.shape[:2])} regions, queries for {tuple(q.shape[:2])}")


def _row_numbers(index: Tensor, regions: int) -> Tensor:
    """(B, R, K) numbers of regions within a picture of `regions` -> (B * R * K) numbers within the batch."""
    first = torch.arange(index.shape[0], device=index.device) * regions
    return (index + first[:, None, None]).flatten()


def _selected(k: Tensor, v: Tensor, routes: Routes) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values (B, R, K * L, H, width) of the routed regions, weighted, and which of them count."""
    k, v = select_regions(k, routes.index), select_regions(v, routes.index)
    if routes.weight is not None:
        weight = routes.weight.to(k.dtype)[..., None, None, None]
        k, v = k * weight, v * weight
    mask = None if routes.key_mask is None else select_regions(routes.key_mask, routes.index).flatten(2, 3)
    return k.flatten(2, 3), v.flatten(2, 3), mask


def _select_and_attend(q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> Tensor:
    """Row selection and PyTorch's attention: works on every device, under tracing and with every kind of routes."""
    batch, regions = q.shape[:2]
    k, v, mask = _selected(k, v, routes)
    heads_first = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # (B * R, H, tokens, width)
    mask = None if mask is None else mask.flatten(0, 1)[:, None, None]
    out = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, scale=scale)
    return out.transpose(1, 2).unflatten(0, (batch, regions))


def _gather_and_attend(q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> Tensor:
    """The same with operators that every exporter and runtime has; the batch may stay dynamic."""
    regions = q.shape[1]
    k, v, mask = _selected(k, v, routes)
    q, k, v = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))  # (B * R, H, tokens, width)
    logits = (q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits.masked_fill(~mask.flatten(0, 1)[:, None, None], float("-inf"))
    out = logits.softmax(dim=-1).to(v.dtype) @ v
    return out.transpose(1, 2).unflatten(0, (-1, regions))


def _is_exporting() -> bool:
    """Whether the operators are being written down for another runtime."""
    return torch.jit.is_tracing() or torch.compiler.is_exporting()


def _fused(q: Tensor, k: Tensor, v: Tensor, routes: Routes, scale: float) -> Tensor:
    """The Triton kernels; ValueError where they cannot run."""
    if routes.weight is not None or routes.key_mask is not None or q.shape[-1] != v.shape[-1]:
        raise ValueError("backend 'triton' takes no routing weights, no mask and one head width; use 'sdpa' or 'auto'")
    if find_spec("triton") is None:
        raise ValueError("backend 'triton' needs the package triton; install it or use 'sdpa' or 'auto'")
    if q.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"backend 'triton' runs on CUDA, not on {q.device.type}; use 'sdpa' or 'auto'")
    from models.routed_attention_triton import fused_attention

    rows = _row_numbers(routes.index, k.shape[1]).unflatten(0, (-1, routes.index.shape[-1]))
    return fused_attention(*(x.flatten(0, 1) for x in (q, k, v)), rows, scale).unflatten(0, q.shape[:2])


def _is_plain(q: Tensor, k: Tensor, v: Tensor, routes: Routes) -> bool:
    """Plain selection in eager mode with one width and one type for all: what hand-made kernels are for."""
    return (
        routes.weight is None
        and routes.key_mask is None
        and q.shape[-1] == v.shape[-1]
        and q.dtype == k.dtype == v.dtype
        and q.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class _ChunkedAttention(torch.autograd.Function):
    """Routed attention for CPUs: a few regions at a time, so that what is selected for them stays in the cache.

    Nothing K-fold is ever stored: the backward selects again, and adds the gradients of selected rows straight into
    the gradients of k and v, in a fixed order.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> Tensor:
        """(B, R, T, H, D); keeps the logarithms of the softmax's sums for the backward."""
        q_rows, k_rows, v_rows = (x.flatten(0, 1) for x in (q, k, v))  # (B * R, tokens, H, D)
        rows = _row_numbers(index, k.shape[1]).unflatten(0, (-1, index.shape[-1]))  # (B * R, K)
        out = torch.empty_like(q_rows, memory_format=torch.contiguous_format)
        log_sums = []
        for part in _chunks(k_rows, rows):
            selected = (_rows_of(x, rows[part]) for x in (k_rows, v_rows))
            chunk, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q_rows[part].transpose(1, 2), *selected, scale=scale
            )
            out[part] = chunk.transpose(1, 2)
            log_sums.append(log_sum)
        ctx.save_for_backward(q, k, v, rows, out, *log_sums)
        ctx.scale = scale
        return out.view(*q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of q, k, v, computed in at least float32: the half-precision kernel is several times slower."""
        q, k, v, rows, out, *log_sums = ctx.saved_tensors
        wide = torch.promote_types(q.dtype, torch.float32)
        q_rows, k_rows, v_rows, grad = (x.flatten(0, 1) for x in (q, k, v, grad))
        q_grad = torch.empty_like(out)
        k_grad, v_grad = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k_rows, v_rows))
        for part, log_sum in zip(_chunks(k_rows, rows), log_sums, strict=True):
            selected = (_rows_of(x, rows[part]).to(wide) for x in (k_rows, v_rows))
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[part].to(wide).transpose(1, 2), q_rows[part].to(wide).transpose(1, 2), *selected,
                out[part].to(wide).transpose(1, 2), log_sum, 0.0, False, scale=ctx.scale,
            )  # fmt: skip
            q_grad[part] = grads[0].transpose(1, 2)
            flat = rows[part].flatten()
            for total, chunk in ((k_grad, grads[1]), (v_grad, grads[2])):
                total.index_add_(0, flat, chunk.transpose(1, 2).unflatten(1, (rows.shape[1], -1)).flatten(0, 1))
        k_grad, v_grad = k_grad.to(k.dtype), v_grad.to(v.dtype)
        return q_grad.view(q.shape), k_grad.view(k.shape), v_grad.view(v.shape), None, None


def _chunks(k_rows: Tensor, rows: Tensor) -> list[slice]:
    """Slices of regions whose selected keys and values take about CHUNK_BYTES."""
    per_region = 2 * k_rows[0].numel() * k_rows.element_size() * rows.shape[1]
    step = max(1, CHUNK_BYTES // max(1, per_region))
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (n, K) of x (B * R, L, H, D), heads first: (n, H, K * L, D)."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape).flatten(1, 2).transpose(1, 2)
