"""Tables come out as they went in, on the screen and in files, with the machine they were made on."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.report import Table, commit, machine, processor, save, shown

FACTS = {"processor": "abacus, 2 cores", "commit": "abc1234"}


@pytest.fixture
def table() -> Table:
    table = Table({"layer": 9, "rounds": 0, "ms": 6})
    table.add(layer="auto", rounds=3, ms=12.3456)
    table.add(layer="dense", ms=0.012345)
    return table


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "-"),
        ("auto", "auto"),
        (7, "7"),
        (0.0, "0.0"),
        (1.0, "1.00"),
        (12.3456, "12.3"),
        (11490.4, "11490"),
        (0.0123456, "0.0123"),
        (-2.5, "-2.50"),
        (float("inf"), "inf"),
    ],
)
def test_values_as_people_read_them(value: str | float | None, text: str) -> None:
    assert shown(value) == text


def test_rows_are_printed_below_their_titles(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table({"layer": 9, "rounds": 0, "ms": 6})
    table.add(layer="auto", rounds=3, ms=12.3456)
    table.add(layer="dense", ms=0.012345)
    table.add(ms=1.0)
    assert capsys.readouterr().out.splitlines() == [
        "    layer  rounds      ms",
        "     auto       3    12.3",
        "    dense       -  0.0123",
        "        -       -    1.00",
    ]


def test_an_empty_table_prints_and_saves_nothing_but_titles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "empty.md", Table({"ms": 0}), {}, [])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "empty.md").read_text() == "\n| ms |\n| --- |\n"


def test_a_row_with_an_unknown_column_is_a_mistake(table: Table) -> None:
    with pytest.raises(AssertionError, match="speed"):
        table.add(speed=1)


def test_markdown(table: Table, tmp_path: Path) -> None:
    save(tmp_path / "new" / "table.md", table, FACTS, ["two runs agree"])
    assert (tmp_path / "new" / "table.md").read_text().splitlines() == [
        "- processor: abacus, 2 cores",
        "- commit: abc1234",
        "",
        "| layer | rounds | ms |",
        "| --- | --- | --- |",
        "| auto | 3 | 12.3 |",
        "| dense | - | 0.0123 |",
        "",
        "- two runs agree",
    ]


def test_csv_keeps_all_digits(table: Table, tmp_path: Path) -> None:
    save(tmp_path / "table.csv", table, FACTS, ["two runs agree"])
    lines = (tmp_path / "table.csv").read_text().splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert comments == ["# processor: abacus, 2 cores", "# commit: abc1234", "# two runs agree"]
    rows = list(csv.DictReader(lines[len(comments) :]))
    assert rows[0] == {"layer": "auto", "rounds": "3", "ms": "12.3456"} and rows[1]["rounds"] == ""


def test_json(table: Table, tmp_path: Path) -> None:
    save(tmp_path / "table.json", table, FACTS, ["two runs agree"])
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["machine"] == FACTS and content["notes"] == ["two runs agree"]
    assert content["columns"] == ["layer", "rounds", "ms"] and content["rows"] == table.rows


def test_other_endings_are_refused(table: Table, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.md, \.csv, \.json"):
        save(tmp_path / "table.xlsx", table, FACTS, [])
    assert not list(tmp_path.iterdir())


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = machine(torch.device("cpu"), torch.bfloat16, 3)
    assert list(facts) == ["processor", "threads", "precision", "torch", "commit"]
    assert (facts["threads"], facts["precision"], facts["torch"]) == ("3", "bfloat16", torch.__version__)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert machine(torch.device("cuda", 1), torch.float16, 1)["GPU"] == "GPU 1"


def test_the_processor(tmp_path: Path) -> None:
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel name\t: Abacus 9: fast\nmodel name\t: other\n")
    assert processor(listing) == "Abacus 9: fast"
    listing.write_text("Hardware : unheard of\n")
    assert processor(listing) == processor(tmp_path / "none")


def test_no_commit_outside_of_a_checkout_or_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) == "unknown"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert commit(tmp_path) == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_changes(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        run = subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    short = git("rev-parse", "--short", "HEAD")
    assert commit(tmp_path) == short
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{short} with changes"
