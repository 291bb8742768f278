"""The table of a comparison: which maps, whose ratios over whom, and what is said of those that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import bra_compare, rivals
from benchmarks.bra_compare import Case, Measured, Wanted, add_means, attention_shapes, compare, model_cases, record
from benchmarks.report import Table
from benchmarks.rivals import Rival, Setting, Shape
from models.bra.attention import BiLevelRoutingAttention
from models.yolo import Model

QUICK = Setting(rounds=1)
TIME_ONLY = Wanted(memory=False)
SHAPE = (1, 8, 7, 7)


@pytest.fixture(scope="module")
def nano() -> Model:
    return Model("yolov5n_BiFormer.yaml", verbose=False).eval()


def test_no_attention_no_shapes(tmp_path: Path) -> None:
    anchors = [[10, 10, 16, 16]]
    head = [[-1, 1, "Conv", [8, 1, 1]], [[1], 1, "Detect", ["nc", "anchors"]]]
    backbone = [[-1, 1, "Conv", [8, 6, 2, 2]]]
    file = tmp_path / "plain.yaml"
    description = {"nc": 2, "depth_multiple": 1.0, "width_multiple": 1.0, "anchors": anchors}
    file.write_text(yaml.safe_dump({**description, "backbone": backbone, "head": head}))
    with pytest.raises(ValueError, match="no BiLevelRoutingAttention"):
        attention_shapes(Model(file, verbose=False), 64, 1)


def test_shapes_read_off_a_model_are_those_of_a_real_run(nano: Model) -> None:
    seen: list[Shape] = []
    hooks = [
        module.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
        for module in nano.modules()
        if isinstance(module, BiLevelRoutingAttention)
    ]
    with torch.no_grad():
        nano(torch.zeros(2, 3, 96, 96))
    for hook in hooks:
        hook.remove()
    assert attention_shapes(nano, 96, 2) == seen == [(2, 128, 6, 6), (2, 256, 3, 3)]
    assert attention_shapes(nano, 32, 1) == [(1, 128, 2, 2), (1, 256, 1, 1)]  # the first hooks are gone


def test_maps_of_the_models_by_arithmetic() -> None:
    """Strides 16 and 32; width 0.25 of 512 and 1024 channels; with default arguments, as build() makes them."""
    found = model_cases("n", [640, 1280], 3)
    assert [case.shape for case in found] == [
        (3, 128, 40, 40),
        (3, 256, 20, 20),
        (3, 128, 80, 80),
        (3, 256, 40, 40),
    ]
    assert [tuple(case.labels.values()) for case in found] == [
        ("n", 640, "P4"),
        ("n", 640, "P5"),
        ("n", 1280, "P4"),
        ("n", 1280, "P5"),
    ]


def test_the_models_have_the_layer_that_is_compared(nano: Model) -> None:
    usual = BiLevelRoutingAttention(8)
    layers = [module for module in nano.modules() if isinstance(module, BiLevelRoutingAttention)]
    for name in ("n_win", "region_size", "num_heads", "topk", "mask_padding"):
        assert {getattr(layer, name) for layer in layers} == {getattr(usual, name)}, name


def test_ratios_of_a_row() -> None:
    measured = {
        "reference": Measured([4.0, 40.0, 4.0], [9.0, 9.0, 9.0], peak=600 * 2**20),
        "dense": Measured([1.0, 1.0, 1.0], [1.5, 1.5, 1.5], peak=50 * 2**20),
        "auto": Measured([2.0, 20.0, 1.0], [3.0, 4.5, 1.0], peak=100 * 2**20, extra=(1.0, 2.5), differing=["output"]),
    }
    wanted = Wanted(memory=True, extra=True, repeatable=True)
    row = record("auto", SHAPE, measured, ["reference", "dense"], wanted)
    assert row == {
        "shape": "1x8x7x7",
        "rival": "auto",
        "rounds": 3,
        "forward ms": 2000,
        "both ms": 3000,
        "MiB": 100,
        "forward vs reference": 2,
        "both vs reference": 3,
        "memory vs reference": 6,
        "forward vs dense": 0.5,
        "both vs dense": 0.5,
        "memory vs dense": 0.5,
        "extra forward %": 1.0,
        "extra both %": 2.5,
        "repeats": "no",
    }
    alone = record("auto", SHAPE, {"auto": measured["auto"]}, ["reference", "dense"], TIME_ONLY)
    assert list(alone) == ["shape", "rival", "rounds", "forward ms", "both ms", "extra forward %", "extra both %"]


def test_means_are_geometric_and_pass_over_gaps() -> None:
    table = Table({"shape": 0, "rival": 0, "both ms": 0, "both vs dense": 0, "both vs reference": 0})
    table.add(rival="auto", **{"both ms": 1.0, "both vs dense": 4.0, "both vs reference": 5.0})
    table.add(rival="auto", **{"both ms": 2.0, "both vs dense": 0.25})
    table.add(rival="other", **{"both vs dense": 1000.0})
    add_means(table, "auto")
    add_means(table, "nobody")
    assert len(table.rows) == 4
    mean = table.rows[-1]
    assert mean["both vs dense"] == pytest.approx(1) and mean["both vs reference"] == pytest.approx(5)
    assert mean["both ms"] is None and mean["rival"] == "auto"


def test_a_comparison_names_baseline_yardsticks_and_who_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cases = [Case(SHAPE, {"model": "n"}), Case((2, 8, 7, 7), {"model": "s"})]
    table, notes = compare(["plain", "auto", "triton", "dense"], cases, QUICK, TIME_ONLY)
    assert list(table.widths)[:6] == ["model", "shape", "rival", "rounds", "forward ms", "both ms"]
    ratios = [column for column in table.widths if " vs " in column]
    assert ratios == ["forward vs plain", "both vs plain", "forward vs dense", "both vs dense"]
    assert [(row["model"], row["rival"]) for row in table.rows] == [
        *((model, rival) for model in "ns" for rival in ("plain", "auto", "dense")),
        (None, "auto"),
        (None, "dense"),
    ]
    assert table.rows[0]["both vs plain"] == 1 and table.rows[2]["both vs dense"] == 1
    assert notes[0] == "baseline: plain" and notes[-1].startswith("triton is left out")
    printed = capsys.readouterr().out
    assert all(note in printed for note in notes)


def test_a_rival_may_fail_on_one_map_only(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rivals.layer

    def picky(name: str, shape: Shape, setting: Setting) -> Rival:
        if name == "plain" and shape == SHAPE:
            raise ValueError("too small")
        return whole(name, shape, setting)

    monkeypatch.setattr(rivals, "layer", picky)
    table, notes = compare(["plain", "auto"], [Case(SHAPE), Case((2, 8, 7, 7))], QUICK, TIME_ONLY)
    assert [row["rival"] for row in table.rows] == ["auto", "plain", "auto", "auto"]
    assert table.rows[0]["both vs plain"] is None and table.rows[-1]["both vs plain"] == table.rows[2]["both vs plain"]
    assert notes[-1] == "plain is left out on 1x8x7x7: too small"


def test_without_the_baseline_there_is_nothing_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="no baseline: triton is left out"):
        compare(["triton", "auto"], [Case(SHAPE)], QUICK, TIME_ONLY)


def test_what_is_wanted_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bra_compare, "peak", lambda prepare, name, shape, setting, backward: 2**20 * (1 + backward))
    monkeypatch.setattr(bra_compare, "extra_memory", lambda name, shape, setting: (3.0, 4.0))
    monkeypatch.setattr(Rival, "differing", lambda self: ["output"])
    table, notes = compare(["plain"], [Case(SHAPE)], QUICK, Wanted(extra=True, repeatable=True))
    row = table.rows[0]
    assert (row["MiB"], row["memory vs plain"]) == (2, 1)
    assert (row["extra forward %"], row["extra both %"], row["repeats"]) == (3, 4, "no")
    assert notes[-1] == "two runs of plain on 1x8x7x7 differ in: output" and len(table.rows) == 1
