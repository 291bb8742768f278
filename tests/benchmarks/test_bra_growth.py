"""Exponents: of exact power laws, of counted operations (held to their bounds), and of what is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import bra_growth
from benchmarks.bra_growth import BOUNDS, LAYERS, Curve, Plan, count, draw, exponent, grow, verdicts
from benchmarks.rivals import Setting

PLAN = Plan()
TOKENS = [side * side for side in PLAN.sides]


def test_no_exponent_without_two_sizes() -> None:
    for sizes in ([], [4], [4, 4]):
        with pytest.raises(ValueError, match="two different sizes"):
            exponent(sizes, [1.0] * len(sizes))


@pytest.mark.parametrize("power", [0.0, 1.0, 4 / 3, 2.0])
def test_exponent_of_a_power_law(power: float) -> None:
    assert exponent(TOKENS, [3e-5 * size**power for size in TOKENS]) == pytest.approx(power)


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


def test_what_kernels_are_used_does_not_change_the_count() -> None:
    assert count("n_win=7", 40, replace(PLAN, backend="triton")) == count("n_win=7", 40, PLAN)


def test_maps_go_from_40_to_320_and_dense_attention_stops_early() -> None:
    assert (PLAN.sides[0], PLAN.sides[-1]) == (40, 320)
    assert PLAN.layers(160) == list(LAYERS) and PLAN.layers(161) == [name for name in LAYERS if name != "dense"]


def test_verdicts() -> None:
    kept = {"forward": 1.1, "both": 1.0, "counted": 1.05}
    exceeded = {"forward": 1.2, "both": 1.41, "counted": 1.3}
    lines = verdicts({"region_size=8": kept, "n_win=auto": exceeded, "dense": exceeded})
    assert lines == [
        "n_win=auto: exponents are to be at most 1.4: forward 1.20, both 1.41, counted 1.30: EXCEEDED",
        "region_size=8: exponents are to be at most 1.1: forward 1.10, both 1.00, counted 1.05: kept",
    ]
    assert verdicts({}) == []


def test_grow_on_tiny_maps(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan(sides=(7, 14, 21), channels=16, dense_limit=14)
    table, notes, curves = grow(plan, Setting(rounds=1))
    measured = [row for row in table.rows if row["map"] != "exponent"]
    assert [(row["map"], row["layer"]) for row in measured] == [
        (f"{side}x{side}", name) for side in plan.sides for name in plan.layers(side)
    ]
    assert all(row["rounds"] == 1 and row["forward ms"] > 0 and row["both ms"] > 0 for row in measured)
    assert list(curves) == list(LAYERS) and curves["dense"].tokens == [49, 196]
    for row in table.rows[len(measured) :]:
        slopes = curves[row["layer"]].exponents()
        assert [row["forward ms"], row["both ms"], row["counted GFLOPs"]] == list(slopes.values())
    assert "one picture, 16 channels" in notes[0] and "beyond 14 tokens" in notes[1] and len(notes) == 4
    printed = capsys.readouterr().out
    assert all(note in printed for note in notes)


def test_a_layer_on_a_single_map_has_no_exponent() -> None:
    table, _, curves = grow(Plan(sides=(7, 8), channels=16, dense_limit=7), Setting(rounds=1))
    assert "dense" not in curves
    assert [row["layer"] for row in table.rows if row["map"] == "exponent"] == [n for n in LAYERS if n != "dense"]


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_drawing(tmp_path: Path, ending: str) -> None:
    curves = {
        "fast": Curve([49, 196], [0.1, 0.4], [0.2, 3.2], [10**9, 10**10]),
        "dense": Curve([49, 98], *[[1, 2]] * 3),
    }
    file = draw(curves, tmp_path / "new" / f"growth{ending}")
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == ".png" else b"<?xml")
