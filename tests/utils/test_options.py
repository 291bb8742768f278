"""Options: command lines and keyword arguments, what they mean and how they complain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from utils.options import class_numbers, flag, options, parse


@dataclass(slots=True)
class Some:
    weights: list[str] = flag([], "files")
    batch_size: int = flag(16, "pictures")
    imgsz: int = flag(640, "side", aliases=("--img", "--img-size"))
    save_txt: bool = flag(False, "write")
    cache: str | None = flag(None, "keep", nargs="?", const="ram")
    freeze: list[int] = flag([0], "layers", shown="none")
    rank: int = flag(-1, "of the process", shown="")
    sides: list[int] = flag([64, 32], "height and width")
    seed: int = flag(0, "of 100 % of the numbers")
    empty: str = flag("", "nothing")
    project: str = flag(str(Path.cwd() / "runs"), "folder")
    plots: bool = flag(True, "draw")


def test_empty_command_line_gives_the_defaults() -> None:
    assert parse(Some, []) == Some()


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--batch", "4"], "batch_size", 4),
        (["--img", "320"], "imgsz", 320),
        (["--img-size=96"], "imgsz", 96),
        (["--batch_size", "8"], "batch_size", 8),
        (["--weights", "a.pt", "b.pt"], "weights", ["a.pt", "b.pt"]),
        (["--save-txt"], "save_txt", True),
        (["--cache"], "cache", "ram"),
        (["--cache", "disk"], "cache", "disk"),
    ],
)
def test_flags_as_people_type_them(words: list[str], name: str, value: object) -> None:
    assert getattr(parse(Some, words), name) == value


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Some, ["--bathc-size", "4"])
    assert stop.value.code == 2 and "--batch-size" in capsys.readouterr().err


def test_unknown_option_names_the_nearest() -> None:
    assert options(Some, {"imgsz": 64}).imgsz == 64
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        options(Some, {"batchsize": 1})


def test_defaults_are_not_shared() -> None:
    first = Some()
    first.weights.append("x")
    assert Some().weights == []


@pytest.mark.parametrize(
    "words, says",
    [
        ("--batch-size", "pictures (default: 16)"),
        ("--freeze", "layers (default: none)"),
        ("--rank", "of the process"),
        ("--sides", "height and width (default: 64 32)"),
        ("--seed", "of 100 % of the numbers (default: 0)"),
        ("--weights", "files"),
        ("--save-txt", "write"),
        ("--cache", "keep"),
        ("--empty", "nothing"),
        ("--project", "folder (default: runs)"),
        ("--no-plots", "draw (default: True)"),
    ],
)
def test_help_shows_defaults_as_people_write_them(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Some, ["--help"])
    text = " ".join(capsys.readouterr().out.rpartition("-h, --help")[2].split())
    (found,) = (part for part in re.split(r" (?=--[a-z])", text) if part.split()[0] == words)
    assert stop.value.code == 0 and found.endswith(f" {says}")


def test_what_help_says_changes_no_value() -> None:
    found = parse(Some, [])
    assert (found.freeze, found.rank, found.project) == ([0], -1, str(Path.cwd() / "runs"))


def test_classes_by_name_and_number() -> None:
    names = ["car", "person", "2"]
    assert class_numbers([], names) == []
    assert class_numbers(["person", "0", "2", 1], names) == [1, 0, 2, 1]  # a name comes before a number
    for word in ("persn", "3", "-1", "²", "9" * 5000):
        with pytest.raises(ValueError, match="not among the 3 classes") as caught:
            class_numbers([word], names, "classes:")
        assert len(str(caught.value)) < 200
