"""The detector as a whole; reference values of every shipped model are in test_golden."""

import copy
import logging
import math

import pytest
import torch
from torch import nn

from models.yolo import Detect, DetectionModel, Model, parse_model
from utils.base.log import LOGGER

TINY = {
    "nc": 3, "depth_multiple": 0.33, "width_multiple": 0.25, "anchors": [[10, 13, 16, 30], [30, 61, 62, 45]],
    "backbone": [
        [-1, 1, "Conv", [32, 6, 2, 2]], [-1, 1, "Conv", [64, 3, 2]], [-1, 3, "C3", [64]], [-1, 1, "Conv", [64, 3, 2]],
    ],
    "head": [
        [-1, 1, "Conv", [128, 3, 2]], [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 3], 1, "Concat", [1]],
        [-1, 1, "BiLevelRoutingAttention", [{"num_heads": 4}]], [[7, 4], 1, "Detect", ["nc", "anchors"]],
    ],
}  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model(TINY)


def test_no_images_no_predictions(model):
    predictions, raw = model.eval()(torch.zeros(0, 3, 32, 32))
    assert predictions.shape == (0, 2 * (16 + 4), 8) and len(raw) == 2


def test_strides_and_anchors(model):
    assert model.stride.tolist() == [8, 16]
    pixels = model.model[-1].anchors * model.stride.view(-1, 1, 1)
    torch.testing.assert_close(pixels, torch.tensor(TINY["anchors"]).float().view(2, 2, 2))


def test_anchors_in_reverse_order_are_turned_around(caplog):
    reverse = Model({**TINY, "anchors": TINY["anchors"][::-1]})
    assert torch.equal(reverse.model[-1].anchors, Model(TINY).model[-1].anchors)
    assert "reverse order" in caplog.text


def test_building_changes_neither_statistics_nor_random_numbers():
    torch.manual_seed(3)
    layers = parse_model({**TINY, "ch": 3}, [3], verbose=False)[0]
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = Model(TINY)
    assert torch.equal(torch.rand(3), expected)
    assert model.training and all(module.training for module in model.modules())
    for key, value in layers.state_dict().items():
        if "running" in key or "tracked" in key:
            assert torch.equal(model.model.state_dict()[key], value)


def test_overrides():
    model = Model(TINY, ch=1, nc=7, anchors=3.4)
    head = model.model[-1]
    assert (model.nc, head.nc, head.no, head.na, model.yaml["ch"]) == (7, 7, 12, 3, 1)
    assert model.names == [str(i) for i in range(7)]
    assert (head.anchors[0] * head.stride[0]).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert model(torch.zeros(1, 1, 32, 32))[0].shape == (1, 3, 4, 4, 12)


def test_first_biases_expect_eight_objects_a_image(model):
    head = model.model[-1]
    fresh = Detect(3, TINY["anchors"], [16, 32])
    fresh.stride = head.stride
    for conv in fresh.m:
        nn.init.zeros_(conv.bias)
    fresh.initialize_biases()
    for conv, stride in zip(fresh.m, (8, 16), strict=True):
        bias = conv.bias.view(2, 8)
        assert bias[:, 4].tolist() == pytest.approx([math.log(8 / (640 / stride) ** 2)] * 2)
        assert bias[:, 5:].flatten().tolist() == pytest.approx([math.log(0.6 / (3 - 0.999999))] * 6)
        assert not bias[:, :4].any()


def test_decoding_a_worked_example():
    """One cell, one anchor of 10 x 20 pixels at stride 8; logit 0 is a sigmoid of one half, log 3 of three quarters."""
    head = Detect(2, [[10, 20]], [1]).eval()
    head.set_stride(torch.tensor([8.0]))
    raw = torch.zeros(1, 1, 3, 4, 7)
    raw[..., 2, 3, 0], raw[..., 2, 3, 3], raw[..., 2, 3, 6] = math.log(3), math.log(3), math.log(3)
    found = head.decode(raw, 0)[0, 0, 2, 3]
    expected = [(3 + 2 * 0.75 - 0.5) * 8, (2 + 0.5) * 8, 10, 20 * 1.5**2, 0.5, 0.5, 0.75]
    assert found.tolist() == pytest.approx(expected)


def test_predictions_run_over_anchors_then_rows_then_columns(model):
    predictions, raw = model.eval()(torch.rand(2, 3, 64, 32))
    assert [tuple(level.shape) for level in raw] == [(2, 2, 8, 4, 8), (2, 2, 4, 2, 8)]
    assert predictions.shape == (2, 2 * (8 * 4 + 4 * 2), 8)
    place = 2 * 8 * 4 + 1 * 4 * 2 + 3 * 2 + 1  # second level, anchor 1, row 3, column 1
    torch.testing.assert_close(predictions[:, place, 4], raw[1][:, 1, 3, 1, 4].sigmoid())
    torch.testing.assert_close(predictions[:, place, 0], (2 * raw[1][:, 1, 3, 1, 0].sigmoid() - 0.5 + 1) * 16)


def test_half_precision_predictions_are_in_pixels_of_single_precision():
    head = Detect(1, [[10, 20]], [1]).eval()
    head.set_stride(torch.tensor([8.0]))
    found = head.decode(torch.zeros(1, 1, 1, 400, 6).half(), 0)
    assert found.dtype == torch.float32 and found[0, 0, 0, 399, 0] == 399.5 * 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_stride_and_anchors_follow_the_model(model, dtype):
    model.to(dtype)
    assert model.stride.dtype == dtype and model.stride is model.model[-1].stride
    assert model.model[-1].anchors.dtype == dtype


def test_autocast_channels_last_and_any_size_agree(model):
    model.eval()
    x = torch.rand(1, 3, 48, 80)
    with torch.no_grad():
        plain = model(x)[0]
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x)[0]
    torch.testing.assert_close(last, plain, atol=1e-4, rtol=1e-4)
    assert mixed.dtype == torch.float32 and (mixed - plain).abs().max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fusing(model, dtype):
    model.to(dtype)
    model(torch.rand(4, 3, 64, 64, dtype=dtype))  # gives the norms something to fold
    model.eval()
    x = torch.rand(1, 3, 64, 96, dtype=dtype)
    fused = copy.deepcopy(model).fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    with torch.no_grad():
        torch.testing.assert_close(fused(x)[0], model(x)[0], atol=1e-3, rtol=1e-3)
        again = copy.deepcopy(fused)
        assert torch.equal(again(x)[0], fused(x)[0])
    routed = {key: value for key, value in model.state_dict().items() if key.startswith("model.7.")}
    assert routed and all(torch.equal(fused.state_dict()[key], value) for key, value in routed.items())


def test_augmented_predictions_contain_the_plain_views(model):
    """The first third is the plain view without its coarse level; the others, undone, stay inside the image."""
    model.eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        plain, raw = model(x)
        merged, none = model(x, augment=True)
    fine = raw[0][0, ..., 0].numel()
    assert none is None and torch.equal(merged[:, :fine], plain[:, :fine])
    # 64 * 0.83 pads to 64: both levels; 64 * 0.67 pads to 48: the coarse level of 3 x 3 cells
    assert merged.shape[1] == fine + plain.shape[1] + 2 * 9


def test_mirrored_view_is_mirrored_back(model, monkeypatch):
    monkeypatch.setattr("models.yolo.TTA_VIEWS", ((1.0, True), (1.0, True)))
    found = torch.tensor([[[10.0, 20, 4, 6, 1, 1, 0, 0]] * 2]), [torch.zeros(1, 1, 1, 1, 1)] * 2
    monkeypatch.setattr(model, "_forward_once", lambda x: found)
    merged, _ = model._forward_augment(torch.zeros(1, 3, 32, 64))
    assert merged[0, 0, :4].tolist() == [54, 20, 4, 6]


def test_true_flops_are_counted_layer_by_layer(model):
    """Convolutions and linear layers as they run at the real size, and in closed form what attention multiplies."""
    found = []

    def count(layer, inputs, output):
        fan_in = layer.weight[0].numel()
        found.append(2 * fan_in * output.numel())

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    side = 8 * 7 * 4  # regions of 4 x 4 tokens on the level of stride 8, without padding
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    in_layers = sum(found)
    regions, tokens, topk, channels = 49, 16, 4, model.model[7].dim
    routing = 2 * regions * regions * channels
    attending = 2 * 2 * regions * tokens * topk * tokens * channels
    assert round(model.info(img_size=side).gflops * 1e9) == in_layers + routing + attending


def test_profile_has_a_row_per_layer(model, caplog):
    model.eval()
    with caplog.at_level(logging.INFO, LOGGER.name), torch.no_grad():
        output = model(torch.rand(1, 3, 64, 64), profile=True)
    assert len(output) == 2 and "8 models.yolo.Detect" in caplog.text
    costs = model.profile(torch.rand(1, 3, 64, 64), n=1)
    assert [cost.parameters for cost in costs] == [layer.np for layer in model.model]
    assert all(cost.forward_ms > 0 for cost in costs)


def test_layers_carry_what_v61_gives_them(model):
    assert model.save == [3, 4, 7]
    assert [layer.i for layer in model.model] == list(range(9))
    assert model.model[6].f == [-1, 3] and model.model[8].type == "models.yolo.Detect"
    assert DetectionModel is Model


@pytest.mark.parametrize("change, message", [
    ({"head": [[[-1, 0], 1, "Concat", [1]], [[-1, 2], 1, "Detect", ["nc", "anchors"]]]},
     "model description: layer 4 cannot take what it is given"),
    ({"anchors": [[10, 13]]}, "reads 2 levels but there are anchors for 1"),
])  # fmt: skip
def test_what_does_not_fit_is_reported(change, message):
    with pytest.raises(ValueError, match=message):
        Model({**TINY, **change})


def test_errors_name_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("nc: 3\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: lacks"):
        Model(file)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_whole_network_compiles_into_one_graph(training, mixed):
    torch._dynamo.reset()
    network = Model("yolov5n_BiFormer.yaml", nc=2, verbose=False).train(training)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = torch._dynamo.explain(network)(torch.rand(1, 3, 64, 64))
    torch._dynamo.reset()
    assert (found.graph_count, found.graph_break_count) == (1, 0), [str(cut.reason) for cut in found.break_reasons]
