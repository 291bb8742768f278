"""Weights carried by what layers mean."""

import copy
from functools import cache
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

import val
from models.common import Conv
from models.description.build import SIZES, build_layers, resolve_cfg
from models.experimental import attempt_load
from models.initial import build_model
from models.yolo import Model
from tests.trained import shared_folder, trained_weights
from utils.base.config import Hyp
from utils.base.networks import started_at_zero
from utils.base.paths import ROOT
from utils.checkpoints.checkpoint import describe_model, save_checkpoint
from utils.training.transfer import Layer, align, carried, intersect_dicts, match_names, report, transfer


def network(cfg, size=None, nc=3):
    description, _ = resolve_cfg(cfg)
    if size:
        description["depth_multiple"], description["width_multiple"] = SIZES[size]
    return Model(description, ch=3, nc=nc, verbose=False)


@pytest.fixture(scope="module")
def plain():
    """A nano network whose every number says which it is."""
    torch.manual_seed(0)
    model = network("yolov5n.yaml")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("anchors"):
            tensor.uniform_(0.5, 1.5) if name.endswith(("running_var", "bn.weight")) else tensor.normal_(std=0.1)
    model.names = ["person", "car", "bus"]
    return model.eval()


def layer(index, **shapes):
    return Layer(index, {name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()})


# ---- sequences of layers
def test_rows_put_in_taken_out_and_repeated():
    assert align([], []) == [] and align([layer(0, a_b=2)], []) == [] and align([], [layer(0, a_b=2)]) == []
    donor = [layer(0, conv_weight=(4, 3)), layer(1, conv_weight=(8, 4)), layer(2, conv_weight=(8, 8))]
    receiver = [donor[0], layer(1, qkv_weight=(4, 4)), *donor[1:]]
    receiver = [Layer(index, old.tensors) for index, old in enumerate(receiver)]
    assert [(old.index, new.index) for old, new, _ in align(donor, receiver)] == [(0, 0), (1, 2), (2, 3)]
    assert [(old.index, new.index) for old, new, _ in align(receiver, donor)] == [(0, 0), (2, 1), (3, 2)]
    swapped = [donor[1], donor[0]]
    assert len(align(donor[:2], swapped)) == 1  # order decides what a layer means


def test_what_feeds_a_layer_settles_ties_and_units_are_carried_whole_at_one_stride():
    donor = [Layer(0, {"conv.weight": torch.zeros(2)}, 8, ("Conv",))]
    twins = [Layer(i, {"conv.weight": torch.zeros(2)}, 8, (feed,)) for i, feed in enumerate(("C3", "Conv", "SPPF"))]
    assert [new.index for _, new, _ in align(donor, twins)] == [1]
    old = layer(0, cv1_conv_weight=(4, 3), cv1_bn_weight=4, cv2_conv_weight=(4, 4), cv2_bn_weight=4)
    wider = layer(0, cv1_conv_weight=(4, 6), cv1_bn_weight=4, cv2_conv_weight=(4, 4), cv2_bn_weight=4)
    both = {"cv2.conv.weight", "cv2.bn.weight"}  # no batch norm without its convolution
    for strides, expected in (((None, None), both), ((32, None), both), ((32, 64), set())):
        old.stride, wider.stride = strides
        assert set(carried(old, wider)) == expected


# ---- states
def test_intersect_dicts_goes_by_name_and_shape_and_sees_through_other_numbers_of_layers(plain):
    wanted = {"a": torch.zeros(2), "b": torch.zeros(3), "anchor": torch.zeros(1), "new": torch.zeros(1)}
    there = {"a": torch.ones(2), "b": torch.ones(4), "anchor": torch.ones(1)}
    assert list(intersect_dicts(wanted, there)) == ["a", "anchor"] and intersect_dicts({}, {}) == {}
    assert list(intersect_dicts(wanted, there, exclude=["anch"])) == ["a"]
    there = network("yolov5n_BiFormer.yaml").state_dict()
    fitting = intersect_dicts(plain.state_dict(), there, exclude=["anchor"])
    assert len(fitting) == len(plain.state_dict()) - 1 and fitting.keys() <= there.keys()
    assert torch.equal(fitting["model.21.cv1.conv.weight"], plain.model[20].cv1.conv.weight)
    assert torch.equal(fitting["model.26.m.2.bias"], plain.model[24].m[2].bias)
    same = plain.state_dict()
    assert intersect_dicts(same, same).keys() == same.keys()


# ---- models
BACKBONE = "stem d2 c2 d3 c3 d4 c4 d5 c5 "
NECK = "sppf5 lat5 td4 lat4 td3 dn3 bu4 dn4 bu5"  # blocks of the way to finer levels are td, to coarser ones bu
ROLES = {  # what each row with weights is for, row by row
    "": BACKBONE + NECK,
    "_BiFormer": BACKBONE + "sppf5 lat5 td4 lat4 td3 dn3 bra4 bu4 dn4 bra5 bu5",
    "-BiFormer-residual": BACKBONE + "sppf5 lat5 td4 lat4 td3 dn3 bra4+ bu4 dn4 bra5+ bu5",
    "-BiFormer-p345": BACKBONE + "sppf5 lat5 td4 lat4 bra-td3 td3 dn3 bra4 bu4 dn4 bra5 bu5",
    "-BiFormer-p2": BACKBONE + "sppf5 lat5 td4 lat4 td3 lat3 td2 dn2 bra3 bu3 dn3 bra4 bu4 dn4 bra5 bu5",
    "-C3BRA": BACKBONE + NECK,
    "-C3BRA-residual": BACKBONE + NECK,
    "-p2": BACKBONE + "sppf5 lat5 td4 lat4 td3 lat3 td2 dn2 bu3 dn3 bu4 dn4 bu5",
    "-p34": BACKBONE + "sppf5 lat5 td4 lat4 td3 dn3 bu4",
    "-p6": BACKBONE + "d6 c6 sppf6 lat6 td5 lat5 td4 lat4 td3 dn3 bu4 dn4 bu5 dn5 bu6",
    "-bifpn": BACKBONE + "sppf5 lat5 td4 lat4 td3 dn3 bu4-of-3 dn4 bu5",
    "-fpn": BACKBONE + "sppf5 fpn5 join4 fpn4 join3 fpn3",
}
CLASSES, OTHERS = ("person", "car", "bus"), ("Bus", "kite")


@cache
def built(rest):
    return Model(f"yolov5n{rest}.yaml", verbose=False)


@cache
def stand_in(rest, size="n", classes=CLASSES):
    """A network of any size at no cost: its head has numbers, of all else only memory that nobody looks at."""
    with torch.device("meta"):
        layers, _, _ = build_layers({**resolve_cfg(f"yolov5{size}{rest}.yaml")[0], "nc": len(classes)}, 3)
    model = nn.Sequential(*layers).to_empty(device="cpu")
    for tensor in [model[-1].anchors, *model[-1].parameters()]:
        nn.init.uniform_(tensor)
    model[-1].stride = built(rest).stride
    wider = SIZES[size][1] / SIZES["n"][1]
    maps = [shape and (round(shape[0] * wider), shape[1]) for shape in built(rest).layer_maps]
    return SimpleNamespace(model=model, layer_maps=maps, names=list(classes))


def units(module, name=""):
    """What is carried whole or not at all: convolutions with their norms, and modules without parts, by name."""
    if isinstance(module, Conv) or not [*module.children()]:
        return {name: {f"{name}{key}": tensor for key, tensor in module.state_dict().items()}}
    return {k: unit for part, child in module.named_children() for k, unit in units(child, f"{name}{part}.").items()}


def counterparts(donor, receiver):
    """Where in memory everything lies that a donor (rest, size) has for a receiver, by the receiver's keys."""
    found = {}
    old, new = (
        dict(zip(ROLES[rest].split(), (row for row in stand_in(rest, size).model[:-1] if row.np), strict=True))
        for rest, size in (donor, receiver)
    )
    for role, row in new.items():
        form = role.removesuffix("+") if role.endswith("+") else f"{role}+"  # replaced or added: the same queries
        for name, mine in units(row).items() if {role, form} & old.keys() else ():
            given = units(old.get(role, old.get(form))).get(name, {})
            alike = {key: t.shape for key, t in given.items()} == {key: t.shape for key, t in mine.items()}
            if alike and (role in old or name.startswith("qkv")):
                found |= {f"model.{row.i}.{key}": tensor.data_ptr() for key, tensor in given.items()}
    return found


def check(donor, receiver):
    """Compare a transfer into a network of other classes with the table of roles; return what it found."""
    old, new = stand_in(*donor), stand_in(*receiver, OTHERS)
    found, head = transfer(old, new, OTHERS), new.model[-1]
    levels = {key: value for key, value in found.state.items() if key.startswith(f"model.{head.i}.m.")}
    body = {key: value.data_ptr() for key, value in found.state.items() if not key.startswith(f"model.{head.i}.")}
    assert body == counterparts(donor, receiver), (donor, receiver)
    twins = [
        (level, source)
        for level, conv in enumerate(head.m)
        for source, other in enumerate(old.model[-1].m)
        if head.stride[level] == old.model[-1].stride[source] and conv.in_channels == other.in_channels
    ]
    assert len(levels) == 2 * len(twins)
    for level, source in twins:
        mine, given = levels[f"model.{head.i}.m.{level}.bias"].view(3, 7), old.model[-1].m[source].bias.view(3, 8)
        assert torch.equal(mine[:, :6], given[:, [0, 1, 2, 3, 4, 7]])
        assert torch.equal(mine[:, 6], head.m[level].bias.view(3, 7)[:, 6])
    return found


@pytest.mark.parametrize("donor", ROLES)
def test_rows_go_where_they_mean_the_same_and_nowhere_else(donor):
    for receiver in ROLES:
        check((donor, "n"), (receiver, "n"))


@pytest.mark.parametrize("size", "nsmlx")
def test_all_of_a_plain_network_goes_into_those_with_attention_of_its_size_and_back(size):
    family = ("", "_BiFormer", "-BiFormer-residual", "-C3BRA-residual")
    everything = stand_in("", size).model.state_dict()
    for donor, receiver in product(family, family):
        found = check((donor, size), (receiver, size))
        assert len(found.state) >= len(everything) and (
            "" not in (donor, receiver) or len(found.state) == len(everything)
        )
    for other in set("nsmlx") - {size}:
        check(("", size), ("", other))
        check(("", size), ("_BiFormer", other))


@pytest.mark.parametrize(
    "rest, count",
    [
        ("_BiFormer", 349),
        ("-BiFormer-residual", 349),
        ("-BiFormer-p345", 349),
        ("-BiFormer-p2", 349),
        ("-C3BRA-residual", 349),
        ("-p2", 349),
        ("-p34", 349 - 36 - 2),  # dn4, bu5, and the level they feed
        ("-p6", 349 - 14 * 6 - 2),  # d5, c5, sppf, lat5 and bu5 have other widths, and the level at stride 32 has
        ("-C3BRA", 349 - 2 * 12),  # the bottlenecks inside two C3 blocks
    ],
)
def test_how_much_is_carried(rest, count):
    assert len(check(("", "n"), (rest, "n")).state) == len(check((rest, "n"), ("", "n")).state) == count


def test_a_fourth_level_takes_what_lies_at_the_same_strides(plain):
    found = transfer(plain, network("yolov5n6.yaml"), plain.names)
    assert {new: old for new, (old, _, _) in found.pairs.items()} == {
        **{i: i for i in (0, 1, 2, 3, 4, 5, 6)},
        **{19: 13, 20: 14, 23: 17, 24: 18, 26: 20, 27: 21},
    }  # not SPPF, which is as wide there, at stride 64
    assert found.head[0] == "head: boxes kept at stride 8, 16; fresh at stride 32, 64"
    assert found.head[2] == "anchors: those of the weights at stride 8, 16"
    pyramid = network("yolov5-fpn.yaml", "n")
    assert 10 not in transfer(plain, pyramid, plain.names).pairs  # one input; the donor's like it joins two maps
    found = transfer(plain, Model("yolov5n.yaml", nc=3, anchors=4, verbose=False), plain.names)
    fresh = "head: starts fresh (no level of the same stride, width and number of anchors)"
    assert len(found.state) == 342 and found.head == [fresh]


@pytest.mark.parametrize("sides", [(64, 64), (64, 96), (320, 224), (640, 640)])
@pytest.mark.parametrize("rest", ["BiFormer-residual", "C3BRA-residual"])
def test_before_the_first_step_the_receiver_computes_what_the_donor_does(plain, rest, sides):
    """Attention that begins as nothing was put in, and nothing else."""
    other = network(f"yolov5n-{rest}.yaml").eval()
    other.load_state_dict(transfer(plain, other, plain.names).state, strict=False)
    image = torch.rand(1, 3, *sides)
    with torch.no_grad():
        expected = plain(image)[0]
        assert expected.std() > 1 and torch.equal(other(image)[0], expected)


def test_classes_go_by_name(plain):
    other = network("yolov5n.yaml", nc=4)
    fresh = copy.deepcopy(other.state_dict())
    found = transfer(plain, other, ["tram", "Bus", "bicycle", "PERSON"])
    old = plain.model[24].m[1].weight.unflatten(0, (3, 8))
    new, start = (state["model.24.m.1.weight"].unflatten(0, (3, 9)) for state in (found.state, fresh))
    assert torch.equal(new[:, :5], old[:, :5])
    assert torch.equal(new[:, 6], old[:, 7]) and torch.equal(new[:, 8], old[:, 5])
    assert torch.equal(new[:, [5, 7]], start[:, [5, 7]])
    assert "head: 2 of 4 classes kept: Bus, PERSON; fresh: tram, bicycle" in found.head
    assert match_names(["Cat", "dog", "stop sign"], ["cat", "dog", "Stop_Sign", "bird"]) == {0: 0, 1: 1, 2: 2}
    assert match_names(["Cat", "cat"], ["cat", "Cat", "CAT"]) == {0: 1, 1: 0}  # which of the two is CAT?
    assert match_names(["a", "a"], ["a"]) == {0: 0} and match_names([], ["a"]) == match_names(["a"], []) == {}


@pytest.mark.parametrize("keep, says", [(False, "the weights at stride 8, 16"), (True, "the model description")])
def test_anchors_go_with_the_boxes_made_for_them(plain, keep, says):
    donor = copy.deepcopy(plain)
    donor.model[-1].anchors *= 1.5
    found = transfer(donor, network("yolov5-p34.yaml", "n"), plain.names, keep_anchors=keep)
    assert ("model.21.anchors" in found.state) != keep and f"anchors: those of {says}" in found.head
    assert keep or torch.equal(found.state["model.21.anchors"], donor.model[-1].anchors[:2])


def test_the_report_says_what_came_from_where(plain):
    other = network("yolov5n_BiFormer.yaml")
    assert report(transfer(plain, other, ["car", "bus", "kite"]), other) == [
        "layers 0-18 from 0-18",
        "layers 21-22 from 20-21",
        "layer 25 from 23",
        "fresh: layers 20 BiLevelRoutingAttention, 24 BiLevelRoutingAttention",
        "head: boxes kept at stride 8, 16, 32",
        "head: 2 of 3 classes kept: car, bus; fresh: kite",
        "anchors: those of the weights at stride 8, 16, 32",
    ]
    for rest, line in (
        ("-C3BRA", "layer 20 from 20 (C3BRA, fresh: m)"),
        ("-C3BRA-residual", "layer 20 from 20 (C3BRA, fresh: m.1)"),
    ):
        assert line in report(transfer(plain, built(rest), ["car"] * 80), built(rest))
    first, second = (f"{row} BiLevelRoutingAttention (adds nothing yet)" for row in (20, 24))
    lines = report(transfer(plain, built("-BiFormer-residual"), ["car"] * 80), built("-BiFormer-residual"))
    assert f"fresh: layers {first}, {second}" in lines
    lines = report(transfer(built("_BiFormer"), built("-BiFormer-residual"), ["car"] * 80), built("-BiFormer-residual"))
    assert "layer 24 from 24 (BiLevelRoutingAttention, fresh: lepe, wo)" in lines


# ---- a training run
def test_val_finds_the_donors_map_to_the_last_digit(tmp_path, tmp_path_factory):
    """And a receiver comes back from a file as it was."""
    best, data = trained_weights("yolov5n.yaml", shared_folder(tmp_path_factory))
    donor, files = attempt_load(best, fuse=False), [best]
    for rest in ("BiFormer-residual", "C3BRA-residual"):
        model = Model(f"yolov5n-{rest}.yaml", nc=2, verbose=False)
        model.names = donor.names
        model.load_state_dict(transfer(donor, model, donor.names).state, strict=False)
        files.append(tmp_path / f"{rest}.pt")
        save_checkpoint(files[-1], {"epoch": -1, "model": describe_model(model), "ema": None})
        again = attempt_load(files[-1], fuse=False)
        assert started_at_zero(again).keys() == started_at_zero(model).keys() != set() and again.yaml == model.yaml
    given = {"data": str(data), "imgsz": 64, "workers": 0, "device": "cpu", "project": str(tmp_path)}
    (expected, maps, _), *others = (val.run(weights=str(file), **given) for file in files)
    assert expected[2] > 0.3 and all((found, [*each]) == (expected, [*maps]) for found, each, _ in others)


def begun(weights, cfg, names):
    opt = SimpleNamespace(weights=str(weights), cfg=cfg, freeze=["0"])
    return build_model(SimpleNamespace(opt=opt, names=names, hyp=Hyp(), resumed=None, device=torch.device("cpu")))


@pytest.mark.parametrize("cfg", ["yolov5n_BiFormer.yaml", "yolov5n-BiFormer-residual.yaml"])
def test_a_v61_checkpoint_starts_a_network_with_bra_and_other_classes(cfg):
    file = ROOT / "tests/golden/yolov5n.pt"
    if not file.is_file():
        pytest.skip("needs tests/golden/yolov5n.pt")
    donor = attempt_load(file, fuse=False)
    model = begun(file, cfg, [donor.names[1], "kite"])
    assert model.names == [donor.names[1], "kite"]
    assert torch.equal(model.model[25].cv3.conv.weight, donor.model[23].cv3.conv.weight)
    new, old = model.model[26].m[0].bias.view(3, 7), donor.model[24].m[0].bias.view(3, -1)
    assert torch.equal(new[:, :5], old[:, :5]) and torch.equal(new[:, 5], old[:, 6])


def test_anchors_that_a_description_names_stay(tmp_path, plain):
    description = yaml.safe_load((ROOT / "models/yolov5n.yaml").read_text())
    description["anchors"][0] = [5, 5, 6, 6, 7, 7]
    save_checkpoint(tmp_path / "donor.pt", {"epoch": -1, "model": describe_model(plain), "ema": None})
    mine = begun(tmp_path / "donor.pt", description, plain.names)
    assert torch.equal(mine.model[-1].anchors, Model(description, nc=3, verbose=False).model[-1].anchors)
    assert torch.equal(mine.model[0].conv.weight, plain.model[0].conv.weight)
