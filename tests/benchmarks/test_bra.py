"""The command: every form of it runs on tiny maps, and what does not make sense is refused before anything is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bra, rivals
from models.bra.functions import BACKENDS

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


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        bra.main(words)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, answer",
    [
        ("--shapes", "expected at least one argument"),
        ("--shapes 8x128x40", "give batch x channels x height x width"),
        ("--shapes 8x128x0x40", "give batch x channels x height x width"),
        ("--shapes 1x12x7x7", "multiple of the 8 heads"),
        ("--rivals flash", "choose from"),
        ("--rivals auto reference", "name it with --reference FILE"),
        ("--reference none.py", "no file none.py"),
        ("--models q", "choose from"),
        ("--models --growth", "not allowed with"),
        ("--models --imgsz 100", "multiples of 32"),
        ("--imgsz 640", "--imgsz belongs to --models"),
        ("--growth --batch 2", "--batch belongs to --models"),
        ("--dense-limit 80", "--dense-limit belongs to --growth"),
        ("--plot a.png", "--plot belongs to --growth"),
        ("--growth --plot a.txt", ".png"),
        ("--growth --sides 40 40", "two different sizes"),
        ("--growth --channels 40", "multiple of 16"),
        ("--growth --rivals auto", "leave --rivals out"),
        ("--growth --no-memory", "leave --memory out"),
        ("--save a.xlsx", ".json"),
        ("--rounds 0", "at least 1"),
        ("--threads two", "at least 1"),
        ("--budget 0", "more than none"),
        ("--budget nan", "more than none"),
        ("--device abacus", "give cpu, cuda"),
        ("--device meta", "give cpu, cuda"),
        ("--device cuda:99", "GPUs here"),
        ("--dtype int8", "choose from"),
    ],
)
def test_refused_with_the_remedy(words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer in refused(words.split(), capsys)


def test_the_shapes_and_rivals_without_any_flag() -> None:
    options = bra._parser().parse_args([])
    bra.check(options)
    assert [case.shape for case in bra.cases_of(options)] == list(bra.SHAPES) and len(bra.SHAPES) == 6
    assert bra.rivals_of(options) == ["dense", "plain", "auto"]
    assert bra.setting_of(options).rounds >= 3


def test_a_reference_is_the_baseline_and_nobody_comes_twice(reference: Path) -> None:
    words = ["--reference", str(reference)]
    assert bra.rivals_of(bra._parser().parse_args(words)) == ["reference", "auto"]
    named = bra._parser().parse_args([*words, "--rivals", "auto", "reference", "auto"])
    assert bra.rivals_of(named) == ["auto", "reference"]


def test_all_names_are_allowed() -> None:
    assert {*BACKENDS, "dense", "plain", "reference"} == set(rivals.NAMES)
    assert bra._parser().parse_args(["--rivals", *rivals.NAMES]).rivals == list(rivals.NAMES)


def test_memory_is_measured_anywhere_and_the_rest_on_a_gpu_unless_asked_for() -> None:
    cpu, gpu = rivals.Setting(), rivals.Setting(torch.device("cuda"))
    plain = bra._parser().parse_args([])
    assert bra.wanted_of(plain, cpu) == (True, False, False)
    assert bra.wanted_of(plain, gpu) == (True, True, True)
    asked = bra._parser().parse_args(["--no-memory", "--extra", "--no-repeatable"])
    assert bra.wanted_of(asked, cpu) == bra.wanted_of(asked, gpu) == (False, True, False)


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
    assert [(row["model"], row["picture"], row["level"], row["shape"]) for row in rows] == [
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


def test_peak_memory_is_that_of_a_fresh_process() -> None:
    """Attention weights are written out: 64 x 256 of each of 8 heads in 49 regions, and their gradient as well."""
    scores = 4 * 49 * 8 * 64 * 256  # bytes
    assert rivals.peak(rivals.core, "plain", (1, 16, 56, 56), rivals.Setting(), True) > 2 * scores


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
