"""The fuzzer that runs as long as one likes: it counts, and tells and keeps what breaks a promise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import fuzz
from models.description import budget
from tests.fuzz.guard import Kind
from utils.base.log import LOGGER


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch):
    level = LOGGER.level
    for name in ("MAX_PARAMETERS", "MAX_VALUES", "MAX_PRODUCTS"):
        monkeypatch.setattr(budget, name, getattr(budget, name))
    yield
    LOGGER.setLevel(level)


def test_without_a_kind_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main([]) == 0 and "kinds: all, labels, " in capsys.readouterr().out
    assert fuzz.main(["lables"]) == 1


def test_a_sound_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["labels", "--seconds", "0.3", "--seed", "1", "--keep", str(tmp_path / "kept")]) == 0
    assert " 0 broken promises" in capsys.readouterr().out and not (tmp_path / "kept").exists()


def test_what_breaks_is_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(path: Path) -> None:
        if path.read_bytes() == b"bad":
            raise KeyError("oops")

    kind = Kind("bad", "input.txt", lambda rng: rng.choice((b"bad", b"good")), use)
    monkeypatch.setattr(fuzz, "kinds", lambda: {"bad": kind})
    assert fuzz.main(["all", "--seconds", "0.2", "--keep", str(tmp_path)]) == 1
    assert "1 broken promises" in (said := capsys.readouterr().out) and "x KeyError" in said
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"bad"]


def test_a_missing_engine_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit, match="pip install atheris"):
        fuzz.main(["labels", "--engine", "atheris", "--keep", str(tmp_path)])
