from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.serving.limits import Limits, Refusal
from utils.serving.settings import NAMES, Settings, read_settings

USUAL = Settings(0.3, 0.5, None, 320)
CLASSES = ["cup", "猫", "7", 'it\'s "odd"']


def test_nothing_asked_for() -> None:
    assert read_settings([], USUAL, CLASSES, Limits()) is USUAL


def test_everything_asked_for() -> None:
    given = [("conf", "0"), ("iou", "1"), ("classes", "猫, 0,猫"), ("size", "64")]
    assert read_settings(given, USUAL, CLASSES, Limits()) == Settings(0.0, 1.0, (1, 0), 64)


def test_a_name_counts_before_a_number() -> None:
    assert read_settings([("classes", "7")], USUAL, CLASSES, Limits()).classes == (2,)


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("config", "1", "did you mean 'conf'"),
        ("conf", "1.01", "from 0 to 1"),
        ("iou", "nan", "from 0 to 1"),
        ("classes", "4", "4 classes"),
        ("classes", "cub", "did you mean 'cup'"),
        ("classes", "", "not among"),
        ("size", "31", "32 to 1280"),
        ("size", "1281", "32 to 1280"),
        ("size", "3.2", "whole number"),
    ],
)
def test_what_cannot_be(name: str, value: str, told: str) -> None:
    with pytest.raises(Refusal, match=told) as refused:
        read_settings([(name, value)], USUAL, CLASSES, Limits())
    assert refused.value.status == 400


def test_twice_is_once_too_often() -> None:
    with pytest.raises(Refusal, match="given twice"):
        read_settings([("conf", "0.1"), ("conf", "0.2")], USUAL, CLASSES, Limits())


def test_files_of_one_size_take_no_other() -> None:
    assert read_settings([("size", "320")], USUAL, CLASSES, Limits(), fixed=True) == USUAL
    with pytest.raises(Refusal, match="320 pixels only"):
        read_settings([("size", "640")], USUAL, CLASSES, Limits(), fixed=True)


@given(st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=9), st.text(max_size=60)), max_size=4))
def test_any_words_give_settings_or_one_line(pairs: list[tuple[str, str]]) -> None:
    try:
        chosen = read_settings(pairs, USUAL, CLASSES, Limits())
    except Refusal as refused:
        assert refused.status == 400 and len(refused.message) < 400
    else:
        assert 0 <= chosen.conf <= 1 and 0 <= chosen.iou <= 1 and 32 <= chosen.size <= 1280
        assert all(0 <= number < 4 for number in chosen.classes or ())
