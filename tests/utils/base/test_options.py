"""Options: command lines and keyword arguments, what they mean and how they complain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.base.options import SHARE, Range, check_bounds, class_numbers, flag, nearest, options, parse


@dataclass(slots=True)
class Some:
    weights: list[str] = flag([], "files")
    batch_size: int = flag(16, "images")
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
    epochs: int = flag(3, "so often", bounds=Range(1, 100, also=(-1,)))
    conf: float = flag(0.5, "share", bounds=SHARE)
    gain: float = flag(1.0, "any", bounds=Range(0, above=True))
    free: float = flag(0.0, "any number")
    kind: str = flag("auto", "which", choices=("auto", "SGD", "Adam"))
    layers: list[int] | None = flag(None, "numbers", bounds=Range(0))
    device: str = flag("", "where")


def test_empty_command_line_gives_the_defaults() -> None:
    assert parse(Some, []) == Some()


TYPED = {
    "--batch 4": ("batch_size", 4), "--img 320": ("imgsz", 320), "--img-size=96": ("imgsz", 96),
    "--batch_size 8": ("batch_size", 8), "--weights a.pt b.pt": ("weights", ["a.pt", "b.pt"]),
    "--save-txt": ("save_txt", True), "--cache": ("cache", "ram"), "--cache disk": ("cache", "disk"),
}  # fmt: skip


@pytest.mark.parametrize("words", TYPED)
def test_flags_as_people_type_them(words: str) -> None:
    name, value = TYPED[words]
    assert getattr(parse(Some, words.split()), name) == value


def test_unknown_names_say_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Some, ["--bathc-size", "4"])
    assert stop.value.code == 2 and "--batch-size" in capsys.readouterr().err
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        options(Some, {"batchsize": 1})
    known = ["--weights", "--loggers", "SGD", "nn.SiLU"]
    for name, near in {"--wieghts": "--weights", "sgd": "SGD", "--LOGGER": "--loggers", "nn.silu": "nn.SiLU"}.items():
        assert nearest(name, known) == f", did you mean {near!r}?"
    assert not any(nearest(name, known) for name in ("--bogus", "--", "", "--weather", "nn.Conv", "CBAM"))


HELP = {
    "--batch-size": "images (default: 16)", "--freeze": "layers (default: none)", "--rank": "of the process",
    "--sides": "height and width (default: 64 32)", "--seed": "of 100 % of the numbers (default: 0)",
    "--weights": "files", "--save-txt": "write", "--cache": "keep", "--empty": "nothing",
    "--project": "folder (default: runs)", "--no-plots": "draw (default: True)",
}  # fmt: skip


def test_help_shows_defaults_as_people_write_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Some, ["--help"])
    text = " ".join(capsys.readouterr().out.rpartition("-h, --help")[2].split())
    parts = {part.split()[0]: part for part in re.split(r" (?=--[a-z])", text)}
    assert stop.value.code == 0 and all(parts[flag].endswith(f" {says}") for flag, says in HELP.items()), parts
    first, found = Some(), parse(Some, [])
    first.weights.append("x")
    assert Some().weights == [], "defaults are not shared"
    assert (found.freeze, found.rank, found.project) == ([0], -1, str(Path.cwd() / "runs"))


WHOLE = {"abc": "abc", "a b\x1b": r"'a b\x1b'", "": "''", 1.5: "1.5", True: "True", None: "None"}
WRONG = [
    *(("imgsz", value, f"--imgsz {shown}: must be a whole number") for value, shown in WHOLE.items()),
    ("imgsz", [64, 64], "--imgsz [64, 64]: must be a whole"), ("imgsz", {}, "--imgsz {}: must be a whole number"),
    *(("imgsz", value, ": must be a whole number") for value in ("9" * 5000, 10**400, float("nan"), float("inf"))),
    ("free", "x", "--free x: must be a number"), ("free", float("nan"), "--free nan: must be finite"),
    ("free", "-inf", "--free -inf: must be finite"), ("free", 10**400, "must be a number"),
    ("save_txt", "no", "--save-txt no: must be True or False"), ("save_txt", 2, "--save-txt 2: must be True or False"),
    ("project", 3 + 2j, "--project (3+2j): must be text"), ("project", b"runs", "--project b'runs': must be text"),
    ("project", ["a"], "--project ['a']: must be text"), ("kind", None, "--kind None: must be text"),
    ("kind", "sgd", "--kind sgd: choose one of auto, SGD, Adam"),
    ("freeze", ["x"], "--freeze x: must be a whole number"),
    ("freeze", [], "--freeze: is empty; give a whole number, or leave it out"),
    ("epochs", 0, "--epochs 0: must be from 1 to 100, or -1"), ("epochs", 101, "--epochs 101: must be from 1 to 100"),
    ("conf", 1.0001, "--conf 1.0001: must be from 0 to 1"), ("conf", float("nan"), "--conf nan: must be from 0 to 1"),
    ("gain", 0, "--gain 0: must be above 0"), ("layers", [0, -1], "--layers -1: must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize("name, given, says", WRONG, ids=lambda value: str(value)[:40])
def test_what_python_gives_is_checked_and_the_error_says_what_is_wanted(name: str, given: object, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        options(Some, {name: given})
    assert says in str(caught.value) and len(str(caught.value)) < 200 and "\n" not in str(caught.value)


MEANT = [
    ("imgsz", "320", 320), ("imgsz", 320.0, 320), ("imgsz", np.int64(320), 320), ("imgsz", torch.tensor(320), 320),
    ("free", 3, 3.0), ("free", np.float32(0.5), 0.5), ("save_txt", 1, True), ("save_txt", np.bool_(True), True),
    ("weights", Path("a.pt"), ["a.pt"]), ("weights", ("a.pt", Path("b.pt")), ["a.pt", "b.pt"]), ("weights", None, []),
    ("freeze", 10, [10]), ("freeze", range(2), [0, 1]), ("freeze", np.arange(2), [0, 1]), ("layers", None, None),
    ("cache", True, "ram"), ("cache", False, None), ("project", Path("p"), "p"), ("device", 0, "0"),
    ("device", torch.device("cuda:1"), "cuda:1"), ("device", None, ""), ("epochs", -1, -1),
]  # fmt: skip


@pytest.mark.parametrize("name, given, value", MEANT)
def test_what_python_gives_means_what_the_command_line_means(name: str, given: object, value: object) -> None:
    found = getattr(options(Some, {name: given}), name)
    assert found == value and type(found) is type(value)


def test_numbers_of_a_command_line_have_the_same_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = "--epochs many|--conf=x|--kind sgd|--epochs 0|--conf 1.1|--layers 2 -1|--nothing\x1b[2J|stray|--s 1"
    for words in map(str.split, wrong.split("|")):
        with pytest.raises(SystemExit) as stop:
            parse(Some, words)
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.count("\n") == 1 and "usage" not in said and "\x1b" not in said
    with pytest.raises(ValueError, match="--epochs 0"):
        check_bounds(Some(epochs=0))


def test_ranges_say_what_is_in_them() -> None:
    assert 0 not in Range(0, above=True) and 0 in Range(0) and float("inf") not in Range() and 5 in Range(7, also=(5,))
    assert 10**400 in Range(0) and 10**400 not in Range(0, 9)
    assert [str(one) for one in (Range(1), SHARE, Range(0, 10, above=True), Range(1, 9, also=(0,)))] == [
        "at least 1", "from 0 to 1", "above 0 and at most 10", "from 1 to 9, or 0",
    ]  # fmt: skip


def test_classes_by_name_and_number() -> None:
    names = ["car", "person", "2"]
    assert class_numbers([], names) == []
    assert class_numbers(["person", "0", "2", 1], names) == [1, 0, 2, 1]  # a name comes before a number
    for word in ("persn", "3", "-1", "²", "9" * 5000):
        with pytest.raises(ValueError, match="not among the 3 classes") as caught:
            class_numbers([word], names, "classes:")
        assert len(str(caught.value)) < 200
