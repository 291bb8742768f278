"""Counts of what a conversion dropped, and what is said of them."""

from __future__ import annotations

import pytest

from utils.prepare.tally import SHOWN, Tally


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_nothing_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^a\.json: no boxes in it; name annotations that have some"):
        Tally().report("a.json", "labels", 0, 3)


def test_all_kept_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "yolov5")
    Tally().report("a.json", "labels", 5, 3)
    assert lines(caplog) == ["INFO a.json: 5 boxes of 3 images kept, 0 dropped; labels in labels"]


def test_each_reason_has_its_count_and_its_first_example(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally()
    tally.drop("too small", "b.jpg")
    tally.drop("a crowd", "c\n.jpg", 2)
    tally.drop("too small", "z.jpg", 4)
    tally.drop("never", "x", 0)
    tally.remark("were turned", "d.jpg")
    tally.report("a.json", "labels", 1, 3)
    assert tally.lost == 7 and lines(caplog) == [
        "WARNING a.json: 1 boxes of 3 images kept, 7 dropped; labels in labels",
        "WARNING a.json: 5 dropped: too small (first: b.jpg)",
        "WARNING a.json: 2 dropped: a crowd (first: c\\n.jpg)",
        "WARNING a.json: 1 were turned (first: d.jpg)",
    ]


def test_nothing_kept_is_an_error_with_the_commonest_reasons() -> None:
    tally = Tally()
    for count, reason in enumerate("abcd", start=1):
        tally.drop(reason, f"{reason}.jpg", count)
    with pytest.raises(ValueError, match=r"none of its 10 boxes can be used: 4 d \(first: d.jpg\); 3 c .*; 2 b"):
        tally.report("a.json", "labels", 0, 3)


def test_a_thousand_reasons_are_not_a_thousand_lines(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally()
    for number in range(1000):
        tally.drop(f"called {number}", "a.jpg")
    tally.report("a.json", "labels", 1, 1)
    assert len(lines(caplog)) == SHOWN + 2 and lines(caplog)[-1].endswith(f"and {1000 - SHOWN} more reasons")
