"""Formats in turns: every rival is there, files are compared before they are timed, and the table is written."""

from pathlib import Path

import pytest

from benchmarks import export_speed
from models.backends.tools import is_there
from models.exporters import ExportError
from models.exporters import compare as comparison


def test_a_table_of_what_was_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats = ["torchscript", *(["onnx"] if is_there("onnxruntime") and is_there("onnxscript") else [])]
    file = tmp_path / "speed.md"
    words = f"--cfg yolov5n.yaml --imgsz 64 --threads 1 --rounds 2 --formats {' '.join(formats)} --save {file}"
    export_speed.main(words.split())
    rows = [line for line in file.read_text().splitlines() if line.startswith(("| PyTorch", "| TorchScript", "| ONNX"))]
    assert len(rows) == 1 + len(formats) and "times faster" in file.read_text()
    assert [cell.strip() for cell in rows[0].split("|")][-2].startswith("1")  # PyTorch against itself


def test_a_file_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison.Difference, "fits", lambda self, limit: False)
    with pytest.raises(ExportError):
        export_speed.main("--cfg yolov5n.yaml --imgsz 64 --threads 1 --rounds 1 --formats torchscript".split())
