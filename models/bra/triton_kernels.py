"""Routed attention as fused Triton kernels: routed regions are read in place, no score matrix is ever stored.

Forward and the gradient of the queries run over the regions that a region is routed to; the gradients of keys and
values run over the regions that are routed to theirs, found by inverting the lists. Every sum has one owner and a fixed
order, so there are no atomics and two runs are bit-identical. The scheme is FlashAttention's (arXiv:2307.08691).

Legend: N rows (regions of all images), T and L query and key tokens of one, H heads, D width, K routed regions.
Needs CUDA, or TRITON_INTERPRET=1 set before the import, which runs the kernels on the CPU (slowly, for tests).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST_BLOCK = 64  # tokens of a region handled at a time
LARGEST_WIDTH = 128  # of a head: wider ones would spill registers


# Each kernel: tokens are rows of a tile, channels its columns; what lies outside of a region or a head is read as 0.
@triton.jit
def _forward_kernel(
    q, k, v, rows, out, log_sums, scale, T, L, H, D, K,
    qn, qt, qh, kn, kt, kh, vn, vt, vh, on, ot, oh,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // H).to(tl.int64)
    head = (tl.program_id(0) % H).to(tl.int64)
    tokens = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    channels = tl.arange(0, WIDTH)[None, :]
    is_query = (tokens[:, None] < T) & (channels < D)
    queries = tl.load(q + row * qn + head * qh + tokens[:, None] * qt + channels, mask=is_query, other=0.0)
    best = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    for number in range(0, K):
        source = tl.load(rows + row * K + number)
        for start in range(0, L, KEYS):
            there = start + tl.arange(0, KEYS)
            is_key = (there[:, None] < L) & (channels < D)
            keys = tl.load(k + source * kn + head * kh + there[:, None] * kt + channels, mask=is_key, other=0.0)
            values = tl.load(v + source * vn + head * vh + there[:, None] * vt + channels, mask=is_key, other=0.0)
            logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            logits = tl.where(there[None, :] < L, logits, float("-inf"))
            higher = tl.maximum(best, tl.max(logits, 1))
            shrink = tl.exp(best - higher)
            shares = tl.exp(logits - higher[:, None])
            total = total * shrink + tl.sum(shares, 1)
            mixed = mixed * shrink[:, None] + tl.dot(shares.to(values.dtype), values, input_precision="ieee")
            best = higher
    places = out + row * on + head * oh + tokens[:, None] * ot + channels
    tl.store(places, (mixed / total[:, None]).to(out.dtype.element_ty), mask=is_query)
    tl.store(log_sums + (row * H + head) * T + tokens, best + tl.log(total), mask=tokens < T)


@triton.jit
def _query_gradient_kernel(
    q, k, v, rows, out, grad, log_sums, inners, q_grad, scale, T, L, H, D, K,
    qn, qt, qh, kn, kt, kh, vn, vt, vh, on, ot, oh, gn, gt, gh, dn, dt, dh,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // H).to(tl.int64)
    head = (tl.program_id(0) % H).to(tl.int64)
    tokens = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    channels = tl.arange(0, WIDTH)[None, :]
    places = q + row * qn + head * qh + tokens[:, None] * qt + channels
    is_query = (tokens[:, None] < T) & (channels < D)  # after the address: fewer registers are spilled
    queries = tl.load(places, mask=is_query, other=0.0)
    grads = tl.load(grad + row * gn + head * gh + tokens[:, None] * gt + channels, mask=is_query, other=0.0)
    log_sum = tl.load(log_sums + (row * H + head) * T + tokens, mask=tokens < T, other=0.0)
    outs = tl.load(out + row * on + head * oh + tokens[:, None] * ot + channels, mask=is_query, other=0.0)
    inner = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), 1)
    tl.store(inners + (row * H + head) * T + tokens, inner, mask=tokens < T)  # for the gradients of the keys
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    for number in range(0, K):
        source = tl.load(rows + row * K + number)
        for start in range(0, L, KEYS):
            there = start + tl.arange(0, KEYS)
            places = k + source * kn + head * kh + there[:, None] * kt + channels
            is_key = (there[:, None] < L) & (channels < D)
            keys = tl.load(places, mask=is_key, other=0.0)
            values = tl.load(v + source * vn + head * vh + there[:, None] * vt + channels, mask=is_key, other=0.0)
            inside = (tokens[:, None] < T) & (there[None, :] < L)
            logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            shares = tl.where(inside, tl.exp(logits - log_sum[:, None]), 0.0)
            upstream = tl.dot(grads, tl.trans(values), input_precision="ieee")
            change = shares * (upstream - inner[:, None]) * scale
            total += tl.dot(change.to(keys.dtype), keys, input_precision="ieee")
    places = q_grad + row * dn + head * dh + tokens[:, None] * dt + channels
    tl.store(places, total.to(q_grad.dtype.element_ty), mask=is_query)


@triton.jit
def _key_gradient_kernel(
    q, k, v, readers, bounds, grad, log_sums, inners, k_grad, v_grad, scale, T, L, H, D,
    qn, qt, qh, kn, kt, kh, vn, vt, vh, gn, gt, gh, dn, dt, dh,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // H).to(tl.int64)
    head = (tl.program_id(0) % H).to(tl.int64)
    there = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    channels = tl.arange(0, WIDTH)[None, :]
    is_key = (there[:, None] < L) & (channels < D)
    keys = tl.load(k + row * kn + head * kh + there[:, None] * kt + channels, mask=is_key, other=0.0)
    values = tl.load(v + row * vn + head * vh + there[:, None] * vt + channels, mask=is_key, other=0.0)
    k_total = tl.zeros((KEYS, WIDTH), tl.float32)
    v_total = tl.zeros((KEYS, WIDTH), tl.float32)
    for number in range(tl.load(bounds + row), tl.load(bounds + row + 1)):
        reader = tl.load(readers + number)
        for first in range(0, T, QUERIES):
            tokens = first + tl.arange(0, QUERIES)
            is_query = (tokens[:, None] < T) & (channels < D)
            queries = tl.load(q + reader * qn + head * qh + tokens[:, None] * qt + channels, mask=is_query, other=0.0)
            grads = tl.load(grad + reader * gn + head * gh + tokens[:, None] * gt + channels, mask=is_query, other=0.0)
            log_sum = tl.load(log_sums + (reader * H + head) * T + tokens, mask=tokens < T, other=0.0)
            inner = tl.load(inners + (reader * H + head) * T + tokens, mask=tokens < T, other=0.0)
            inside = (tokens[:, None] < T) & (there[None, :] < L)
            logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            shares = tl.where(inside, tl.exp(logits - log_sum[:, None]), 0.0)
            upstream = tl.dot(grads, tl.trans(values), input_precision="ieee")
            change = shares * (upstream - inner[:, None]) * scale
            v_total += tl.dot(tl.trans(shares.to(grads.dtype)), grads, input_precision="ieee")
            k_total += tl.dot(tl.trans(change.to(queries.dtype)), queries, input_precision="ieee")
    places = k_grad + row * dn + head * dh + there[:, None] * dt + channels
    tl.store(places, k_total.to(k_grad.dtype.element_ty), mask=is_key)
    places = v_grad + row * dn + head * dh + there[:, None] * dt + channels
    tl.store(places, v_total.to(v_grad.dtype.element_ty), mask=is_key)


def invert(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Who reads a row: (N, K) -> readers (N * K) grouped by row, and (N + 1) bounds of the groups."""
    read, order = rows.flatten().sort(stable=True)
    edges = torch.arange(rows.shape[0] + 1, device=rows.device, dtype=read.dtype)
    return order // rows.shape[1], torch.searchsorted(read, edges)


class FusedAttention(torch.autograd.Function):
    """Attention of every row's queries over the tokens of its routed rows, given by their numbers (N, K).

    All on one device, heads at most LARGEST_WIDTH wide.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float) -> Tensor:
        """(N, T, H, D)."""
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))  # channels beside each other
        count, queries, heads, width = q.shape
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        log_sums = torch.empty((count, heads, queries), dtype=torch.float32, device=q.device)
        blocks = _blocks(queries, k.shape[1], width)
        with torch.cuda.device_of(q):  # Triton starts kernels on the current GPU, whichever has the tensors
            _forward_kernel[(count * heads, triton.cdiv(queries, blocks["QUERIES"]))](
                q, k, v, rows.contiguous(), out, log_sums, scale, queries, k.shape[1], heads, width, rows.shape[1],
                *_strides(q, k, v, out), **blocks,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, rows, out, log_sums)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Gradients of q, k, v."""
        q, k, v, rows, out, log_sums = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        count, queries, heads, width = q.shape
        inners = torch.empty_like(log_sums)  # output times its gradient, summed over the width
        q_grad, k_grad, v_grad = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        blocks, keys = _blocks(queries, k.shape[1], width), k.shape[1]
        with torch.cuda.device_of(q):
            _query_gradient_kernel[(count * heads, triton.cdiv(queries, blocks["QUERIES"]))](
                q, k, v, rows.contiguous(), out, grad, log_sums, inners, q_grad, ctx.scale, queries, keys, heads, width,
                rows.shape[1], *_strides(q, k, v, out, grad, q_grad), **blocks,
            )  # fmt: skip
            _key_gradient_kernel[(count * heads, triton.cdiv(keys, blocks["KEYS"]))](
                q, k, v, *invert(rows), grad, log_sums, inners, k_grad, v_grad, ctx.scale, queries, keys, heads, width,
                *_strides(q, k, v, grad, k_grad), **blocks,
            )  # fmt: skip
        return q_grad, k_grad, v_grad, None, None


def _strides(*tensors: Tensor) -> list[int]:
    return [step for tensor in tensors for step in tensor.stride()[:3]]


def _blocks(queries: int, keys: int, width: int) -> dict[str, int]:
    """Tile sizes: powers of two, at least 16 as matrix products need, no larger than useful."""
    sides = (min(LARGEST_BLOCK, max(16, triton.next_power_of_2(size))) for size in (queries, keys))
    return {**dict(zip(("QUERIES", "KEYS"), sides, strict=True)), "WIDTH": max(16, triton.next_power_of_2(width))}
