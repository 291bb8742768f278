"""The command: every form of it runs on tiny maps, and what does not make sense is refused before anything is run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bra, bra_growth
from benchmarks.bra_compare import Measured, Wanted, record
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


@pytest.mark.parametrize(
    "words, answer",
    [
        ("--shapes 8x128x40", "give batch x channels x height x width"),
        ("--rivals auto reference", "name it with --reference FILE"),
        ("--models --imgsz 100", "multiples of 32"),
        ("--imgsz 640", "--imgsz belongs to --models"),
        ("--growth --rivals auto", "leave --rivals out"),
        ("--save a.xlsx", ".json"),
        ("--device cuda:99", "GPUs here"),
    ],
)
def test_refused_with_the_remedy(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bra.main(words.split())
    assert answer in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    words = ["--device", "cuda", "--dtype", "float16", "--rivals", "dense", "plain", "sdpa", "export", "triton"]
    bra.main(["--rounds", "3", *words, "--shapes", "1x128x40x40", "--save", str(file)])
    content = json.loads(file.read_text())
    rows = {row["rival"]: row for row in content["rows"] if row["shape"] == "1x128x40x40"}
    assert list(rows) == ["dense", "plain", "sdpa", "export", "triton"] and "GPU" in content["machine"]
    assert rows["triton"]["extra both %"] < rows["plain"]["extra both %"]
    assert rows["triton"]["MiB"] > 0 and rows["triton"]["repeats"] in ("yes", "no")


# ---- ratios and exponents
PLAN = Plan()
TOKENS = [side * side for side in PLAN.sides]


def test_ratios_of_a_row() -> None:
    measured = {
        "reference": Measured([4.0, 40.0, 4.0], [9.0, 9.0, 9.0], peak=600 * 2**20),
        "dense": Measured([1.0, 1.0, 1.0], [1.5, 1.5, 1.5], peak=50 * 2**20),
        "auto": Measured([2.0, 20.0, 1.0], [3.0, 4.5, 1.0], peak=100 * 2**20, extra=(1.0, 2.5), differing=["output"]),
    }
    wanted = Wanted(memory=True, extra=True, repeatable=True)
    row = record("auto", (1, 8, 7, 7), measured, ["reference", "dense"], wanted)
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
    alone = record("auto", (1, 8, 7, 7), {"auto": measured["auto"]}, ["reference", "dense"], Wanted(memory=False))
    assert list(alone) == ["shape", "rival", "rounds", "forward ms", "both ms", "extra forward %", "extra both %"]


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
