"""Whole commands in turns: what is run, what is divided, and what a failure says."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import end_to_end


@pytest.fixture
def contest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> end_to_end.Contest:
    monkeypatch.setattr(end_to_end, "prepare", lambda data: None)
    options = Namespace(data="shapes.yaml", imgsz=64, cfg=["yolov5n.yaml"], batch=4, workers=0, threads=1)
    options.epochs, options.peer_model, options.peer_python = (1, 3), "peer.yaml", sys.executable
    return end_to_end.Contest(options, tmp_path)


def test_an_epoch_is_what_more_epochs_add(contest: end_to_end.Contest) -> None:
    assert contest.epoch(lambda task, epochs: 7.0 + 2.5 * epochs) == 2.5


def test_both_sides_get_the_same_work(contest: end_to_end.Contest, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    monkeypatch.setattr(contest, "_seconds", lambda command, place: commands.append(" ".join(command)) or 1.0)
    contest.ours("train", 3, "yolov5n.yaml")
    contest.peer("train", 3)
    for ours, theirs in (("--imgsz 64", "imgsz=64"), ("--batch-size 4", "batch=4"), ("--epochs 3", "epochs=3")):
        assert ours in commands[0] and theirs in commands[1]
    assert str(contest.data) in commands[0] and str(contest.data) in commands[1]


def test_rows_are_those_asked_for(contest: end_to_end.Contest) -> None:
    assert end_to_end.rows(contest, [], ["a.yaml"]) == {}
    assert list(end_to_end.rows(contest, ["train", "detect"], ["a.yaml", "b.yaml"])) == [
        "epoch, a", "epoch, b", "detect, a",
    ]  # fmt: skip


def test_a_command_that_fails_says_why(contest: end_to_end.Contest) -> None:
    with pytest.raises(RuntimeError, match="no engine"):
        contest._seconds([sys.executable, "-c", "raise SystemExit('no engine')"], contest.folder)
