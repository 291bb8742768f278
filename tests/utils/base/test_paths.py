"""Where files are found and where results go."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.processes import together
from utils.base import paths
from utils.base.paths import (
    ROOT,
    check_file,
    check_yaml,
    claimed,
    datasets_root,
    find_weights,
    increment_path,
    latest_checkpoint,
    shown,
    trained_size,
    trained_with,
    usable_size,
)


@pytest.mark.parametrize("present, then", [([], "exp"), ([""], "exp2"), (["", "2", "5"], "exp6"), (["", "x"], "exp2")])
def test_runs_are_numbered(tmp_path: Path, present: list[str], then: str) -> None:
    for end in present:
        (tmp_path / f"exp{end}").mkdir()
    assert increment_path(tmp_path / "exp").name == then
    assert increment_path(tmp_path / "exp", exist_ok=True).name == "exp"
    assert increment_path(tmp_path / "exp", mkdir=True).is_dir()
    (tmp_path / "a[1].txt").touch()
    assert increment_path(tmp_path / "a[1].txt").name == "a[1]2.txt", "files keep their suffix"


def claim_some(path: str, start: float) -> list[str]:
    """In a process of several: claim folders from one moment on."""
    time.sleep(max(0.0, start - time.time()))
    return [str(increment_path(path, mkdir=True)) for _ in range(10)]


def test_of_processes_that_claim_at_once_each_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "runs/train/exp"
    lists = together(claim_some, tmp_path, str(path), time.time() + 4, world=4, meet=False)
    names = {name for one in lists for name in one}
    assert len(names) == 40 and names == {str(folder) for folder in path.parent.iterdir()} and str(path) in names


def test_what_is_in_the_way_is_passed_by(tmp_path: Path) -> None:
    (tmp_path / "exp").symlink_to(tmp_path / "gone")  # there, though nothing is behind it
    assert increment_path(tmp_path / "exp", mkdir=True) == tmp_path / "exp2"
    (tmp_path / "file").touch()
    assert increment_path(tmp_path / "file", mkdir=True) == tmp_path / "file2"
    with pytest.raises(FileExistsError):
        increment_path(tmp_path / "file", exist_ok=True, mkdir=True)
    with pytest.raises(OSError):
        increment_path(tmp_path / "file/exp", mkdir=True)


@pytest.mark.parametrize("is_written", [False, True])
def test_a_claimed_folder_goes_when_nothing_came_of_it(tmp_path: Path, is_written: bool) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "runs/train/exp") as folder:
        raise KeyboardInterrupt((folder / "a.txt").touch() if is_written else "")
    assert folder.exists() == is_written == (tmp_path / "runs").exists()
    with claimed(tmp_path / "runs/train/new") as folder:
        pass
    assert folder.is_dir()
    for place in (tmp_path, tmp_path / "new"):
        with pytest.raises(ValueError), claimed(place, exist_ok=True):
            raise ValueError
    assert tmp_path.is_dir() and not (tmp_path / "new").exists(), "a folder that was there stays"


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
        "copy them there"
    )
    (tmp_path / "repository/runs/train/exp/weights").mkdir(parents=True)
    for name in ("repository/runs/train/exp/weights/best.pt", "bset.pt", "best.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"; did you mean bset.pt or repository/runs/train/exp/weights/best.pt\?; "):
        find_weights("best.pt")
    with pytest.raises(ValueError, match=r"a\[1\]\.pt do not exist") as caught:
        find_weights(tmp_path / "a[1].pt")
    assert "\n" not in str(caught.value) and str(caught.value).count(str(tmp_path / "a[1].pt")) == 2


def test_missing_files_say_where_they_were_looked_for_and_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.chdir(tmp_path)
    below = f"and none below {tmp_path}/repository/data or {tmp_path}/repository/models"
    for words, remedy in {"a.yaml": "correct the path", "a.pt": "name the last.pt in a run's folder weights"}.items():
        with pytest.raises(ValueError) as caught:
            check_file(words)
        looked = f"no {tmp_path / words} or {tmp_path / 'repository' / words}, {below}"
        assert str(caught.value) == f"{words} does not exist: {looked}; {remedy}"
    (tmp_path / "repository/runs/train/exp/weights").mkdir(parents=True)
    (tmp_path / "repository/runs/train/exp/weights/last.pt").touch()
    with pytest.raises(ValueError, match="weights, such as repository/runs/train/exp/weights/last.pt$"):
        check_file("a.pt")


def test_latest_is_by_time(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    for i, name in enumerate(["exp2", "exp"]):
        (tmp_path / name / "weights").mkdir(parents=True)
        (file := tmp_path / name / "weights/best.pt").touch()
        os.utime(file, (i, i))
    assert latest_checkpoint(tmp_path) == tmp_path / "exp/weights/best.pt"


def test_datasets_root_and_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path))
    assert datasets_root() == tmp_path
    monkeypatch.delenv("YOLOV5_DATASETS_DIR")
    assert datasets_root().name == "datasets"
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs/exp") == os.path.join("runs", "exp") and shown("/") == "/"


def test_the_runs_own_size(tmp_path: Path) -> None:
    assert trained_with([]) == {} and trained_with(["nowhere/best.pt"]) == {} and trained_size([]) == 640
    for written, size in (("imgsz: 320", 320), ("imgsz: 0", 640), ("imgsz: big", 640), ("data: x", 640)):
        (tmp_path / "opt.yaml").write_text(written)
        assert trained_size([tmp_path / "weights/best.pt"]) == size
    assert [usable_size(size) for size in (320, 8192)] == [320, 8192]
    assert not any(usable_size(size) for size in (None, 0, -32, 10**9, True, "320", 3.0))
