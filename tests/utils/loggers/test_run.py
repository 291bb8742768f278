"""What loggers are told of a run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from utils.base.paths import ROOT
from utils.loggers.run import RunInfo

Info = Callable[..., RunInfo]


def test_a_run_that_knows_nothing(info: Info) -> None:
    run = info()
    assert (run.resumed, run.start) == (False, 0)
    assert RunInfo(run.folder, [], run.labels, {}, {}).project == "YOLOv5"


def test_a_resumed_one(info: Info, row: Callable[[int], list[float]]) -> None:
    run = info([row(0), row(1)])
    assert (run.resumed, run.start) == (True, 2)
    assert (info(resume="last.pt").resumed, info(resume="last.pt").start) == (True, 0)


@pytest.mark.parametrize(
    "project, name",
    [(str(ROOT / "runs/train"), "YOLOv5"), ("runs/train", "YOLOv5"), ("train", "train"), ("a/bees.v2", "bees.v2")],
)
def test_the_project_is_named_after_its_folder(info: Info, project: str, name: str) -> None:
    assert info(project=project).project == name


def test_flat_values_are_plain(info: Info) -> None:
    flat = info(freeze=[0], cache=None, cos_lr=True).flat()
    assert flat["hyp/lr0"] == 0.01 and flat["freeze"] == "[0]" and flat["cache"] == "None" and flat["cos_lr"] is True
