"""The benchmark of one training step runs, prints tables that a program can read, and notices a wrong rival."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import train_step

# The same attention written by somebody else: every region looks at every token of the map, as with topk = all regions.
RIVAL = """
import torch
from torch import nn


class BiLevelRoutingAttention(nn.Module):
    def __init__(self, dim, n_win=7, num_heads=8, qk_dim=None, qk_scale=None, topk=4, side_dwconv=3):
        super().__init__()
        self.heads, self.scale, self.widths = num_heads, FACTOR * (qk_scale or dim ** -0.5), [dim, dim, dim]
        self.qkv = nn.Module()
        self.qkv.qkv = nn.Linear(dim, 3 * dim)
        self.wo = nn.Linear(dim, dim)
        self.lepe = nn.Conv2d(dim, dim, side_dwconv, padding=side_dwconv // 2, groups=dim)

    def forward(self, x):
        height = x.shape[2]
        q, k, v = self.qkv.qkv(x.flatten(2).mT).split(self.widths, -1)
        parts = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(*parts, scale=self.scale).transpose(1, 2).flatten(2)
        out = out + self.lepe(v.mT.unflatten(-1, (height, -1))).flatten(2).mT
        return self.wo(out).mT.unflatten(-1, (height, -1))
"""


def write_cfg(file: Path, attention: bool) -> Path:
    """A model of one level, with or without routing attention over all of 2 x 2 regions."""
    block = [-1, 1, "BiLevelRoutingAttention", [2, 2, None, None, 4, 4, None, "identity", 4]]
    description = {
        "nc": 2,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": [[10, 10, 16, 16, 24, 24]],
        "backbone": [[-1, 1, "Conv", [8, 6, 2, 2]], [-1, 1, "Conv", [16, 3, 4]]],
        "head": [block if attention else [-1, 1, "Conv", [16, 1, 1]], [[2], 1, "Detect", ["nc", "anchors"]]],
    }
    file.write_text(yaml.safe_dump(description))
    return file


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    cfg, plain = write_cfg(tmp_path / "bra.yaml", True), write_cfg(tmp_path / "plain.yaml", False)
    tiny = ["--imgsz", "64", "--batch", "2", "--rounds", "2", "--threads", "1", "--device", "cpu"]
    return ["--cfg", str(cfg), "--plain", str(plain), *tiny]


def rival(folder: Path, factor: float = 1) -> Path:
    file = folder / f"rival{factor}.py"
    file.write_text(RIVAL.replace("FACTOR", str(factor)))
    return file


def tables(text: str) -> tuple[dict[tuple[str, str], float], dict[str, list[float]]]:
    """(rival, baseline) -> ratio, and name -> [milliseconds, four shares]."""
    _, ratios, shares = text.split("\n\n")
    pairs = [line.split() for line in ratios.splitlines()[1:]]
    rows = [line.split() for line in shares.splitlines()[1:]]
    return {(a, b): float(x) for a, b, x in pairs}, {name: [float(x) for x in row] for name, *row in rows}


def test_tables(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_step.main([*words, "--reference", str(rival(tmp_path))])
    ratios, shares = tables(capsys.readouterr().out)
    baselines = [("float32", "contiguous"), ("bf16", "float32"), ("float32", "plain"), ("float32", "reference")]
    assert list(ratios) == baselines and min(ratios.values()) > 0
    assert list(shares) == ["float32", "contiguous", "bf16", "plain", "reference"]
    for milliseconds, *parts in shares.values():
        assert milliseconds > 0 and min(parts) > 0 and sum(parts) == pytest.approx(100, abs=0.3)


def test_a_rival_that_predicts_something_else_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train_step.main([*words, "--reference", str(rival(tmp_path, 40))])
    assert "differ by" in capsys.readouterr().err
