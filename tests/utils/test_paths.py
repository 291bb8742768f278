"""Where files are found and where results go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.paths import ROOT, check_file, check_yaml, datasets_root, increment_path, latest_checkpoint, shown


def test_nothing_there_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert increment_path(tmp_path / "exp") == tmp_path / "exp"


@pytest.mark.parametrize(
    "present, then", [([""], "exp2"), (["", "2"], "exp3"), (["", "2", "5"], "exp6"), (["", "x"], "exp2")]
)
def test_runs_are_numbered(tmp_path: Path, present: list[str], then: str) -> None:
    for end in present:
        (tmp_path / f"exp{end}").mkdir()
    assert increment_path(tmp_path / "exp").name == then
    assert increment_path(tmp_path / "exp", exist_ok=True).name == "exp"
    assert increment_path(tmp_path / "exp", mkdir=True).is_dir()


def test_files_keep_their_suffix_and_odd_names_work(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").touch()
    assert increment_path(tmp_path / "a[1].txt").name == "a[1]2.txt"


def test_check_file_finds_by_name_and_says_what_is_near(tmp_path: Path) -> None:
    assert check_yaml("yolov5_BiFormer.yaml") == ROOT / "models/yolov5_BiFormer.yaml"
    assert check_file(__file__) == Path(__file__)
    with pytest.raises(ValueError, match="yolov5_BiFormer.yaml"):
        check_yaml("yolov5_Biformer.yml.yaml")
    with pytest.raises(ValueError, match="ending in"):
        check_yaml("model.pt")
    with pytest.raises(ValueError, match="is a folder"):
        check_file(tmp_path)


def test_latest_is_by_time(tmp_path: Path) -> None:
    for i, name in enumerate(["exp2", "exp"]):
        (tmp_path / name / "weights").mkdir(parents=True)
        (file := tmp_path / name / "weights/best.pt").touch()
        os.utime(file, (i, i))
    assert latest_checkpoint(tmp_path) == tmp_path / "exp/weights/best.pt"


def test_datasets_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path))
    assert datasets_root() == tmp_path
    monkeypatch.delenv("YOLOV5_DATASETS_DIR")
    assert datasets_root().name == "datasets"


def test_shown_is_relative_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs/exp") == os.path.join("runs", "exp")
    assert shown("/") == "/"
