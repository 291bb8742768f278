"""results.csv: v6.1's bytes, and exact whatever happened to the file."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.loggers import run
from utils.loggers.csv import COLUMNS, CsvLogger

Row = Callable[[int], list[float]]


def test_before_the_first_epoch_there_is_a_header(tmp_path: Path) -> None:
    CsvLogger(tmp_path)
    table = pd.read_csv(tmp_path / "results.csv", skipinitialspace=True)
    assert table.empty and [column.strip() for column in table.columns] == ["epoch", *COLUMNS]


def test_it_is_v61s_to_the_byte(tmp_path: Path) -> None:
    CsvLogger(tmp_path).on_fit_epoch_end([0.123456789 + i for i in range(13)], 0, 0, 0)
    header, first = (tmp_path / "results.csv").read_bytes().decode().removesuffix("\n").split("\n")
    assert header.startswith("               epoch,      train/box_loss,") and len(header) == len(first) == 14 * 21 - 1
    assert first.split(",")[:2] == [f"{0:20d}", f"{0.123456789:20.5g}"]


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epochs=st.integers(1, 6),
    crash=st.integers(0, 6),
    damage=st.sampled_from(["none", "gone", "empty", "cut", "garbage", "too long"]),
)
def test_a_resumed_run_ends_with_the_same_file(tmp_path: Path, row: Row, epochs: int, crash: int, damage: str) -> None:
    file = tmp_path / "results.csv"
    whole = CsvLogger(tmp_path)
    for epoch in range(epochs):
        whole.on_fit_epoch_end(row(epoch)[1:], epoch, 0, 0)
    expected, crash = file.read_bytes(), min(crash, epochs)
    first = CsvLogger(tmp_path)
    for epoch in range(crash):
        first.on_fit_epoch_end(row(epoch)[1:], epoch, 0, 0)
    content = file.read_bytes()
    changed = {
        "none": content,
        "empty": b"",
        "cut": content[:-30],
        "garbage": b"\xff\x00" * 99,
        "too long": content * 2,
    }
    file.write_bytes(changed[damage]) if damage in changed else file.unlink()
    second = CsvLogger(tmp_path, [row(epoch) for epoch in range(crash)])
    for epoch in range(crash, epochs):
        second.on_fit_epoch_end(row(epoch)[1:], epoch, 0, 0)
    assert file.read_bytes() == expected and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_costs_a_warning_and_later_nothing(
    tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    logger = CsvLogger(tmp_path)
    logger.on_fit_epoch_end(row(0)[1:], 0, 0, 0)
    before = (tmp_path / "results.csv").read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(run.os, "fsync", full)
        logger.on_fit_epoch_end(row(1)[1:], 1, 0, 0)
    assert len(said()) == 1 and "No space left" in said()[0]
    assert (tmp_path / "results.csv").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    logger.on_fit_epoch_end(row(2)[1:], 2, 0, 0)
    assert pd.read_csv(tmp_path / "results.csv").iloc[:, 0].tolist() == [0, 1, 2]
