"""BiLevelRoutingAttention: sizes, types, modes, padding; its numbers are held by the stored reference values."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from models.attention import (
    BiLevelRoutingAttention,
    KVGather,
    QKVLinear,
    RegionGrid,
    TopkRouting,
    join_regions,
    split_regions,
)

DOWNSAMPLE = ("identity", "ada_avgpool", "ada_maxpool", "avgpool", "maxpool", "fracpool", "conv")
VARIANTS = (
    {},
    {"mask_padding": True},
    {"soft_routing": True},
    {"soft_routing": True, "diff_routing": True, "param_routing": True, "mask_padding": True},
    {"diff_routing": True, "param_routing": True},
    {"n_win": "auto", "qk_scale": "head", "side_dwconv": 5},
    {"region_size": (3, 5), "qk_dim": 8, "param_attention": "qkv", "side_dwconv": 0},
)
# Straight-through and detached routing weights differ from the derivative on purpose.
TRUE_GRADIENTS = [v for v in VARIANTS if v.get("diff_routing", False) == v.get("soft_routing", False)]


def small(**changes):
    """A 16-channel layer with 3 x 3 regions and two heads."""
    torch.manual_seed(0)
    return BiLevelRoutingAttention(**{"dim": 16, "n_win": 3, "num_heads": 2, "topk": 2, **changes})


def dense(layer, x):
    """Attention of every pixel to every pixel with the weights of `layer`, and its local context."""
    batch, _, height, width = x.shape
    q, kv = layer.qkv(x.flatten(2).transpose(1, 2))
    k, v = kv.tensor_split([layer.qk_dim], dim=-1)
    q, k, v = (t.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = ((q @ k.transpose(-2, -1) * layer.scale).softmax(-1) @ v).transpose(1, 2).flatten(2)
    image = v.transpose(1, 2).flatten(2).transpose(1, 2).reshape(batch, -1, height, width)
    out = out.transpose(1, 2).reshape(batch, -1, height, width) + layer.lepe(image)
    return layer.wo(out.movedim(1, -1)).movedim(-1, 1)


def test_no_pictures():
    assert small()(torch.zeros(0, 16, 6, 6)).shape == (0, 16, 6, 6)


def test_parameter_names():
    names = {name.rsplit(".", 1)[0] for name in small(diff_routing=True, param_routing=True).state_dict()}
    assert names == {"lepe", "router.emb", "qkv.qkv", "wo"}
    names = {name.rsplit(".", 1)[0] for name in small(kv_downsample_mode="conv").state_dict()}
    assert names == {"lepe", "qkv.qkv", "wo", "kv_down.conv"}


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), cols=st.integers(1, 4), height=st.integers(1, 3), width=st.integers(1, 3))
def test_splitting_and_joining_regions(rows, cols, height, width):
    grid = RegionGrid(rows, cols, height, width)
    x = torch.randn(2, 3, rows * height, cols * width)
    regions = split_regions(x, grid)
    last = x[:, :, (rows - 1) * height :, (cols - 1) * width :]
    assert torch.equal(regions[:, -1], last.flatten(2).transpose(1, 2))
    assert torch.equal(join_regions(regions, grid), x.permute(0, 2, 3, 1))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 14), width=st.integers(1, 14), variant=st.sampled_from(VARIANTS), data=st.data())
def test_any_size_and_mode_in_every_backend(height, width, variant, data):
    mode = data.draw(st.sampled_from(DOWNSAMPLE))
    layer = small(kv_downsample_mode=mode, kv_downsample_ratio=2, kv_per_win=2, **variant).double().eval()
    x = torch.randn(1, 16, height, width, dtype=torch.float64)
    expected = layer(x)
    assert expected.shape == x.shape
    layer.backend = "reference"
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("mode", DOWNSAMPLE)
@pytest.mark.parametrize("variant", TRUE_GRADIENTS, ids=lambda v: "-".join(v) or "default")
def test_gradcheck(mode, variant):
    layer = small(dim=4, kv_downsample_mode=mode, kv_downsample_ratio=2, kv_per_win=1, **{**variant, "qk_dim": 4})
    layer = layer.double().eval()
    x = torch.randn(1, 4, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


def test_straight_through_routing_changes_gradients_only():
    x = torch.randn(1, 16, 9, 9)
    plain, hard, soft = small(), small(diff_routing=True, param_routing=True), small(diff_routing=True)
    hard.load_state_dict({**hard.state_dict(), **plain.state_dict()})
    torch.nn.init.eye_(hard.router.emb.weight)
    torch.nn.init.zeros_(hard.router.emb.bias)
    torch.testing.assert_close(hard(x), plain(x))
    torch.testing.assert_close(soft(x), plain(x))
    hard(x).square().sum().backward()
    assert hard.router.emb.weight.grad.abs().max() > 0


@pytest.mark.parametrize("size", [(9, 9), (7, 11), (2, 2), (1, 5)])
@pytest.mark.parametrize("cut", [{"n_win": 3}, {"n_win": "auto"}, {"region_size": 4}])
def test_masked_padding_with_all_regions_is_dense_attention(size, cut):
    layer = small(topk=1000, mask_padding=True, **cut)
    x = torch.randn(2, 16, *size)
    torch.testing.assert_close(layer(x), dense(layer, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", DOWNSAMPLE)
def test_what_lies_in_masked_padding_is_of_no_account(mode):
    layer = small(mask_padding=True, kv_downsample_mode=mode, kv_downsample_ratio=2, kv_per_win=2).eval()
    x = torch.randn(1, 16, 7, 8)
    before = layer(x)
    with torch.no_grad():  # with a bias, padded tokens get other keys and values; real ones shift alike
        masked = layer._real_tokens(layer.region_grid(7, 8), 7, 8, x.device)
        grid = layer.region_grid(7, 8)
        kv = torch.randn(1, 9, grid.height * grid.width, 32) * masked
        keys, mask = layer._downsample(kv, grid, masked)
    assert torch.isfinite(before).all()
    assert mask.any(-1).all() or mode == "identity"
    assert (keys[~mask] == 0).all()


def test_average_pooling_ignores_masked_padding():
    layer = small(n_win=1, mask_padding=True, kv_downsample_mode="ada_avgpool", kv_per_win=1, region_size=2)
    kv = torch.ones(1, 4, 4, 32)
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()[None, ..., None]
    keys, mask = layer._downsample(kv * real, RegionGrid(2, 2, 2, 2), real)
    assert torch.equal(keys, torch.ones(1, 4, 1, 32))
    assert mask.all()


def test_fractional_pooling_draws_one_grid_for_keys_and_values():
    layer = small(kv_downsample_mode="fracpool", kv_downsample_ratio=2)
    position = torch.arange(81.0).view(1, 1, 81, 1).expand(1, 1, 81, 32)
    grid = RegionGrid(1, 1, 9, 9)
    draws = [layer._downsample(position, grid, None)[0] for _ in range(20)]
    assert all((d == d[..., :1]).all() for d in draws)
    assert len({tuple(d[0, 0, :, 0].tolist()) for d in draws}) > 1
    layer.eval()
    assert torch.equal(layer._downsample(position, grid, None)[0], layer._downsample(position, grid, None)[0])


def test_convolution_begins_as_average():
    layer = small(kv_downsample_mode="conv", kv_downsample_ratio=2)
    kv = torch.randn(1, 9, 16, 32)
    found = layer._downsample(kv, RegionGrid(3, 3, 4, 4), None)[0]
    expected = F.avg_pool2d(kv.view(9, 4, 4, 32).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).reshape(1, 9, 4, 32)
    torch.testing.assert_close(found, expected)


def test_grids():
    assert small().region_grid(7, 2) == RegionGrid(3, 3, 3, 1)
    assert small(region_size=8).region_grid(20, 5) == RegionGrid(3, 1, 8, 5)
    assert small(region_size=(4, 2)).region_grid(8, 8) == RegionGrid(2, 4, 4, 2)
    auto = small(n_win="auto", topk=4, dim=64).region_grid(80, 80)
    assert auto.rows * auto.height == 80  # no padding where a fitting divisor is near the optimum of 21
    assert 12 <= auto.rows <= 30


@pytest.mark.parametrize("cut", [("auto", 1.4), (8, 1.1)])
def test_growth_of_cost_with_the_area(cut):
    kind, limit = cut
    layer = small(dim=64, topk=4, **({"n_win": "auto"} if kind == "auto" else {"region_size": kind})).to("meta")

    def attention_flops(side):
        tokens = side * side
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(torch.zeros(1, 64, side, side, device="meta"))
        grid = layer.region_grid(side, side)
        routing = 2 * (grid.rows * grid.cols) ** 2 * 64
        return counter.get_total_flops() - (0 if kind == "auto" else routing), tokens

    (small_cost, small_area), (large_cost, large_area) = attention_flops(40), attention_flops(320)
    exponent = torch.log(torch.tensor(large_cost / small_cost)) / torch.log(torch.tensor(large_area / small_area))
    assert exponent <= limit


def test_flops_are_seen_and_right():
    layer = small().to("meta").train()
    with FlopCounterMode(display=False) as counter:
        layer(torch.zeros(1, 16, 6, 6, device="meta"))
    projections = 2 * 36 * 16 * (48 + 16)
    routing, attention = 2 * 9 * 9 * 16, 2 * 2 * 36 * (2 * 4) * 16
    local = 2 * 36 * 9 * 16
    assert counter.get_total_flops() == projections + routing + attention + local


def test_channels_last_gives_the_same():
    x = torch.randn(2, 16, 10, 7)
    torch.testing.assert_close(small()(x.to(memory_format=torch.channels_last)), small()(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    layer, x = small(topk=9), torch.randn(2, 16, 10, 7)  # all regions: rounding cannot change the routes
    expected = layer(x)
    with torch.autocast("cpu", dtype):
        mixed = layer(x)
    mixed.float().sum().backward()
    assert mixed.dtype == dtype
    assert layer.qkv.qkv.weight.grad.dtype == torch.float32
    half = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    for out in (mixed, half):
        assert (out.float() - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v) or "default")
def test_state_survives_copying_and_loading(variant):
    layer, x = small(**variant).eval(), torch.randn(1, 16, 8, 8)
    other = small(**variant).eval()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_attention_on_request():
    layer, x = small(), torch.randn(2, 16, 7, 8)
    out, weight, index, attention = layer(x, ret_attn_mask=True)
    torch.testing.assert_close(out.permute(0, 3, 1, 2), layer(x))
    assert weight.shape == index.shape == (2, 9, 2)
    assert attention.shape == (18, 2, 9, 18)
    torch.testing.assert_close(attention.sum(-1), torch.ones(18, 2, 9))


@pytest.mark.filterwarnings("ignore")
def test_compiles_without_graph_break_and_exports():
    layer, x = small().eval(), torch.randn(2, 16, 9, 7)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_parts_on_their_own():
    q, kv = QKVLinear(8, 4)(torch.randn(2, 3, 8))
    assert q.shape == (2, 3, 4)
    assert kv.shape == (2, 3, 12)
    weight, index = TopkRouting(4, topk=2)(torch.randn(1, 5, 4), torch.randn(1, 5, 4))
    torch.testing.assert_close(weight.sum(-1), torch.ones(1, 5))
    values = torch.randn(1, 5, 3, 8)
    picked = KVGather("soft")(index, weight, values)
    torch.testing.assert_close(picked[0, 4, 1], values[0, index[0, 4, 1]] * weight[0, 4, 1])
    torch.testing.assert_close(KVGather("hard")(index, weight, values), KVGather()(index, weight, values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 15}, "dim=15.*multiple"),
        ({"qk_dim": 9}, "qk_dim=9.*multiple"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"topk": -1}, "topk=-1.*at least 1"),
        ({"n_win": 0}, "n_win=0.*'auto'"),
        ({"n_win": "best"}, "n_win='best'.*'auto'"),
        ({"region_size": (4, 0)}, "region_size"),
        ({"qk_scale": "tail"}, "qk_scale='tail'.*'head'"),
        ({"param_attention": "none"}, "qkvo, qkv"),
        ({"param_routing": True}, "diff_routing=True"),
        ({"side_dwconv": 4}, "odd"),
        ({"backend": "magic"}, "auto, reference"),
        ({"kv_downsample_mode": "nearest"}, "identity, ada_avgpool"),
        ({"kv_downsample_mode": "ada_maxpool", "kv_per_win": None}, "kv_per_win=None"),
        ({"kv_downsample_mode": "conv", "kv_downsample_ratio": None}, "kv_downsample_ratio=None"),
        ({"kv_downsample_mode": "conv", "kv_downsample_kernel": 0}, "kv_downsample_kernel=0"),
    ],
)
def test_arguments_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_unpadded_map_and_unknown_weighting():
    with pytest.raises(ValueError, match="auto_pad=True"):
        small(auto_pad=False)(torch.zeros(1, 16, 10, 9))
    with pytest.raises(ValueError, match="none, soft, hard"):
        KVGather("medium")
