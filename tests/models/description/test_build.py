"""Descriptions: where they are found, what they mean, and how mistakes in them are reported."""

import pytest
from torch import nn

from models.common import C3Ghost, Conv
from models.description.build import BLOCKS, SIZES, _value, build_layers, register_block, resolve_cfg
from utils.base.paths import ROOT
from utils.base.yaml import read_yaml

SMALL = {
    "nc": 2, "depth_multiple": 0.5, "width_multiple": 0.5, "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 4, "C3", [32]]],
    "head": [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, -2], 1, "Concat", [0]]],
}  # fmt: skip


def build(*rows):
    """The layers of these rows, without the one that every head needs to have."""
    return build_layers({**SMALL, "backbone": list(rows), "head": [[-1, 1, "nn.Identity", []]]}, 3)[0][:-1]


@pytest.mark.parametrize("change", [
    {"nc": None}, {"nc": 0}, {"backbone": []}, {"anchors": []}, {"anchors": [[1, 2, 3]]}, {"depth_multiple": 0},
    {"anchors": [[1, 2], [1, 2, 3, 4]]}, {"width_multiple": "wide"}, {"head": "row"}, {"anchors": [[1, "2"]]},
    {"inplace": 1},
])  # fmt: skip
def test_wrong_values_are_named(change):
    with pytest.raises(ValueError, match="anchor" if "anchors" in change else next(iter(change))):
        build_layers({**SMALL, **change}, 3)
    with pytest.raises(ValueError, match="lacks head"):
        build_layers({key: value for key, value in SMALL.items() if key != "head"}, 3)


def test_every_description_without_a_size_comes_in_all_sizes(caplog):
    for size, multiples in SIZES.items():
        for name, file in (
            (f"YOLOV5{size}_biformer.yml", "models/yolov5_BiFormer.yaml"),
            (f"models/yolov5{size}_BiFormer.yaml", "models/yolov5_BiFormer.yaml"),
            (f"yolov5{size}-p2.yaml", "models/hub/yolov5-p2.yaml"),
        ):
            description, asked = resolve_cfg(name)
            assert (description.pop("depth_multiple"), description.pop("width_multiple")) == multiples
            written = read_yaml(ROOT / file)
            assert description == {key: value for key, value in written.items() if not key.endswith("multiple")}
            assert asked.name == name.removeprefix("models/")
    build_layers({**SMALL, "colour": "red"}, 3)
    assert "unknown key 'colour'" in caplog.text


def test_files_of_one_size_stay_themselves(tmp_path):
    assert resolve_cfg("yolov5s-ghost.yaml")[1] == ROOT / "models/hub/yolov5s-ghost.yaml"
    for missing, named in (("yolov5n-ghost.yaml", "yolov5n-ghost.yaml"), ("yolov5z.yaml", "yolov5s.yaml")):
        with pytest.raises(ValueError, match=named):
            resolve_cfg(missing)
    own = tmp_path / "yolov5s_BiFormer.yaml"
    own.write_text("nc: 7\n")
    assert resolve_cfg(own) == ({"nc": 7}, own)
    description, file = resolve_cfg(SMALL)
    description["backbone"][0][3][0] = 99
    assert file is None and SMALL["backbone"][0][3][0] == 16


@pytest.mark.parametrize("file", sorted(ROOT.glob("models/**/yolo*.yaml")), ids=lambda file: file.stem)
def test_shipped_descriptions_are_plain_ascii_and_name_known_blocks(file):
    description, _ = resolve_cfg(file)
    assert file.read_bytes().isascii()
    for row in [*description["backbone"], *description["head"]]:
        assert row[2] in (*BLOCKS, "Detect") or row[2].startswith("nn.")


def test_rows_become_layers():
    layers, needed, channels = build_layers(SMALL, 3)
    assert [(layer.i, layer.f) for layer in layers] == [(0, -1), (1, -1), (2, -1), (3, [-1, -2])]
    assert [layer.type for layer in layers] == [
        "models.common.Conv", "models.common.C3", "torch.nn.modules.upsampling.Upsample", "models.common.Concat",
    ]  # fmt: skip
    assert layers[0].conv.out_channels == 8 and layers[0].np == 8 * 3 * 9 + 16
    assert len(layers[1].m) == 2  # 4 repeats at half depth
    assert layers[2].scale_factor == 2 and layers[2].mode == "nearest"
    assert needed == [1] and channels == [8, 16, None, 16]


def test_width_is_a_multiple_of_eight_but_the_heads_own_width_stays():
    assert [layer.conv.out_channels for layer in build([-1, 1, "Conv", [20]], [-1, 1, "Conv", [2 * (2 + 5)]])] == [
        16,
        14,
    ]


def test_repeats():
    """Of a sequence the later members take the former's output; blocks that take a depth are not repeated."""
    layer, pools, ghosts = build(
        [-1, 4, "Bottleneck", [16, False]], [-1, 4, "C3SPP", [16, [3, 5]]], [-1, 4, "C3Ghost", [16]]
    )
    assert isinstance(layer, nn.Sequential) and len(layer) == len(pools) == len(ghosts.m) == 2
    assert [(b.cv1.conv.in_channels, b.cv2.conv.out_channels) for b in layer] == [(3, 8), (8, 8)]
    assert isinstance(ghosts, C3Ghost)


def test_channels_follow_reshaping_blocks():
    layers = build([-1, 1, "Contract", [2]], [-1, 1, "Conv", [16]], [-1, 1, "Expand", [2]], [-1, 1, "Conv", [16]],
                   [-1, 1, "nn.BatchNorm2d", []], [-1, 1, "nn.Conv2d", [8, 24, 1]], [[-1, 1], 1, "Concat", [1]],
                   [-1, 1, "Conv", [16]])  # fmt: skip
    assert [layer.conv.in_channels for layer in layers if isinstance(layer, Conv)] == [12, 2, 32]
    assert layers[4].num_features == 8


def test_attention_takes_its_channels_and_named_arguments():
    layers = build([-1, 1, "Conv", [32]], [-1, 1, "BiLevelRoutingAttention", []],
                   [-1, 1, "BiLevelRoutingAttention", [7, 4, {"topk": 8}]])  # fmt: skip
    assert [(layer.dim, layer.num_heads, layer.topk) for layer in layers[1:]] == [(16, 8, 4), (16, 4, 8)]


@pytest.mark.parametrize("arg, value", [
    ("nc", 2), ("anchors", SMALL["anchors"]), ("None", None), ("True", True), ("nearest", "nearest"), (3, 3),
    ("1e-3", 1e-3), (["nc", ["None", 5]], [2, [None, 5]]), ("__import__('os')", "__import__('os')"), ("(1, 3)", (1, 3)),
])  # fmt: skip
def test_arguments_are_looked_up_and_never_evaluated(arg, value):
    assert _value(arg, SMALL) == value


def test_an_argument_may_be_an_activation():
    (layer,) = build([-1, 1, "Conv", [16, 3, 1, None, 1, "nn.Hardswish()"]])
    assert isinstance(layer.act, nn.Hardswish)


@pytest.mark.parametrize("row, message", [
    ([-1, 1, "Conf", [8]], "unknown layer 'Conf', did you mean 'Conv'"),
    ([-1, 1, "nn.Upsampl", [None, 2]], "did you mean 'nn.Upsample'"),
    ([-1, 1, "nn.functional", []], "unknown layer"),
    ([-1, 1, "os.system", ["ls"]], "unknown layer"),
    ([-1, 1, "Conv", []], "number of output channels"),
    ([-1, 1, "Conv", [8, 3, 1, 1, 1, True, 5]], "too many positional arguments; Conv takes c1, c2, k"),
    ([-5, 1, "Conv", [8]], "'from' must be"),
    ([3, 1, "Conv", [8]], "'from' must be"),
    ([[], 1, "Concat", [1]], "'from' must be"),
    ([-1, 0, "Conv", [8]], "repeats"),
    ([-1, 1, "Conv"], "expected \\[from"),
    ("Conv", "expected \\[from"),
    ([-1, 1, "BiLevelRoutingAttention", [{"colour": 1}]], "'colour'"),
])  # fmt: skip
def test_a_wrong_row_is_named_with_the_remedy(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        build([-1, 1, "Conv", [16]], row)
    assert str(caught.value).startswith(f"layer 1 {row}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error, said", [
    (KeyError("width"), "KeyError: 'width'"), (ImportError("no module\nof that name"), "ImportError: no module"),
    (AssertionError(), "AssertionError"), (ValueError("give an odd kernel"), "give an odd kernel"),
    (ValueError(), "ValueError"), (OSError("gone"), "OSError: gone"),
])  # fmt: skip
def test_whatever_a_constructor_raises_is_told_with_its_row_and_class(monkeypatch, error, said):
    class Raising(nn.Module):
        def __init__(self):
            raise error

    monkeypatch.setattr("models.description.build.BLOCKS", dict(BLOCKS))
    register_block(Raising, takes="")
    with pytest.raises(ValueError) as caught:
        build([-1, 1, "Raising", []])
    assert str(caught.value) == f"layer 0 [-1, 1, 'Raising', []]: {said}"
