"""The comparison of formats, with val.py itself."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import val
from benchmarks import formats
from benchmarks.formats import PYTORCH, Tools, main
from models.backends import DetectMultiBackend
from models.yolo import Model
from utils.checkpoints.checkpoint import describe_model, save_checkpoint


def test_with_val_itself(squares: Path, tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An "export" that is a copy has the mAP of its original."""
    torch.manual_seed(0)
    model = Model(tiny_cfg, verbose=False).eval()
    save_checkpoint(tmp_path / "tiny.pt", {"epoch": -1, "model": describe_model(model), "ema": None})

    def export_copy(weights: str, include: list[str], **settings: Any) -> list[str]:
        return [shutil.copy2(weights, Path(weights).with_name("copy.pt"))]

    def open_file(file: Path, device: str) -> Callable[[torch.Tensor], object]:
        return DetectMultiBackend(file, device=device)

    shapes: set[tuple[int, ...]] = set()
    look = DetectMultiBackend.forward

    def noting(self: DetectMultiBackend, im: torch.Tensor, **settings: Any) -> Any:
        shapes.add(tuple(im.shape))
        return look(self, im, **settings)

    monkeypatch.setattr(DetectMultiBackend, "forward", noting)
    monkeypatch.setattr(formats, "our_tools", lambda: Tools(("copy",), export_copy, val.run, open_file))
    words = f"--weights {tmp_path}/tiny.pt --data {squares} --img 64 --rounds 2 --project {tmp_path}/runs --device cpu"
    assert main(words.split()) == 0
    with open(tmp_path / "runs/exp/formats.csv", encoding="utf-8") as file:
        first, second = csv.DictReader(line for line in file if line[0] != "#")
    assert (first["format"], second["format"]) == (PYTORCH, "copy")
    assert first["mAP50-95"] == second["mAP50-95"] != "" and float(second["ms"]) > 0
    assert shapes == {(1, 3, 64, 64)}  # by itself, val.py would add a border
    assert {"val_PyTorch", "val_copy"} <= {path.name for path in (tmp_path / "runs/exp").iterdir()}
