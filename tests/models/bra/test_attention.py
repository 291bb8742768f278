"""BiLevelRoutingAttention: sizes, types, modes, padding; its numbers are held by the stored reference values."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from models.biformer import BiFormerStage
from models.bra.attention import (
    BiLevelRoutingAttention,
    KVGather,
    QKVLinear,
    RegionGrid,
    TopkRouting,
    join_regions,
    split_regions,
)
from tests.models.bra.test_attention_modes import CPU_BACKENDS, MODES, gradients, image, make


def small(**changes):
    """A 16-channel layer with 3 x 3 regions and two heads."""
    torch.manual_seed(0)
    return BiLevelRoutingAttention(**{"dim": 16, "n_win": 3, "num_heads": 2, "topk": 2, **changes})


def test_no_images():
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


def test_grids():
    assert small().region_grid(7, 2) == RegionGrid(3, 3, 3, 1)
    assert small(region_size=8).region_grid(20, 5) == RegionGrid(3, 1, 8, 5)
    assert small(region_size=(4, 2)).region_grid(8, 8) == RegionGrid(2, 4, 4, 2)
    auto = small(n_win="auto", topk=4, dim=64).region_grid(80, 80)
    assert auto.rows * auto.height == 80  # no padding where a fitting divisor is near the optimum of 21
    assert 12 <= auto.rows <= 30


@pytest.mark.parametrize("mode", MODES)
def test_attention_on_request(mode):
    layer, x = make(**MODES[mode]).eval(), image(2, 8, 7, 8)
    out, weight, index, attention = layer(x, ret_attn_mask=True)
    torch.testing.assert_close(out.permute(0, 3, 1, 2), layer(x))
    grid = layer.region_grid(7, 8)
    regions = grid.rows * grid.cols
    assert weight.shape == index.shape == (2, regions, min(2, regions))
    assert attention.shape[:3] == (2 * regions, 2, grid.height * grid.width)
    torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:3]).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("build", [lambda: make(topk=4), lambda: BiFormerStage(8, 8, 2, 4, n_win=2, head_dim=4)])
def test_half_precision_stays_near_single(build, dtype):
    """With all regions, as rounding may change the routes."""
    layer, x = build().float(), image(2, 8, 10, 7, dtype=torch.float32)
    exact = gradients(layer, x)
    for found, expected in zip(gradients(layer.to(dtype), x.to(dtype)), exact, strict=True):
        assert found.dtype == dtype
        assert (found.float() - expected).norm() < 0.03 * expected.norm()


# ---- what PyTorch makes of it
@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing compiled before counts, and nothing stays."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_break(mode, fresh_compiler):
    layer, x = make(**MODES[mode]).float(), image(2, 8, 5, 7, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    same(gradients(compiled, x), gradients(layer, x))
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_compiles_with_every_backend(backend, fresh_compiler):
    layer, x = make(backend=backend, mask_padding=True), image(2, 8, 5, 7)
    same(gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), x), gradients(layer, x))


@pytest.mark.parametrize("mode", ["identity", "masked, soft, learned", "conv", "auto", "fracpool"])
def test_one_compilation_serves_all_batch_sizes(mode, fresh_compiler):
    """The second batch size makes the graph general; after that nothing is compiled again."""
    layer, counter = make(**MODES[mode]), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        x = image(batch, 8, 5, 7)
        same(gradients(compiled, x), gradients(layer, x))
    assert counter.frame_count <= 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_exports_with_any_batch_size(mode):
    layer, x = make(**MODES[mode], backend="export").eval(), image(2, 8, 5, 7)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for batch in (1, 2, 3):
        x = image(batch, 8, 5, 7, seed=batch)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", MODES)
def test_can_be_traced(mode):
    layer = make(**MODES[mode], backend="export").eval()
    traced = torch.jit.trace(layer, image(2, 8, 5, 7))
    for batch in (2, 3):
        x = image(batch, 8, 5, 7, seed=batch)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.filterwarnings("ignore")
def test_left_to_itself_it_exports_plain_operators():
    """What every runtime has: no fused attention, whatever PyTorch would choose when it runs."""
    layer, x = make().eval(), image(1, 8, 5, 7)
    program = torch.export.export(layer, (x,))
    names = [*(str(node.target) for node in program.graph.nodes), str(torch.jit.trace(layer, x).inlined_graph)]
    assert any("softmax" in name for name in names)
    assert not any("scaled_dot_product" in name for name in names)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.fixture
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.parametrize("mode", MODES)
def test_deterministic_algorithms_repeat_bit_for_bit(mode, deterministic):
    layer, x = make(**MODES[mode]).float(), image(2, 8, 11, 13, dtype=torch.float32)
    first, second = gradients(layer, x), gradients(layer, x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_autocast_in_every_mode(mode, backend):
    """With all regions, as rounding may change the routes; gradients come back in the parameters' own type."""
    given = {**MODES[mode], "topk": 1000, "backend": backend}
    layer, x = make(**given).float(), image(2, 8, 7, 10, dtype=torch.float32)
    exact = gradients(layer, x)

    def mixed(x):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    mixed.parameters = layer.parameters
    found = gradients(mixed, x)
    assert [part.dtype for part in found] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(found, exact, strict=True):
        assert (a - b).norm() < 0.05 * b.norm()


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


# ---- what users get wrong
WHOLE = "give a whole number of at least 1"
NO_NUMBERS = (None, "4", True, False, [4], 4j, torch.ones(2, 3), float("nan"), float("inf"))
MISTAKES = {  # argument, what follows in the message, and values that are refused
    "dim": {"multiple": [15]},
    "num_heads": {WHOLE: [0, True, 2.0], "": [3]},
    "qk_dim": {"multiple": [9], WHOLE: [-8, 0, True, 16.0]},
    "topk": {WHOLE: [*NO_NUMBERS, 0, -1, 2.5, np.float32(2.5), "seven" * 100], "write 4": [4.0]},
    "n_win": {"'auto'": [*NO_NUMBERS, 0, -1, 2.5, 4.0]},
    "region_size": {
        "a whole number of tokens per side.*height and width": [0, (4, 0), 2.5, (3, True), "33", [3], (3, 4, 5), {3, 4}]
    },
    "qk_scale": {"give a number above 0, 'head', or nothing": ["tail", *NO_NUMBERS[1:], 0, -1]},
    "param_attention": {"one of qkvo, qkv": ["none", None, 1]},
    "side_dwconv": {"odd whole number, or 0": [*NO_NUMBERS, 4, -3, 3.0]},
    "backend": {"one of auto, reference, sdpa, triton, export": ["magic", None]},
    "kv_downsample_mode": {"one of identity, ada_avgpool.*conv": ["nearest", ["conv"]]},
    **{
        name: {"give true or false": ["no", 1, None]}
        for name in ("param_routing", "diff_routing", "soft_routing", "auto_pad", "mask_padding", "residual")
    },
}
IN_MODES = [
    *({"kv_downsample_mode": "ada_avgpool", "kv_per_win": value} for value in (None, 0, 1.5)),
    *({"kv_downsample_mode": "fracpool", "kv_downsample_ratio": value} for value in (0, -2, None, 1.5, "2x", 2.0)),
    *({"kv_downsample_mode": "conv", "kv_downsample_kernel": value} for value in (0, 2.5)),
]


@pytest.mark.parametrize("name", MISTAKES)
def test_arguments_that_make_no_sense(name):
    for wanted, values in MISTAKES[name].items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name}=.*{wanted}") as caught:
                small(**{name: value})
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("arguments", IN_MODES, ids=str)
def test_arguments_of_modes_that_make_no_sense(arguments):
    mode, name = arguments["kv_downsample_mode"], list(arguments)[1]
    with pytest.raises(ValueError, match=f"{name}={arguments[name]!r}: {WHOLE} for kv_downsample_mode='{mode}'"):
        small(**arguments)


def test_unpadded_map_and_unknown_weighting():
    with pytest.raises(ValueError, match="auto_pad=True"):
        small(auto_pad=False)(torch.zeros(1, 16, 10, 9))
    with pytest.raises(ValueError, match="none, soft, hard"):
        KVGather("medium")
    with pytest.raises(ValueError, match="param_routing=True.*diff_routing=True"):
        small(param_routing=True)
    with pytest.raises(ValueError, match="param_attention=qkvo"):
        small(residual=True, param_attention="qkv")


def test_numbers_of_numpy_are_numbers():
    numbers = {name: np.int64(value) for name, value in {"dim": 16, "n_win": 3, "num_heads": 2, "topk": 2}.items()}
    torch.manual_seed(0)
    layer, x = BiLevelRoutingAttention(**numbers), torch.randn(1, 16, 6, 6)
    assert torch.equal(layer(x), small()(x))
    assert all(type(number) is int for number in (layer.dim, layer.n_win, layer.num_heads, layer.topk))


def test_triton_is_put_off_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.randn(1, 8, 7, 7)
    layers = [BiLevelRoutingAttention(8, num_heads=2, backend=backend).eval() for backend in ("triton", "auto")]
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(layers[0](x), layers[1](x))


# ---- added to what it sees
def test_a_residual_layer_begins_as_nothing_and_adds_what_the_published_one_computes():
    layer, plain = small(residual=True), small()
    for sides in ((6, 6), (7, 10), (1, 13)):
        x = torch.randn(2, 16, *sides)
        assert torch.equal(layer(x), x)
        assert torch.equal(layer(x, ret_attn_mask=True)[0], x.permute(0, 2, 3, 1))
    layer.load_state_dict(plain.state_dict())
    torch.testing.assert_close(layer(x), x + plain(x))


@pytest.mark.parametrize(
    "changes", [{}, {"param_attention": "qkv"}, {"mask_padding": True}, {"qk_dim": 8, "side_dwconv": 5}]
)
def test_a_layer_that_hands_on_its_input_adds_a_sixteenth_of_means_and_learns_everywhere(changes):
    layer, (x,) = small(**changes), torch.randn(1, 2, 16, 7, 8).unbind()
    queries = layer.qkv.qkv.weight[: layer.qk_dim].clone()
    assert layer.start_as_identity() and torch.equal(layer.qkv.qkv.weight[: layer.qk_dim], queries)
    out = layer(x)
    added = (out - x).abs()
    assert 0.001 < added.max() <= x.abs().max() / 16 + 1e-6  # a mean is no larger than the largest of its values
    out.square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in layer.named_parameters() if "qkv.bias" not in name)


def test_a_layer_without_convolution_cannot_hand_on_its_input():
    layer = small(side_dwconv=0)
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    assert not layer.start_as_identity()
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_residual_layer_learns_from_its_second_step_on_everywhere():
    layer = small(residual=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, wanted = torch.randn(4, 16, 6, 6), torch.randn(4, 16, 6, 6)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        (layer(x) - wanted).square().mean().backward()
        seen.append({name: float(p.grad.abs().max()) for name, p in layer.named_parameters()})
        optimizer.step()
    assert {name for name, size in seen[0].items() if size} == {"wo.weight", "wo.bias"}
    assert all(seen[1].values())
