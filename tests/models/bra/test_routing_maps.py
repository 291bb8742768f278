"""Recorded routes: the layer's own answer, the same by hand, in pixels; and the model does not notice."""

import numpy as np
import pytest
import torch
from torch import nn

from models.biformer import C3BRA
from models.bra.attention import BiLevelRoutingAttention
from models.bra.routing_maps import record_routes, routing_layers
from models.experimental import Ensemble
from models.yolo import Model


def layer(**changes):
    torch.manual_seed(0)
    return BiLevelRoutingAttention(**{"dim": 8, "n_win": 3, "num_heads": 2, "topk": 2, **changes}).eval()


def recorded(model, *images):
    with torch.no_grad(), record_routes(model) as maps:
        for image in images:
            model(image)
    return maps


@pytest.fixture
def detector(tiny_cfg):
    torch.manual_seed(0)
    return Model(tiny_cfg, verbose=False).eval()


# ---- nothing there
def test_a_model_without_routing_attention():
    plain = nn.Conv2d(3, 4, 1)
    assert routing_layers(plain) == {} and recorded(plain, torch.zeros(1, 3, 8, 8)) == []


# ---- what is recorded
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"topk": 9}, {"mask_padding": True}, {"n_win": "auto"}, {"region_size": (2, 5)},
        {"soft_routing": True, "diff_routing": True, "param_routing": True},
        {"kv_downsample_mode": "avgpool", "kv_downsample_ratio": 2, "backend": "reference"},
    ],
    ids=lambda changes: "-".join(changes) or "default",
)  # fmt: skip
@pytest.mark.parametrize("size", [(6, 9), (7, 8), (2, 12)])
def test_routes_are_those_the_layer_reports(changes, size):
    module, x = layer(**changes), torch.randn(2, 8, *size)
    (found,) = recorded(module, x)
    with torch.no_grad():
        _, weight, index, _ = module(x, ret_attn_mask=True)
    assert found.index.tolist() == index[0].tolist() and np.array_equal(found.weight, weight[0].numpy())
    assert found.name == "attention"
    grid = module.region_grid(*size)
    assert (found.rows, found.cols, found.cell_height, found.cell_width) == grid  # the layer's own input is the image


def test_routes_by_hand():
    module, x = layer(), torch.randn(1, 8, 5, 6)
    padded = torch.zeros(8, 6, 6)
    padded[:, :5] = x[0]
    q, k = module.qkv.qkv(padded.permute(1, 2, 0))[..., :16].split(8, -1)
    means = [[t[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((0, 1)) for r in range(3) for c in range(3)] for t in (q, k)]
    affinity = torch.stack(means[0]) @ torch.stack(means[1]).T * 8**-0.5
    best = affinity.argsort(descending=True)[:, :2]
    (found,) = recorded(module, x)
    assert found.index.tolist() == best.tolist()
    np.testing.assert_allclose(found.weight, affinity.gather(1, best).softmax(1).detach().numpy(), rtol=1e-5)


def test_regions_are_in_pixels_of_the_image(detector):
    (found,) = recorded(detector, torch.rand(1, 3, 64, 96))  # stride 16: a map of 4 x 6, 7 x 7 regions of one token
    assert (found.name, found.rows, found.cols, found.cell_height, found.cell_width) == ("stage6", 7, 7, 16, 16)
    assert (~found.is_padding(64, 96)).sum() == 24 and found.topk == 4
    (wide,) = recorded(detector, torch.rand(1, 3, 64, 256))  # 4 x 16: regions of 1 x 3 tokens
    assert (wide.cell_height, wide.cell_width) == (16, 48)


def test_names_inside_of_blocks_and_ensembles(detector):
    block = C3BRA(8, 8, 2, n_win=2)
    assert list(routing_layers(block)) == ["m.0.attn", "m.1.attn"]
    assert [found.name for found in recorded(block, torch.rand(1, 8, 4, 4))] == ["m.0.attn", "m.1.attn"]
    both = Ensemble([detector, detector.__class__(detector.yaml, verbose=False)]).eval()
    first, second = recorded(both, torch.rand(1, 3, 64, 64))
    assert (first.name, second.name) == ("weights1.stage6", "weights2.stage6")
    assert not np.array_equal(first.weight, second.weight)


def test_the_first_pass_and_its_first_image_count(detector):
    images = torch.rand(2, 3, 64, 64)
    (alone,) = recorded(detector, images[:1])
    (found,) = recorded(detector, images, images.flip(0))
    assert np.array_equal(found.index, alone.index) and np.allclose(found.weight, alone.weight, atol=1e-5)
    with torch.no_grad(), record_routes(detector) as maps:
        detector(images[:1], augment=True)
    assert len(maps) == 1 and np.array_equal(maps[0].weight, alone.weight) and maps[0].cell_height == 16


# ---- the model does not notice
def test_results_are_the_same_and_nothing_stays(detector):
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = detector(image)[0]
        with record_routes(detector):
            during = detector(image)[0]
    assert torch.equal(before, during)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in detector.modules())


def test_hooks_go_when_the_model_fails():
    module = layer(auto_pad=False)
    with pytest.raises(ValueError, match="auto_pad"):
        recorded(module, torch.zeros(1, 8, 5, 5))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
