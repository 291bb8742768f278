"""The table of a data set's problems: read back as people's programs read it, whatever the names."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pandas as pd
import pytest

from utils.data.image_files import Problem
from utils.prepare.dataset_tools import COLUMNS, NAME, write_report


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


def test_an_old_report_stays_when_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    old = write_report(tmp_path, {"train": [Problem("a", None, "b", "c")]}).read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path, {"train": [Problem("d", None, "e", "f")]})
    assert (tmp_path / NAME).read_bytes() == old and [path.name for path in tmp_path.iterdir()] == [NAME]
