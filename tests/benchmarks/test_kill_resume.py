"""Killed twenty times at random moments: the run ends where it would have ended, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.kill_resume import Outcome, differences, main, make_job, stands_at, torture


def test_nothing_differs_from_itself_and_every_difference_is_named() -> None:
    one = {"table": "1,2", "weight": torch.tensor([1.0, 2.0])}
    assert differences({}, {}) == [] and differences(one, dict(one)) == []
    near = one | {"weight": torch.tensor([1.0, 2.0 + 2**-22])}
    assert differences(one, near) == ["weight"] and differences(one, {"table": "1,2"}) == ["weight"]
    assert differences(one, one | {"table": "1,3"}) == ["table"]


def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    assert stands_at(tmp_path / "last.pt") == "before the first checkpoint"
    (tmp_path / "last.pt").write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match="last.pt"):
        stands_at(tmp_path / "last.pt")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_change_nothing(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = torture(make_job(tmp_path, workers=2), kills=20, seed=0, log=lines.append)
    assert outcome.passed and outcome.kills == 20 and outcome.unreadable == 0, "\n".join([*lines, *outcome.unlike])
    during = sum(count for phase, count in outcome.phases.items() if "epoch" in phase)
    assert during >= 10, outcome.phases


def test_the_command_prints_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter(
        [
            Outcome(kills=2, runs=1, phases=Counter({"in epoch 1": 2})),
            Outcome(kills=2, runs=1, unlike=["killed0: results.csv"]),
        ]
    )
    monkeypatch.setattr("benchmarks.kill_resume.torture", lambda *given, **named: next(outcomes))
    monkeypatch.setattr("benchmarks.kill_resume.make_job", lambda *given: {})
    assert main(["--kills", "2"]) == 0
    assert "2  in epoch 1" in capsys.readouterr().out
    assert main(["--kills", "2"]) == 1
    assert "killed0: results.csv" in capsys.readouterr().out
