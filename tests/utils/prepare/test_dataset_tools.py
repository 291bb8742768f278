"""Splitting flat, small and odd folders; the table of a data set's problems, read back as people's programs read it."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from utils.base.config import DataConfig
from utils.data.image_files import Problem
from utils.data.label_index import load_index
from utils.prepare.dataset_tools import COLUMNS, NAME, autosplit, write_report


def fill(folder: Path, count: int, labelled: int | None = None) -> Path:
    """A flat folder of images, the first of them with a label file beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", (20, 20)).save(folder / f"{number}.png")
        if labelled is None or number < labelled:
            (folder / f"{number}.txt").write_text("0 .5 .5 .2 .2\n")
    return folder


def listed(folder: Path) -> dict[str, list[str]]:
    return {
        file.stem.removeprefix("autosplit_"): file.read_text(encoding="utf-8").splitlines()
        for file in sorted(folder.parent.glob("autosplit_*.txt"))
    }


def test_an_empty_folder_one_image_and_no_shares_are_errors(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="photos: 1 images cannot be divided into train and val"):
        autosplit(fill(tmp_path / "photos", 1))
    assert autosplit(tmp_path / "photos", (1,)) == {"train": 1, "val": 0, "test": 0}
    with pytest.raises(ValueError, match=f"{tmp_path}/none"):
        autosplit(tmp_path / "none")
    with pytest.raises(ValueError, match=f"{tmp_path}/gone: no such folder"):
        autosplit(tmp_path / "gone")
    for weights in ((), (0, 0, 0), (-1, 2), (float("nan"), 1), (1, 1, 1, 1), None, "a", {}):
        with pytest.raises(ValueError, match="give the shares of train, val, test"):
            autosplit(tmp_path / "photos", weights)


def test_a_flat_folder_is_split_and_trains(tmp_path: Path) -> None:
    folder = fill(tmp_path / "photos", 20)
    counts = autosplit(folder)
    (tmp_path / "own.yaml").write_text("train: autosplit_train.txt\nval: autosplit_val.txt\nnames: [a]\n")
    data = DataConfig.load(tmp_path / "own.yaml")
    train, val = load_index(data.train, cache=False), load_index(data.val, cache=False)
    assert (len(train), len(val)) == (counts["train"], counts["val"]) and counts["train"] + counts["val"] == 20
    assert len(train.all_labels) + len(val.all_labels) == 20
    names = {Path(index.path(number)).name for index in (train, val) for number in range(len(index))}
    assert len(names) == 20


@pytest.mark.parametrize("count", range(2, 12))
def test_no_part_is_empty_however_few_images_there_are(tmp_path: Path, count: int) -> None:
    for seed in range(5):
        counts = autosplit(fill(tmp_path / "photos", count), seed=seed)
        assert min(counts["train"], counts["val"]) >= 1 and sum(counts.values()) == count and counts["test"] == 0
        names = [name for part in listed(tmp_path / "photos").values() for name in part]
        assert sorted(names) == sorted(f"./photos/{number}.png" for number in range(count))


def test_images_without_labels_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolov5")
    folder = fill(tmp_path / "photos", 10, labelled=7)
    assert sum(autosplit(folder).values()) == 10 and sum(autosplit(folder, annotated_only=True).values()) == 7
    assert "3 images have no label file, listed as background (annotated_only=True leaves them out)" in caplog.text
    assert (
        "3 images have no label file, left out (first: " in caplog.text
        and "photos: 7 images; autosplit_" in caplog.text
    )
    bare = fill(tmp_path / "bare", 3, labelled=0)
    with pytest.raises(ValueError, match="bare: 0 images cannot be divided"):
        autosplit(bare, annotated_only=True)


def test_splitting_again_replaces_the_lists_of_this_folder_alone(tmp_path: Path) -> None:
    first = fill(tmp_path / "photos", 6)
    autosplit(first, (1, 1, 1))
    autosplit(first)
    before = listed(first)
    assert set(before) == {"train", "val"}
    with pytest.raises(ValueError, match=f"autosplit_train.txt: lists images of {first}; move it or remove it"):
        autosplit(fill(tmp_path / "more", 6))
    assert listed(first) == before
    first.rename(tmp_path / "renamed")
    autosplit(tmp_path / "renamed")
    (tmp_path / "renamed/3.png").rename(tmp_path / "renamed/a\nb.png")
    with pytest.raises(ValueError, match=r"a\\nb\.png: a list cannot hold this name; rename the image"):
        autosplit(tmp_path / "renamed")


def rows_of(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, strict=True))


def test_nothing_to_tell_is_no_file(tmp_path: Path) -> None:
    assert write_report(tmp_path, {}) is None and not list(tmp_path.iterdir())
    assert write_report(tmp_path, {"train": [Problem("a", None, "b", "c")]}) == tmp_path / NAME
    assert write_report(tmp_path, {"train": [], "val": []}) is None and not list(tmp_path.iterdir())


def test_every_problem_is_a_row(tmp_path: Path) -> None:
    problems = {
        "train": [Problem("labels/图 a.txt", 3, "negative value: 0 -1", "correct, or remove it")],
        "val": [Problem("b.png", None, "slow", "cut it", dropped=False), Problem("c.png", None, "empty", "remove it")],
    }
    path = write_report(tmp_path, problems)
    assert rows_of(path) == [
        list(COLUMNS),
        ["train", "labels/图 a.txt", "3", "negative value: 0 -1", "correct, or remove it", "yes"],
        ["val", "b.png", "", "slow", "cut it", "no"],
        ["val", "c.png", "", "empty", "remove it", "yes"],
    ]
    assert path.read_bytes().startswith(b"\xef\xbb\xbfsplit,file,"), "spreadsheets know UTF-8 by this mark"
    assert pd.read_csv(path)["line"].dropna().tolist() == [3]
    assert path.stat().st_mode & 0o777 == 0o644 and [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    "name, shown",
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("+1.png", "'+1.png"), ("-1.png", "'-1.png"),
        ("@SUM(A1)", "'@SUM(A1)"), (" =1", "' =1"), ("＝1", "'＝1"), ('a\nb,"c"\';\r.png', 'a\\nb,"c"\';\\r.png'),
        ("\t=1", "\\t=1"), (os.fsdecode(b"\xff.png"), "\\udcff.png"), ("😀.png", "😀.png"),
    ],
)  # fmt: skip
def test_names_are_shown_and_never_calculated(tmp_path: Path, name: str, shown: str) -> None:
    path = write_report(tmp_path, {"train": [Problem(name, 1, name, name)]})
    assert rows_of(path)[1] == ["train", shown, "1", shown, shown, "yes"]
    assert path.read_bytes().count(b"\r\n") == 2 and path.read_bytes().count(b"\n") == 2
