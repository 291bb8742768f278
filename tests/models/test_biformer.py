"""BiFormer's pyramids and its blocks for detectors; the pyramids' numbers are held by the stored reference values."""

import pytest
import torch

from models.attention import BiLevelRoutingAttention
from models.biformer import (
    C3BRA,
    BiFormer,
    BiFormerBlock,
    BiFormerMerging,
    BiFormerStage,
    BiFormerStem,
    DropPath,
    GlobalAttention,
    biformer_base,
    biformer_small,
    biformer_stl,
    biformer_tiny,
)


def miniature(**changes):
    """Four stages of one small block each."""
    torch.manual_seed(0)
    sizes = {"depth": (1, 1, 2, 1), "embed_dim": (8, 16, 24, 32), "head_dim": 8, "n_win": 2, "num_classes": 5}
    return BiFormer(**{**sizes, **changes}).eval()


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (biformer_tiny, 13_142_760),
        (biformer_small, 25_536_232),
        (biformer_base, 56_804_968),
        (biformer_stl, 28_372_552),
    ],
)
def test_sizes_of_the_paper(build, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == parameters


def test_strides_and_classes():
    model, pictures = miniature(auto_pad=True), torch.randn(2, 3, 96, 70)
    assert [tuple(m.shape[1:]) for m in model.forward_stages(pictures)] == [
        (8, 24, 18), (16, 12, 9), (24, 6, 5), (32, 3, 3),
    ]  # fmt: skip
    assert model(pictures).shape == (2, 5)
    assert miniature(num_classes=0)(torch.randn(1, 3, 64, 64)).shape == (1, 32)
    with pytest.raises(ValueError, match="auto_pad=True"):
        miniature()(pictures)


def test_per_stage_routing_and_growing_drop_path():
    model = miniature(topks=(1, 2, 3, -1), drop_path_rate=0.4)
    assert [stage[0].attn.topk for stage in model.stages[:3]] == [1, 2, 3]
    assert isinstance(model.stages[3][0].attn, GlobalAttention)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("changes", [{"pre_norm": False}, {"layer_scale_init_value": 0.5}, {"swin_layout": True}])
def test_variants_run_and_learn(changes):
    model = miniature(**changes).train()
    model(torch.randn(2, 3, 64, 64)).square().sum().backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing


def test_layer_scale_of_nothing_leaves_the_position_only():
    block = BiFormerBlock(16, n_win=2, num_heads=2, layer_scale_init_value=0.5)
    torch.nn.init.zeros_(block.gamma1)
    torch.nn.init.zeros_(block.gamma2)
    x = torch.randn(1, 16, 4, 4)
    torch.testing.assert_close(block(x), x + block.pos_embed(x))


def test_drop_path_keeps_the_expectation():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2)
    out = drop(x)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (out[:, 0] == out[:, 1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(ValueError, match="rate 1"):
        DropPath(1.0)


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
    assert BiFormerStage(16, 16, 1, -2, n_win=16)(x).shape == x.shape
    with pytest.raises(ValueError, match="16 come in, 24"):
        BiFormerStage(16, 24)


@pytest.mark.parametrize("width", [16, 48, 80, 112])
def test_c3bra_drops_in_for_c3(width):
    block = C3BRA(24, width, 2, False, topk=2, mask_padding=True)
    routed = [m for m in block.modules() if isinstance(m, BiLevelRoutingAttention)]
    assert len(routed) == 2
    assert all(m.mask_padding and m.topk == 2 for m in routed)
    assert block(torch.randn(2, 24, 9, 5)).shape == (2, width, 9, 5)


def test_stage_counts_must_agree():
    with pytest.raises(ValueError, match="4 depths, 3 widths"):
        miniature(embed_dim=(8, 16, 24))
