"""BiFormer's pyramids and its blocks for detectors; the pyramids' numbers are held by the stored reference values."""

import pytest
import torch

from models import biformer
from models.biformer import (
    C3BRA,
    BiFormer,
    BiFormerBlock,
    BiFormerMerging,
    BiFormerStage,
    BiFormerStem,
    GlobalAttention,
)
from models.bra.attention import BiLevelRoutingAttention
from models.common import C3
from models.yolo import Model
from utils.base.networks import started_at_zero
from utils.base.paths import ROOT
from utils.base.yaml import read_yaml

PYRAMIDS = ("yolov5-biformer-tiny", "yolov5-biformer-small", "yolov5-biformer-base")
NECKS = (
    "yolov5-BiFormer-p345",
    "yolov5-BiFormer-p2",
    "yolov5-C3BRA",
    "yolov5-BiFormer-residual",
    "yolov5-C3BRA-residual",
)


def miniature(**changes):
    """Four stages of one small block each."""
    torch.manual_seed(0)
    sizes = {"depth": (1, 1, 2, 1), "embed_dim": (8, 16, 24, 32), "head_dim": 8, "n_win": 2, "num_classes": 5}
    return BiFormer(**{**sizes, **changes}).eval()


@pytest.mark.parametrize("size, parameters", [
    ("tiny", 13_142_760), ("small", 25_536_232), ("base", 56_804_968), ("stl", 28_372_552),
])  # fmt: skip
def test_sizes_of_the_paper(size, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in getattr(biformer, f"biformer_{size}")().parameters()) == parameters


def test_per_stage_routing_and_growing_drop_path():
    model = miniature(topks=(1, 2, 3, -1), drop_path_rate=0.4)
    assert [stage[0].attn.topk for stage in model.stages[:3]] == [1, 2, 3]
    assert isinstance(model.stages[3][0].attn, GlobalAttention)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("changes", [{"pre_norm": False}, {"swin_layout": True, "before_attn_dwconv": 0}])
def test_variants_run_and_learn(changes):
    model = miniature(**changes).train()
    out = model(torch.randn(2, 3, 64, 64))
    out.square().sum().backward()
    assert out.shape == (2, 5) and all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("block", [
    BiFormerBlock(8, 2, 4, n_win=2, layer_scale_init_value=0.5), BiFormerBlock(8, -2), BiFormerBlock(8, -1),
    BiFormerBlock(8, 2, 4, n_win=2, pre_norm=False, mask_padding=True), C3BRA(8, 8, 2, topk=2, n_win=2),
], ids=["routed", "global", "no context", "masked, norm after", "C3BRA"])  # fmt: skip
def test_gradients_are_derivatives(block):
    block = block.double().eval()
    x = torch.randn(1, 8, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    names = [name for name, _ in block.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *block.parameters()), fast_mode=True)


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    drop, x = biformer.DropPath(0.25), torch.ones(4000, 2)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out[:, 0] == out[:, 1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(ValueError, match="drop_path=1"):
        biformer.DropPath(1.0)


def test_global_attention_is_attention():
    layer, x = GlobalAttention(16, num_heads=2, side_dwconv=0), torch.randn(1, 16, 3, 2)
    tokens = x.flatten(2).transpose(1, 2)
    reference = torch.nn.MultiheadAttention(16, 2, bias=True, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(layer.qkv.weight)
        reference.in_proj_bias.zero_()
        reference.out_proj.load_state_dict(layer.proj.state_dict())
    expected = reference(tokens, tokens, tokens)[0].transpose(1, 2).view_as(x)
    torch.testing.assert_close(layer(x), expected)


def test_blocks_for_detectors():
    x = BiFormerStem(3, 16)(torch.randn(1, 3, 50, 34))
    assert x.shape == (1, 16, 13, 9)
    x = BiFormerStage(16, 16, 2, 4, [0.1, 0.2], n_win=16, head_dim=8)(x)
    assert BiFormerMerging(16, 24)(x).shape == (1, 24, 7, 5)
    stage = BiFormerStage(16, 16, 1, -2, n_win=16)
    assert stage(x).shape == x.shape and stage[0].attn.num_heads == 8  # as in the published networks
    assert BiFormerStage(16, 16, 1, -1, num_heads=2, mask_padding=True)[0].attn.num_heads == 2  # or what is asked for
    with pytest.raises(ValueError, match="16 come in, 24"):
        BiFormerStage(16, 24)


@pytest.mark.parametrize("width", [16, 48, 80, 112])
def test_c3bra_drops_in_for_c3(width):
    block = C3BRA(24, width, 2, False, topk=2, mask_padding=True)
    routed = [m for m in block.modules() if isinstance(m, BiLevelRoutingAttention)]
    assert len(routed) == 2
    assert all(m.mask_padding and m.topk == 2 for m in routed)
    assert block(torch.randn(2, 24, 9, 5)).shape == (2, width, 9, 5)


# ---- blocks that begin as nothing
def starting(kind):
    torch.manual_seed(0)
    return {
        "routed": lambda: BiFormerBlock(8, 2, 4, n_win=2, residual=True),
        "scaled": lambda: BiFormerBlock(8, 2, 4, n_win=2, layer_scale_init_value=0.1, residual=True),
        "global": lambda: BiFormerBlock(8, -2, residual=True),
        "no position": lambda: BiFormerBlock(8, -1, before_attn_dwconv=0, residual=True),
        "stage": lambda: BiFormerStage(8, 8, 2, 2, 0.1, n_win=2, residual=True),
        "C3BRA": lambda: C3BRA(8, 8, 2, False, topk=2, n_win=2, residual=True),
    }[kind]()


STARTING = ("routed", "scaled", "global", "no position", "stage", "C3BRA")


@pytest.mark.parametrize("kind", STARTING)
@pytest.mark.parametrize("sides", [(1, 1), (4, 4), (7, 5)])
def test_until_it_is_trained_a_residual_block_gives_what_it_gets(kind, sides):
    block, expected, x = starting(kind), torch.nn.Identity(), torch.randn(2, 8, *sides)
    if kind == "C3BRA":
        expected = C3(8, 8, 2, False)
        state = expected.state_dict()
        assert block.load_state_dict(state, strict=False).unexpected_keys == []
    assert torch.equal(block.eval()(x), expected.eval()(x)) and torch.equal(block.train()(x), expected.train()(x))


@pytest.mark.parametrize("kind", STARTING)
def test_residual_blocks_learn_everywhere_from_the_second_step_on(kind):
    block = starting(kind)
    x, wanted = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
    optimizer, seen = torch.optim.SGD(block.parameters(), lr=0.1), []
    for _ in range(3):
        optimizer.zero_grad()
        (block(x) - wanted).square().mean().backward()
        seen.append({name for name, p in block.named_parameters() if p.grad.any()})
        optimizer.step()
    zeros = {f"{name}.{part}" for name, of in started_at_zero(block).items() for part, _ in of.named_parameters()}
    assert zeros <= seen[0] and {name for name in seen[0] - zeros if "cv" not in name and "bn" not in name} == set()
    assert seen[2] == {name for name, _ in block.named_parameters()}


@pytest.mark.parametrize("changes, message", [
    ({"embed_dim": (8, 16, 24)}, "4 depths, 3 widths"), ({"depth": 2}, "depth=2: give a list"),
    ({"depth": (1, 0, 1, 1)}, "depth=0"), ({"embed_dim": (8, 16.0, 24, 32)}, "embed_dim=16.0.*write 16"),
    ({"topks": ()}, r"topks=\(\): give a list"), ({"num_classes": -1}, "num_classes=-1.*at least 0"),
    ({"in_chans": None}, "in_chans=None"), ({"drop_path_rate": 1}, "drop_path=1"),
    ({"swin_layout": "stl"}, "swin_layout='stl'.*true or false"), ({"n_wins": 7}, "'n_wins'; did you mean 'n_win'"),
])  # fmt: skip
def test_mistakes_in_a_pyramid(changes, message):
    with pytest.raises(ValueError, match=message):
        miniature(**changes)


# ---- detectors
def shipped(name, width=0.125, depth=0.34):
    """The described model, narrow and shallow."""
    torch.manual_seed(0)
    description = read_yaml(ROOT / f"models/hub/{name}.yaml")
    return Model({**description, "nc": 2, "width_multiple": width, "depth_multiple": depth}, verbose=False)


@pytest.mark.parametrize("name", [*PYRAMIDS, *NECKS])
def test_shipped_detectors_learn_and_fuse(name):
    model, x = shipped(name), torch.rand(2, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    strides = [4, 8, 16, 32] if name.endswith("p2") else [8, 16, 32]
    assert model.stride.tolist() == strides
    sum(level.square().mean() for level in model.train()(x)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        expected = model.eval()(x)[0]
        found = model.fuse()(x)[0]
    assert found.shape == (2, sum(3 * (128 // s) * (96 // s) for s in strides), 7)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)  # pixels and probabilities


@pytest.mark.parametrize("name", PYRAMIDS)
def test_shipped_pyramids_are_those_of_the_paper(name):
    """Depths, routed regions and evenly growing stochastic depth."""
    stages = [m for m in shipped(name, depth=1.0).modules() if isinstance(m, BiFormerStage)]
    assert [len(stage) for stage in stages] == ([2, 2, 8, 2] if name.endswith("tiny") else [4, 4, 18, 4])
    assert [stage[0].attn.topk for stage in stages[:3]] == [1, 4, 16]
    assert all(stage[0].attn.n_win == 16 for stage in stages[:3])
    assert isinstance(stages[3][0].attn, GlobalAttention)
    rates = torch.tensor([block.drop_path.rate for stage in stages for block in stage])
    torch.testing.assert_close(rates, torch.linspace(0, float(rates[-1]), len(rates)), rtol=0, atol=1e-3)
    assert rates[-1] >= 0.1


# ---- what users get wrong
@pytest.mark.parametrize("arguments, message", [
    ({"topk": 0}, "topk=0"), ({"topk": -3}, "topk=-3"), ({"topk": -2.0}, "topk=-2.0.*write -2"),
    ({"topk": "all"}, "topk='all'.*whole number.*-2 attends to the whole map"),
    ({"topk": -2, "nwin": 3}, "nwin"), ({"topk": -2, "side_dwconv": 4}, "side_dwconv=4.*odd"),
    ({"topk": -2, "num_heads": 3}, "num_heads=3.*multiple"), ({"topk": -1, "head_dim": 2.5}, "head_dim=2.5"),
    ({"nwin": 3}, "nwin"), ({"n_win": "seven"}, "n_win='seven'.*'auto'"), ({"side_dwconv": 4}, "side_dwconv=4.*odd"),
    ({"drop_path": 1.0}, "drop_path=1.*from 0 to below 1"), ({"drop_path": True}, "drop_path=True"),
    ({"drop_path": [-0.2, 0.1]}, "drop_path=-0.2.*from 0 to below 1"), ({"drop_path": [0.1, 7]}, "drop_path=7"),
    ({"drop_path": [0.1, 0.2, 0.3]}, "drop_path="), ({"drop_path": "much"}, "drop_path='much'"),
    ({"drop_path": None}, "drop_path=None"),
    ({"before_attn_dwconv": 4}, "before_attn_dwconv=4.*odd"), ({"head_dim": 0}, "head_dim=0"),
    ({"head_dim": -4}, "head_dim=-4"), ({"mlp_ratio": 0}, "mlp_ratio=0"), ({"mlp_ratio": "3x"}, "mlp_ratio='3x'"),
    ({"mlp_ratio": 0.01}, "mlp_ratio=0.01"), ({"mlp_rato": 3}, "'mlp_rato'; did you mean 'mlp_ratio'"),
    ({"mlp_ratio": True}, "mlp_ratio=True.*above 0"), ({"pre_norm": "no"}, "pre_norm='no'.*true or false"),
    ({"plain_mlp": 1}, "plain_mlp=1.*true or false"), ({"mask_padding": "no"}, "mask_padding='no'.*true or false"),
    ({"layer_scale_init_value": "small"}, "layer_scale_init_value='small'.*give a number"),
    ({"residual": 1}, "residual=1.*true or false"), ({"residual": True, "pre_norm": False}, "set pre_norm=true"),
    ({"residual": True, "param_attention": "qkv"}, "set param_attention=qkvo"),
])  # fmt: skip
def test_mistakes_in_a_description_name_the_layer(arguments, message):
    rows = [[-1, 1, "BiFormerStem", [16]], [-1, 1, "BiFormerStage", [16, {"n_win": 2, **arguments}]]]
    description = {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": 3, "backbone": rows}
    with pytest.raises(ValueError, match=f"layer 1 .*BiFormerStage.*: .*{message}"):
        Model({**description, "head": [[-1, 1, "nn.Identity", []]]}, verbose=False)
