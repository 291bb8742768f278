"""Problems in words, and many of one kind as one."""

from __future__ import annotations

from utils.data.problems import Problem, gathered


def test_nothing_is_nothing() -> None:
    assert gathered([], []) == ([], [])


def test_words() -> None:
    assert str(Problem("a\n.txt", 3, "odd", "mend it")) == "a\\n.txt:3: odd; mend it (image left out)"
    assert str(Problem("a.jpg", None, "odd", "look", False, 1)) == "1 image, the first a.jpg: odd; look"
    assert str(Problem("a.jpg", None, "odd", "look", False, 2)) == "2 images, the first a.jpg: odd; look"


def test_what_is_counted_becomes_one_for_each_reason() -> None:
    single = Problem("x", None, "odd", "mend")
    problems = [Problem(name, None, reason, "", False, count) for name, reason, count in (
        ("a", "deep", 1), ("b", "pages", 2), ("c", "deep", 5), ("d", "deep", 1),
    )]  # fmt: skip
    found, units = gathered([single, *problems, single], [3, 4, 5, 6, 7, 8])
    assert [(one.file, one.reason, one.count) for one in found] == [
        ("x", "odd", 0), ("a", "deep", 7), ("b", "pages", 2), ("x", "odd", 0),
    ]  # fmt: skip
    assert units == [3, 4, 5, 8]
