"""Every mode of the attention: by a definition written out, by numerical derivatives, and backend by backend."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call

from models.bra.attention import BiLevelRoutingAttention
from models.bra.modes import best_side

CPU_BACKENDS = ("reference", "auto")  # on a CPU "export" is the first, "sdpa" the second
MODES = {
    "identity": {},
    "ada_avgpool": {"kv_downsample_mode": "ada_avgpool", "kv_per_win": 2},
    "ada_maxpool": {"kv_downsample_mode": "ada_maxpool", "kv_per_win": 2},
    "avgpool": {"kv_downsample_mode": "avgpool", "kv_downsample_ratio": 2},
    "maxpool": {"kv_downsample_mode": "maxpool", "kv_downsample_ratio": 2},
    "fracpool": {"kv_downsample_mode": "fracpool", "kv_downsample_ratio": 2, "region_size": 7},  # 7 / 2 leaves a choice
    "conv": {"kv_downsample_mode": "conv", "kv_downsample_ratio": 2, "kv_downsample_kernel": 3},
    "soft": {"soft_routing": True},
    "soft, learned": {"soft_routing": True, "diff_routing": True, "param_routing": True},
    "straight through": {"diff_routing": True},
    "straight through, learned": {"diff_routing": True, "param_routing": True},
    "masked": {"mask_padding": True},
    "masked pool": {"mask_padding": True, "kv_downsample_mode": "ada_avgpool", "kv_per_win": 2},
    "masked, soft, learned": {"mask_padding": True, "soft_routing": True, "diff_routing": True, "param_routing": True},
    "oblong regions": {"region_size": (3, 2)},
    "auto": {"n_win": "auto"},
    "scaled by head": {"qk_scale": "head"},
    "no output layer": {"param_attention": "qkv"},
    "narrow keys": {"qk_dim": 4},
    "no local context": {"side_dwconv": 0},
}


def make(**changes) -> BiLevelRoutingAttention:
    """An 8-channel layer with 2 x 2 regions and two heads, in float64."""
    torch.manual_seed(0)
    given = {"dim": 8, "n_win": 2, "num_heads": 2, "topk": 2, **changes}
    layer = BiLevelRoutingAttention(**given).double()
    with torch.no_grad():  # larger than at the start of a training, so that attention is far from uniform
        for parameter in layer.qkv.parameters():
            parameter.mul_(3)
        for parameter in layer.kv_down.parameters():  # which starts as an average
            parameter.add_(torch.rand_like(parameter) / 4)
    return layer


def image(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def gradients(layer: BiLevelRoutingAttention, x: Tensor, seed: int = 0) -> list[Tensor]:
    """The output, the gradient at the input, and those of all parameters as one vector, of a fixed sum of outputs."""
    x = x.detach().clone().requires_grad_()
    torch.manual_seed(seed)  # fracpool draws
    out = layer(x)
    loss = (out * image(*out.shape, seed=9, dtype=out.dtype).to(out.device)).sum()
    found = torch.autograd.grad(loss, [x, *layer.parameters()])
    return [out.detach(), found[0], torch.cat([g.flatten() for g in found[1:]])]


# ---- derivatives
def differentiable(layer: BiLevelRoutingAttention, given: dict, x: Tensor) -> BiLevelRoutingAttention:
    """A layer whose true derivative at `x` is the gradient that `layer` promises.

    Where routing weights are detached they are held at their values here. Straight-through weights count as one and
    have the gradient of the weight, so they are held at w - w(x) + 1.
    """
    soft, follows = given.get("soft_routing", False), given.get("diff_routing", False)
    if soft == follows:
        return layer
    twin = make(**{**given, "soft_routing": True}).train(layer.training)
    twin.load_state_dict(layer.state_dict())
    seen: list[tuple[Tensor, Tensor]] = []
    hook = twin.router.register_forward_hook(lambda module, inputs, output: seen.append(output))
    twin(x)
    hook.remove()
    weight, index = (part.detach() for part in seen[0])
    if soft:
        twin.router.register_forward_hook(lambda module, inputs, output: (weight, index))
    else:
        twin.router.register_forward_hook(lambda module, inputs, output: (output[0] - weight + 1, output[1]))
    return twin


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mode", [*MODES, "fracpool in training"])
def test_gradients_are_derivatives(mode: str, backend: str) -> None:
    """With respect to the input and every parameter, on a map that does not divide into regions."""
    given = {**MODES[mode.removesuffix(" in training")], "backend": backend}
    layer = make(**given).train(mode.endswith("training"))
    x = image(1, 8, 5, 7).requires_grad_()
    twin = differentiable(layer, given, x)
    names = [name for name, _ in twin.named_parameters()]

    def run(value: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(3)
        return functional_call(twin, dict(zip(names, parameters, strict=True)), (value,))

    assert torch.autograd.gradcheck(run, (x, *twin.parameters()), fast_mode=True)
    for found, expected in zip(gradients(layer, x), gradients(twin, x), strict=True):
        torch.testing.assert_close(found, expected)


# ---- the definition
def windows(layer: BiLevelRoutingAttention, side: int, axis: int) -> list[range]:
    """Which tokens along one side of a region make a cell of its keys; some may lie outside of the region."""
    down: Any = layer.kv_down
    match type(down).__name__:
        case "KVDownsample":
            return [range(i, i + 1) for i in range(side)]
        case "PooledKV" if cells := down.per_win:
            return [range(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        case "PooledKV":
            length = min(down.ratio, side)
            return [range(i * length, (i + 1) * length) for i in range(side // length)]
        case "ConvKV":
            cells, kernel = -(-side // down.ratio), down.conv.kernel_size[axis]
            first = -(max(0, (cells - 1) * down.ratio + kernel - side) // 2)
            return [range(first + i * down.ratio, first + i * down.ratio + kernel) for i in range(cells)]
    cells = max(1, round(side / down.ratio))  # fracpool, in evaluation: the middle of what chance could give
    length = min(down.kernel, side - cells + 1)
    pace = Fraction(side - length, max(1, cells - 1))
    starts = [math.floor((i + Fraction(1, 2)) * pace) - math.floor(pace / 2) for i in range(cells)]
    return [range(a, max(a + length, b)) for a, b in pairwise([*starts, side])]  # no token is left out


def thinned(layer: BiLevelRoutingAttention, tokens: Tensor, real: Tensor) -> Tensor:
    """Keys and values (h, w, C) of one region -> those that are attended to (L, C), without what is padding."""
    height, width = real.shape
    found = []
    for rows, cols in product(windows(layer, height, 0), windows(layer, width, 1)):
        inside = [(r, c) for r, c in product(rows, cols) if 0 <= r < height and 0 <= c < width and real[r, c]]
        if not inside:
            continue
        if type(layer.kv_down).__name__ == "ConvKV":
            kernel = layer.kv_down.conv.weight[:, 0]
            parts = [kernel[:, r - rows[0], c - cols[0]] * tokens[r, c] for r, c in inside]
            found.append(sum(parts) + layer.kv_down.conv.bias)
            continue
        values = torch.stack([tokens[place] for place in inside])
        averages = getattr(layer.kv_down, "averages", False)
        found.append(values.mean(0) if averages else values.amax(0))
    return torch.stack(found)


def cut(given: dict, height: int, width: int) -> tuple[int, int, int, int]:
    """Rows and columns of regions, and the tokens of one from top to bottom and from left to right."""
    size, count = given.get("region_size"), given.get("n_win")
    if size is None:
        count = best_side(height, width, given["dim"], given["topk"]) if count == "auto" else count
        return count, count, math.ceil(height / count), math.ceil(width / count)
    tall, wide = size if isinstance(size, tuple) else (size, size)
    tall, wide = min(tall, height), min(wide, width)
    return math.ceil(height / tall), math.ceil(width / wide), tall, wide


def scale_of(given: dict) -> float:
    """What logits and affinities are multiplied by."""
    width, scale = given.get("qk_dim", given["dim"]), given.get("qk_scale")
    return (width // given["num_heads"]) ** -0.5 if scale == "head" else scale or width**-0.5


def by_hand(layer: BiLevelRoutingAttention, given: dict, x: Tensor) -> Tensor:
    """One image (C, H, W), one region after the other; padding is left out of everything where it is masked."""
    (height, width), scale = x.shape[1:], scale_of(given)
    rows, cols, side, across = cut(given, height, width)
    tall, wide = rows * side, cols * across
    qkv = layer.qkv.qkv(F.pad(x, (0, wide - width, 0, tall - height)).permute(1, 2, 0))
    real = torch.ones(tall, wide, dtype=torch.bool)
    if layer.mask_padding:
        real[height:], real[:, width:] = False, False
    q, kv = qkv[..., : layer.qk_dim], qkv[..., layer.qk_dim :] * real[..., None]
    corners = product(range(0, tall, side), range(0, wide, across))
    boxes = [(slice(top, top + side), slice(left, left + across)) for top, left in corners]
    boxes = [box for box in boxes if real[box].any()]
    looks = [layer.router.emb(q[box][real[box]].mean(0)) for box in boxes]
    shows = [layer.router.emb(kv[box][real[box]].mean(0)[: layer.qk_dim]) for box in boxes]
    found = [thinned(layer, kv[box], real[box]) for box in boxes]
    out = torch.zeros(tall, wide, layer.dim, dtype=x.dtype)
    for box, look in zip(boxes, looks, strict=True):
        affinity = torch.stack([look @ show * scale for show in shows])
        best = affinity.sort(descending=True).indices[: layer.topk]
        weights = affinity[best].softmax(0) if given.get("soft_routing") else torch.ones(len(best))
        seen = torch.cat([found[i] * w for i, w in zip(best.tolist(), weights, strict=True)])
        k, v = seen[:, : layer.qk_dim].chunk(layer.num_heads, 1), seen[:, layer.qk_dim :].chunk(layer.num_heads, 1)
        heads = zip(q[box].chunk(layer.num_heads, -1), k, v, strict=True)
        out[box] = torch.cat([(qh @ kh.T * scale).softmax(-1) @ vh for qh, kh, vh in heads], -1)
    if layer.lepe is not None:
        context = layer.lepe(kv[..., layer.qk_dim :].permute(2, 0, 1)[None])
        out = out + context[0].permute(1, 2, 0)
    return layer.wo(out)[:height, :width].permute(2, 0, 1)


@st.composite
def layers(draw: st.DrawFn, **fixed: object) -> dict:
    """Arguments of a layer: any mixture of modes, a few widths, any number of routed regions."""
    heads = draw(st.sampled_from([1, 2, 3]))
    learned, soft = draw(st.booleans()), draw(st.booleans())
    follows = learned or draw(st.booleans())
    cut = draw(st.sampled_from([{"n_win": n} for n in (1, 2, 3, 5, 7, "auto")] + [{"region_size": n} for n in SIZES]))
    mode = draw(st.sampled_from(list(MODES)[:7]))
    return {
        **MODES[mode],
        "region_size": None,
        **cut,
        "kv_per_win": draw(st.sampled_from([1, 2, 3])),
        "dim": heads * draw(st.sampled_from([1, 4, 5])),
        "qk_dim": heads * draw(st.sampled_from([3, 4])),
        "num_heads": heads,
        "topk": draw(st.sampled_from([1, 2, 4, 1000])),
        "soft_routing": soft,
        "diff_routing": follows,
        "param_routing": learned,
        "mask_padding": draw(st.booleans()),
        "side_dwconv": draw(st.sampled_from([0, 3, 5])),
        "qk_scale": draw(st.sampled_from([None, "head", 0.7])),
        "param_attention": draw(st.sampled_from(["qkvo", "qkv"])),
        **fixed,
    }


SIZES = (1, 3, 6, 7, 8, (11, 12), (2, 5))
SIDES = st.sampled_from([1, 2, 3, 5, 6, 7, 9, 12, 14])


@settings(max_examples=40, deadline=None)
@given(given=layers(), batch=st.integers(1, 3), height=SIDES, width=SIDES, seed=st.integers(0, 99))
def test_every_mixture_is_what_the_definition_says(given: dict, batch: int, height: int, width: int, seed: int) -> None:
    layer = make(**given).eval()
    x = image(batch, layer.dim, height, width, seed=seed)
    with torch.no_grad():
        expected = torch.stack([by_hand(layer, given, one) for one in x])
        found = layer(x)
        assert found.shape == x.shape
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(layer(x.flip(0)).flip(0), expected)  # no image sees another


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size, kernel", [(3, None), (4, 3), (7, None), (9, 3)])
@pytest.mark.parametrize("mode", list(MODES)[:7])
def test_every_pool_is_what_the_definition_says(mode: str, size: int, kernel: int | None, masked: bool) -> None:
    """Of the last row of regions two rows of tokens are real, of the last column all but one."""
    pool = {"kv_downsample_mode": mode, "kv_downsample_ratio": 2, "kv_downsample_kernel": kernel, "kv_per_win": 2}
    given = {"dim": 8, "num_heads": 2, "topk": 2, "region_size": size, "mask_padding": masked, **pool}
    layer, x = make(**given).eval(), image(1, 8, size + 2, 2 * size - 1)
    torch.testing.assert_close(layer(x)[0], by_hand(layer, given, x[0]))


@pytest.mark.parametrize("ratio, size", [(4, 5), (3, 4), (5, 7)])
def test_a_region_with_one_real_token_keeps_a_key(ratio: int, size: int) -> None:
    """Of the last region a single token is real; where its only window lies elsewhere, nothing would be left."""
    layer = make(region_size=size, kv_downsample_mode="fracpool", kv_downsample_ratio=ratio, mask_padding=True, topk=1)
    x = image(8, 8, size + 1, size + 1)
    for training in (True, False):
        for backend in CPU_BACKENDS:
            layer.backend = backend
            assert torch.isfinite(layer.train(training)(x)).all()
    assert all(torch.isfinite(part).all() for part in gradients(layer, x))


# ---- on a GPU
UNORDERED = ("ada_avgpool", "ada_maxpool", "masked pool")  # PyTorch's backward of these poolings is not deterministic


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_modes_on_a_gpu(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the CPU in evaluation (another device draws other numbers), and in training the same bits each time."""
    layer, x = make(**MODES[mode]).eval(), image(2, 8, 13, 11)
    expected = gradients(layer, x)
    for found, right in zip(gradients(layer.cuda(), x.cuda()), expected, strict=True):
        torch.testing.assert_close(found.cpu(), right)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS promises nothing, and PyTorch refuses
    layer, x = layer.float().train(), image(2, 8, 26, 31, dtype=torch.float32).cuda()
    torch.use_deterministic_algorithms(mode not in UNORDERED)
    try:
        runs = [gradients(layer, x) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert mode in UNORDERED or all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
