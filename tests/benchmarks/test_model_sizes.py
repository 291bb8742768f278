"""A row for each size, measured in a process of its own."""

from pathlib import Path

import pytest

from benchmarks import model_sizes


def test_larger_models_cost_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sizes.md"
    words = f"--cfg yolov5{{size}}.yaml --sizes n s --imgsz 64 --batch 1 --rounds 1 --threads 1 --save {file}"
    model_sizes.main(words.split())
    rows = [line.split("|")[1:-1] for line in file.read_text().splitlines() if line.startswith("| yolov5")]
    assert [row[0].strip() for row in rows] == ["yolov5n", "yolov5s"]
    assert [row[1].strip() for row in rows] == ["1.87", "7.24"]
    assert float(rows[1][3]) > float(rows[0][3]) > 0.1 and float(rows[0][4]) > 0
