"""The command: every form of it runs on tiny maps, and what does not make sense is refused before anything is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bra, bra_growth
from benchmarks.bra_growth import BOUNDS, LAYERS, Plan, count, exponent

TINY = ["--rounds", "1", "--threads", "1"]
MODULE = """
from torch import nn


class BiLevelRoutingAttention(nn.Conv2d):
    def __init__(self, dim):
        super().__init__(dim, dim, 1)
"""


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    file = tmp_path / "reference.py"
    file.write_text(MODULE)
    return file


def test_a_module_of_a_file_next_to_ours(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "table.json"
    words = ["--reference", str(reference), "--shapes", "1x8x7x7", "1x16x7x9", "--no-memory", "--save", str(file)]
    before = torch.get_num_threads()
    bra.main([*TINY, *words])
    assert torch.get_num_threads() == before
    content = json.loads(file.read_text())
    assert [(row["shape"], row["rival"]) for row in content["rows"]] == [
        ("1x8x7x7", "reference"),
        ("1x8x7x7", "auto"),
        ("1x16x7x9", "reference"),
        ("1x16x7x9", "auto"),
        ("geometric mean", "auto"),
    ]
    product = content["rows"][1]["both vs reference"] * content["rows"][3]["both vs reference"]
    assert content["rows"][4]["both vs reference"] == pytest.approx(product**0.5)
    assert content["machine"]["threads"] == "1" and content["machine"]["command"].endswith(str(file))
    printed = capsys.readouterr().out
    assert "baseline: reference" in printed and "geometric mean" in printed


def test_the_maps_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    bra.main([*TINY, "--models", "n", "--imgsz", "64", "--rivals", "auto", "--no-memory", "--save", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["model"], row["image"], row["level"], row["shape"]) for row in rows] == [
        ("n", 64, "P4", "1x128x4x4"),
        ("n", 64, "P5", "1x256x2x2"),
    ]


def test_growth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--growth", "--sides", "7", "14", "--channels", "16", "--plot", str(tmp_path / "growth.png")]
    bra.main([*TINY, *words, "--save", str(tmp_path / "growth.md")])
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    text = (tmp_path / "growth.md").read_text()
    assert "| exponent | n_win=auto |" in text and "exponents are to be at most 1.4" in text
    assert "14x14" in capsys.readouterr().out


# ---- ratios and exponents
PLAN = Plan()
TOKENS = [side * side for side in PLAN.sides]


def test_exponent_is_the_least_squares_slope() -> None:
    # logarithms to base 10: x = 0, 1, 2 and y = 0, 0, 3; the slope of the line is 3 / 2
    assert exponent([1, 10, 100], [1, 1, 1000]) == pytest.approx(1.5)


@pytest.mark.parametrize("side", [40, 57])
@pytest.mark.parametrize("name", list(LAYERS))
def test_counted_operations_by_hand(name: str, side: int) -> None:
    width = PLAN.channels
    layer = bra_growth.make_layer(name, PLAN)
    regions, tall, tokens, attended = 0, side, side * side, side * side
    if name != "dense":
        grid = layer.region_grid(side, side)
        regions, tall = grid.rows * grid.cols, grid.rows * grid.height
        tokens = tall * tall  # padding costs like the rest
        attended = 4 * grid.height * grid.width  # four regions
    assert tall >= side
    projections = (3 * tokens + side * side) * width**2  # but for the output layer, which comes after the crop
    convolution = 9 * tokens * width
    routing = regions**2 * width
    attention = 2 * tokens * attended * width
    assert count(name, side, PLAN) == 2 * (projections + convolution + routing + attention)


@pytest.mark.parametrize("channels", [64, 128])
@pytest.mark.parametrize("name", list(BOUNDS))
def test_counted_operations_keep_the_bounds(name: str, channels: int) -> None:
    plan = replace(PLAN, channels=channels)
    found = exponent(TOKENS, [count(name, side, plan) for side in plan.sides])
    assert 0.95 < found <= BOUNDS[name]


def test_counted_operations_of_the_others_do_not() -> None:
    for name in ("n_win=7", "dense"):
        assert exponent(TOKENS, [count(name, side, PLAN) for side in PLAN.sides]) > 1.5
