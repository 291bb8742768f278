"""What every script does with a command line and with mistakes."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

import pytest

from utils.base.log import Fault
from utils.base.options import Range, flag
from utils.distributed.script import run_script


@dataclass(slots=True)
class Some:
    """Options of a script."""

    epochs: int = flag(3, "how many", bounds=Range(1))


class Stopped(KeyboardInterrupt):
    """By a signal, with everything said."""

    signal = signal.SIGTERM


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("no\nsuch thing"), 1, "no such thing"),
        (OSError(28, "No space left on device", "a.pt"), 1, "a.pt: No space left on device; make room"),
        (Fault("a worker died"), 1, "a worker died"),
        (KeyboardInterrupt(), 130, "stopped; all is saved"),
        (Stopped(), 143, ""),
        (None, 0, ""),
    ],
)
def test_a_mistake_is_one_line(
    error: BaseException | None, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def story(given: dict[str, Any]) -> None:
        seen.append(given)
        if error:
            raise error

    assert run_script(Some, story, None, ["--epo", "5"], "stopped; all is saved") == status
    assert seen == [{"epochs": 5}]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == bool(line) and line in "".join(said)


def test_bounds_hold_and_faults_of_ours_are_not_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        run_script(Some, lambda given: 1 / 0, None, [])
    for value, says in {"many": "must be a whole number", "0": "must be at least 1"}.items():
        with pytest.raises(SystemExit) as end:
            run_script(Some, lambda given: None, None, ["--epoch", value])
        assert end.value.code == 2 and f"error: --epochs {value}: {says}\n" in capsys.readouterr().err
