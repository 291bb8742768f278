"""The logger is quiet until a script asks, and says each thing once."""

from __future__ import annotations

import errno
import logging

import pytest

from utils.base.log import LOGGER, colorstr, one_line, set_up_logging


@pytest.fixture(autouse=True)
def _as_it_was():
    handlers, level, propagate = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    LOGGER.handlers.clear()
    yield
    LOGGER.handlers[:], LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


def test_set_up_twice_logs_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_up_logging()
    set_up_logging()
    LOGGER.info("hello %s", "there")
    LOGGER.warning(colorstr("red", "careful"))
    LOGGER.info("a\udcff.jpg")
    assert capsys.readouterr().err == "hello there\nWARNING careful\na\\udcff.jpg\n"
    set_up_logging(main_process=False)
    assert LOGGER.level == logging.ERROR
    monkeypatch.setenv("YOLOv5_VERBOSE", "false")
    set_up_logging()
    LOGGER.info("not said")
    assert capsys.readouterr().err == ""
    assert (colorstr("x"), colorstr("red", "x")) == ("\033[34m\033[1mx\033[0m", "\033[31mx\033[0m")


def test_nothing_but_our_own_colours_reaches_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = "\x1b]0;own\x07 \x1b[0m \x1b[31m \r \x9b2J \u202e\t\b"
    shown = r"\x1b]0;own\x07 \x1b[0m \x1b[31m \r \x9b2J \u202e\t\x08"
    for terminal in (False, True):
        LOGGER.handlers.clear()
        with monkeypatch.context() as patch:
            patch.delenv("NO_COLOR", raising=False)
            patch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
            set_up_logging()
        LOGGER.info(f"{colorstr('bold', 'x')} {names}\nsecond")
        LOGGER.warning("%s", names)
        bold = "\x1b[1mx\x1b[0m" if terminal else "x"
        level = "\x1b[33m\x1b[1mWARNING\x1b[0m" if terminal else "WARNING"
        assert capsys.readouterr().err == f"{bold} {shown}\nsecond\n{level} {shown}\n"
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        LOGGER.exception("x")
    assert "\x1b[2J" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (OSError("told already"), "told already"),
        (ValueError("\x1b]0;own\x07"), r"\x1b]0;own\x07"),
        (PermissionError(errno.EACCES, "denied", "\x1b\n"), r"\x1b\n: denied"),
        (OSError(errno.ENOSPC, "full"), "a file could not be written: full; make room on the disk, or choose another"),
        (PermissionError(errno.EACCES, "denied", "a.pt"), "a.pt: denied; check the path, and who may write there"),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str) -> None:
    assert one_line(error).startswith(line) and "\n" not in one_line(error)
