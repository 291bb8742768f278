"""What a run remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.base.paths import trained_size, trained_with, usable_size


def test_weights_without_a_run() -> None:
    assert trained_with([]) == {} and trained_with(["nowhere/best.pt"]) == {} and trained_size([]) == 640


@pytest.mark.parametrize(
    "written, size", [("imgsz: 320", 320), ("imgsz: 0", 640), ("imgsz: big", 640), ("data: x", 640)]
)
def test_the_runs_own_size(written: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "opt.yaml").write_text(written)
    assert trained_size([tmp_path / "weights/best.pt"]) == size


@pytest.mark.parametrize(
    "stated, size", [(None, 0), (0, 0), (-32, 0), (320, 320), (8192, 8192), (10**9, 0), (True, 0), ("320", 0), (3.0, 0)]
)
def test_only_a_size_that_can_be_one_is_taken_from_a_file(stated: object, size: int) -> None:
    assert usable_size(stated) == size
