"""A run and its own files: results.csv in v6.1's bytes, exact whatever happened to it, and images."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.utils.loggers.conftest import row_of
from utils.base.callbacks import Callbacks
from utils.base.networks import start_at_zero
from utils.base.paths import ROOT
from utils.loggers import run as module
from utils.loggers.run import COLUMNS, CsvLogger, ImageLogger, RunInfo, write_scales

Info = Callable[..., RunInfo]


def test_what_a_run_knows_of_itself(info: Info) -> None:
    run = info()
    assert (run.resumed, run.start) == (False, 0) and RunInfo(run.folder, [], run.labels, {}, {}).project == "YOLOv5"
    run = info([row_of(0), row_of(1)])
    assert (run.resumed, run.start) == (True, 2)
    assert (info(resume="last.pt").resumed, info(resume="last.pt").start) == (True, 0)
    projects = {str(ROOT / "runs/train"): "YOLOv5", "runs/train": "YOLOv5", "train": "train", "a/bees.v2": "bees.v2"}
    assert {project: info(project=project).project for project in projects} == projects
    flat = info(freeze=[0], cache=None, cos_lr=True).flat()
    assert flat["hyp/lr0"] == 0.01 and flat["freeze"] == "[0]" and flat["cache"] == "None" and flat["cos_lr"] is True


def test_results_are_v61s_to_the_byte(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    table = pd.read_csv(tmp_path / "results.csv", skipinitialspace=True)
    assert table.empty and [column.strip() for column in table.columns] == ["epoch", *COLUMNS]
    logger.on_fit_epoch_end([0.123456789 + i for i in range(13)], 0, 0, 0)
    header, first = (tmp_path / "results.csv").read_bytes().decode().removesuffix("\n").split("\n")
    assert header.startswith("               epoch,      train/box_loss,") and len(header) == len(first) == 14 * 21 - 1
    assert first.split(",")[:2] == [f"{0:20d}", f"{0.123456789:20.5g}"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epochs=st.integers(1, 6),
    crash=st.integers(0, 6),
    damage=st.sampled_from(["none", "gone", "empty", "cut", "garbage", "too long"]),
)
def test_a_resumed_run_ends_with_the_same_file(tmp_path: Path, epochs: int, crash: int, damage: str) -> None:
    file, crash = tmp_path / "results.csv", min(crash, epochs)
    contents = []
    for last in (epochs, crash):
        logger = CsvLogger(tmp_path)
        for epoch in range(last):
            logger.on_fit_epoch_end(row_of(epoch)[1:], epoch, 0, 0)
        contents.append(file.read_bytes())
    expected, content = contents
    damaged = {"none": content, "empty": b"", "cut": content[:-30], "garbage": b"\xff\0" * 99, "too long": content * 2}
    file.write_bytes(damaged[damage]) if damage in damaged else file.unlink()
    second = CsvLogger(tmp_path, [row_of(epoch) for epoch in range(crash)])
    for epoch in range(crash, epochs):
        second.on_fit_epoch_end(row_of(epoch)[1:], epoch, 0, 0)
    assert file.read_bytes() == expected and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_costs_a_warning_and_later_nothing(tmp_path, monkeypatch, warnings):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    logger = CsvLogger(tmp_path)
    logger.on_fit_epoch_end(row_of(0)[1:], 0, 0, 0)
    before = (tmp_path / "results.csv").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        logger.on_fit_epoch_end(row_of(1)[1:], 1, 0, 0)
    assert len(warnings()) == 1 and "No space left" in warnings()[0]
    assert (tmp_path / "results.csv").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    logger.on_fit_epoch_end(row_of(2)[1:], 2, 0, 0)
    assert pd.read_csv(tmp_path / "results.csv").iloc[:, 0].tolist() == [0, 1, 2]


def test_scales_of_layers_that_began_at_zero(tmp_path, monkeypatch, warnings):
    file = tmp_path / "residual.csv"
    write_scales(file, nn.Sequential(nn.Linear(2, 2)), 0)
    assert not file.exists()
    model = nn.ModuleDict({"model": nn.Sequential(nn.Linear(2, 2), nn.Linear(1, 2))})
    start_at_zero(*model["model"])
    for epoch in (0, 1, 2, 1):  # the last row's checkpoint was never written
        write_scales(file, model, epoch)
        nn.init.constant_(model["model"][0].weight, 3.0)  # with two zeros as bias: the root of 36 / 6
    assert file.read_text() == "epoch,0,1\n0,0,0\n1,2.4495,0\n"
    file.write_bytes(b"\xff\0" * 9)
    write_scales(file, model, 3)
    assert file.read_text() == "epoch,0,1\n3,2.4495,0\n"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    write_scales(file, model, 4)
    assert "No space left" in warnings()[0] and file.read_text().endswith("\n3,2.4495,0\n")


@pytest.mark.parametrize("broken", [False, True])
def test_images_are_drawn_and_failures_survived(tmp_path, monkeypatch, warnings, broken):
    def fail(*_: object) -> None:
        raise MemoryError("no room for a mosaic")

    for name in ("plot_labels", "plot_images", "plot_results") if broken else ():
        monkeypatch.setattr(module, name, fail)
    callbacks, targets = Callbacks(), torch.tensor([[0, 0, 0.5, 0.5, 0.2, 0.2]])
    labels = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.3, 0.3, 0.1, 0.4]], dtype=np.float32)
    callbacks.subscribe(CsvLogger(tmp_path))
    callbacks.subscribe(ImageLogger(tmp_path, ["a", "b"], labels))
    callbacks.run("on_pretrain_routine_end")
    for number in (0, 9):
        callbacks.run("on_train_batch_end", number, None, torch.rand(1, 3, 64, 64), targets, ("x.jpg",), True, False)
    callbacks.run("on_fit_epoch_end", [0.1] * len(COLUMNS), 0, 0.1, 0.1)
    callbacks.run("on_train_end", Path("last.pt"), Path("best.pt"), True, 0, ())
    drawn = {"results.png", "labels.jpg", "labels_correlogram.jpg", "train_batch0.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == {"results.csv", *(() if broken else drawn)}
    failed = ["labels.jpg", "train_batch0.jpg", "results.png"] if broken else []
    assert [line.split(": ")[0].rpartition("/")[2] for line in warnings()] == failed
    assert all("no room for a mosaic" in line for line in warnings())
