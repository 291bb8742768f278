"""Descriptions: where they are found, what they mean, and how mistakes in them are reported."""

import pytest
from torch import nn

from models.common import Bottleneck, C3Ghost, Conv
from models.description.build import BLOCKS, SIZES, find_block, _value, _width, build_layers, resolve_cfg
from utils.base.paths import ROOT
from utils.base.yaml import read_yaml

SMALL = {
    "nc": 2,
    "depth_multiple": 0.5,
    "width_multiple": 0.5,
    "anchors": [[10, 13, 16, 30]],
    "backbone": [[-1, 1, "Conv", [16, 3, 2]], [-1, 4, "C3", [32]]],
    "head": [[-1, 1, "nn.Upsample", ["None", 2, "nearest"]], [[-1, -2], 1, "Concat", [0]]],
}


def build(rows, **changes):
    """The layers of these rows, without the one that every head needs to have."""
    layers, needed = build_layers({**SMALL, "backbone": rows, "head": [[-1, 1, "nn.Identity", []]], **changes}, 3)
    return layers[:-1], needed


@pytest.mark.parametrize(
    "change",
    [{"nc": None}, {"nc": 0}, {"backbone": []}, {"anchors": []}, {"anchors": [[1, 2, 3]]},
     {"anchors": [[1, 2], [1, 2, 3, 4]]}, {"width_multiple": "wide"}, {"head": "row"}, {"depth_multiple": 0}],
)  # fmt: skip
def test_wrong_values_are_named(change):
    with pytest.raises(ValueError, match="anchor" if "anchors" in change else next(iter(change))):
        build_layers({**SMALL, **change}, 3)


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="lacks head"):
        build_layers({key: value for key, value in SMALL.items() if key != "head"}, 3)


def test_an_unknown_key_is_a_warning(caplog):
    build_layers({**SMALL, "colour": "red"}, 3)
    assert "unknown key 'colour'" in caplog.text


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["yolov5{}_BiFormer.yaml", "YOLOV5{}_biformer.yml", "models/yolov5{}_BiFormer.yaml"])
def test_every_size_of_biformer_is_one_file(name, size):
    description, asked = resolve_cfg(name.format(size))
    written = read_yaml(ROOT / "models" / "yolov5_BiFormer.yaml")
    assert (description.pop("depth_multiple"), description.pop("width_multiple")) == SIZES[size]
    assert description == {key: value for key, value in written.items() if not key.endswith("multiple")}
    assert asked.name == name.format(size).removeprefix("models/")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("file", ["yolov5-p2", "yolov5-BiFormer-p345", "yolov5-BiFormer-residual"])
def test_every_description_without_a_size_comes_in_all_sizes(file, size):
    description, asked = resolve_cfg(file.replace("yolov5", f"yolov5{size}") + ".yaml")
    written = read_yaml(ROOT / "models/hub" / f"{file}.yaml")
    assert (description["depth_multiple"], description["width_multiple"]) == SIZES[size]
    assert description["head"] == written["head"] and asked.name == file.replace("yolov5", f"yolov5{size}") + ".yaml"


def test_files_of_one_size_stay_themselves():
    assert resolve_cfg("yolov5s-ghost.yaml")[1] == ROOT / "models/hub/yolov5s-ghost.yaml"
    assert resolve_cfg("yolov5-p2.yaml")[0] == read_yaml(ROOT / "models/hub/yolov5-p2.yaml")
    with pytest.raises(ValueError, match="yolov5n-ghost.yaml"):
        resolve_cfg("yolov5n-ghost.yaml")


def test_a_file_of_that_very_name_comes_first(tmp_path):
    own = tmp_path / "yolov5s_BiFormer.yaml"
    own.write_text("nc: 7\n")
    assert resolve_cfg(own) == ({"nc": 7}, own)


def test_a_mapping_is_copied():
    description, file = resolve_cfg(SMALL)
    description["backbone"][0][3][0] = 99
    assert file is None and SMALL["backbone"][0][3][0] == 16


def test_a_missing_file_names_what_comes_close():
    with pytest.raises(ValueError, match="yolov5s.yaml"):
        resolve_cfg("yolov5z.yaml")


@pytest.mark.parametrize("file", sorted(ROOT.glob("models/**/yolo*.yaml")), ids=lambda file: file.stem)
def test_shipped_descriptions_are_plain_ascii_and_name_known_blocks(file):
    description, _ = resolve_cfg(file)
    assert file.read_bytes().isascii()
    for row in [*description["backbone"], *description["head"]]:
        assert row[2] in (*BLOCKS, "Detect") or row[2].startswith("nn.")


def test_rows_become_layers():
    layers, needed = build_layers(SMALL, 3)
    assert [layer.i for layer in layers] == [0, 1, 2, 3]
    assert [layer.type for layer in layers] == [
        "models.common.Conv", "models.common.C3", "torch.nn.modules.upsampling.Upsample", "models.common.Concat",
    ]  # fmt: skip
    assert layers[0].conv.out_channels == 8 and layers[0].np == 8 * 3 * 9 + 16
    assert len(layers[1].m) == 2  # 4 repeats at half depth
    assert layers[2].scale_factor == 2 and layers[2].mode == "nearest"
    assert needed == [1]


def test_width_is_a_multiple_of_eight_but_the_heads_own_width_stays():
    assert _width(SMALL, 20) == 16
    assert _width(SMALL, 2 * (2 + 5)) == 14


def test_repeats_make_a_sequence_whose_later_members_take_the_formers_output():
    (layer,), _ = build([[-1, 4, "Bottleneck", [16, False]]])
    assert isinstance(layer, nn.Sequential) and layer.__len__() == 2
    assert [(b.cv1.conv.in_channels, b.cv2.conv.out_channels) for b in layer] == [(3, 8), (8, 8)]
    (layer,), _ = build([[-1, 4, "C3SPP", [16, [3, 5]]]])
    assert len(layer) == 2


def test_blocks_that_take_a_depth_are_not_repeated():
    (layer,), _ = build([[-1, 4, "C3Ghost", [16]]])
    assert isinstance(layer, C3Ghost) and len(layer.m) == 2 and layer.n == 1


def test_channels_follow_reshaping_blocks():
    layers, _ = build([[-1, 1, "Contract", [2]], [-1, 1, "Conv", [16]], [-1, 1, "Expand", [2]], [-1, 1, "Conv", [16]],
                       [-1, 1, "nn.BatchNorm2d", []], [-1, 1, "nn.Conv2d", [8, 24, 1]], [[-1, 1], 1, "Concat", [1]],
                       [-1, 1, "Conv", [16]]])  # fmt: skip
    assert [layer.conv.in_channels for layer in layers if isinstance(layer, Conv)] == [12, 2, 32]
    assert layers[4].num_features == 8


def test_attention_takes_its_channels_and_named_arguments():
    rows = [[-1, 1, "Conv", [32]], [-1, 1, "BiLevelRoutingAttention", []], [-1, 1, "BiLevelRoutingAttention", [7, 4]],
            [-1, 1, "BiLevelRoutingAttention", [{"topk": 8, "num_heads": 2}]]]  # fmt: skip
    layers, _ = build(rows)
    assert [(layer.dim, layer.num_heads, layer.topk) for layer in layers[1:]] == [(16, 8, 4), (16, 4, 4), (16, 2, 8)]
    assert layers[3].arguments == [16, {"topk": 8, "num_heads": 2}]


@pytest.mark.parametrize(
    "arg, value",
    [("nc", 2), ("anchors", SMALL["anchors"]), ("None", None), ("True", True), ("nearest", "nearest"), (3, 3),
     ("1e-3", 1e-3), (["nc", ["None", 5]], [2, [None, 5]]), ("__import__('os')", "__import__('os')"),
     ("(1, 3)", (1, 3))],
)  # fmt: skip
def test_arguments_are_looked_up_and_never_evaluated(arg, value):
    assert _value(arg, SMALL) == value


def test_an_argument_may_be_an_activation():
    assert isinstance(_value("nn.ReLU()", SMALL), nn.ReLU)
    (layer,), _ = build([[-1, 1, "Conv", [16, 3, 1, None, 1, "nn.Hardswish()"]]])
    assert isinstance(layer.act, nn.Hardswish)


@pytest.mark.parametrize(
    "row, message",
    [
        ([-1, 1, "Conf", [8]], "unknown layer 'Conf'; did you mean 'Conv'"),
        ([-1, 1, "nn.Upsampl", [None, 2]], "did you mean 'nn.Upsample'"),
        ([-1, 1, "nn.functional", []], "unknown layer"),
        ([-1, 1, "os.system", ["ls"]], "unknown layer"),
        ([-1, 1, "Conv", []], "number of output channels"),
        ([-1, 1, "Conv", [8, 3, 1, 1, 1, True, 5]], "positional arguments"),
        ([-5, 1, "Conv", [8]], "'from' must be"),
        ([3, 1, "Conv", [8]], "'from' must be"),
        ([[], 1, "Concat", [1]], "'from' must be"),
        ([-1, 0, "Conv", [8]], "repeats"),
        ([-1, 1, "Conv"], "expected \\[from"),
        ("Conv", "expected \\[from"),
        ([-1, 1, "BiLevelRoutingAttention", [{"colour": 1}]], "colour"),
    ],
)
def test_a_wrong_row_is_named_with_the_remedy(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        build([[-1, 1, "Conv", [16]], row])
    assert str(caught.value).startswith(f"layer 1 {row}: ")
    assert "\n" not in str(caught.value)


def test_biformer_blocks():
    rows = [[-1, 1, "BiFormerStem", [32]], [-1, 4, "BiFormerStage", [32, 2, 0.1, {"n_win": 4, "head_dim": 8}]],
            [-1, 1, "BiFormerMerging", [64]], [-1, 4, "C3BRA", [64, False]]]  # fmt: skip
    layers, _ = build(rows)
    assert len(layers[1]) == 2 and layers[1].n == 1
    assert [layer.np > 0 for layer in layers] == [True] * 4


def test_blocks_are_found_by_name():
    assert find_block("Bottleneck", {}) is Bottleneck
    assert find_block("nn.SiLU", {}) is nn.SiLU
