"""Where files are found and where results go."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from utils import paths
from utils.paths import (
    ROOT,
    check_file,
    check_yaml,
    datasets_root,
    find_weights,
    increment_path,
    latest_checkpoint,
    shown,
)


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


def test_relative_paths_are_the_current_folders_then_the_repositorys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    for find in (find_weights, check_file):
        (tmp_path / "repository/runs").mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository/runs/a.pt").touch()
        assert find("runs/a.pt") == tmp_path / "repository/runs/a.pt"
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/a.pt").touch()
        assert find("runs/a.pt").resolve() == tmp_path / "runs/a.pt"
        shutil.rmtree(tmp_path / "runs")


def test_missing_weights_say_where_they_were_looked_for_and_what_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        find_weights("best.pt")
    assert str(caught.value) == (
        f"weights best.pt do not exist: no {tmp_path / 'best.pt'} or {tmp_path / 'repository/best.pt'}; train some, or "
        "copy them there (nothing is downloaded)"
    )
    (tmp_path / "repository/runs/train/exp/weights").mkdir(parents=True)
    for name in ("repository/runs/train/exp/weights/best.pt", "bset.pt", "best.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"; did you mean bset.pt or repository/runs/train/exp/weights/best.pt\?; "):
        find_weights("best.pt")
    with pytest.raises(ValueError, match=r"a\[1\]\.pt do not exist") as caught:
        find_weights(tmp_path / "a[1].pt")
    assert "\n" not in str(caught.value) and str(caught.value).count(str(tmp_path / "a[1].pt")) == 2


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
