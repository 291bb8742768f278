"""Columns of many pictures: packed, sent, put in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.evaluation.ragged import Ragged


def columns() -> Ragged:
    return Ragged(score=np.zeros(0), state=np.zeros((2, 0), dtype=np.uint8))


def test_no_pictures() -> None:
    rows = columns()
    rows.extend([columns().pack(), columns().pack()], np.zeros(0, dtype=np.int64))
    assert rows.column("score").shape == (0,) and rows.column("state").shape == (2, 0)
    assert all(len(packed.lengths) == 0 for packed in rows.pack().values())


def test_a_column_grows_along_its_empty_axis() -> None:
    rows = columns()
    rows.add(score=np.array([0.5]), state=np.array([[1], [2]], dtype=np.uint8))
    rows.add(score=np.zeros(0), state=np.zeros((2, 0), dtype=np.uint8))
    rows.add(score=np.array([0.25, 1.0]), state=np.array([[3, 4], [5, 6]], dtype=np.uint8))
    packed = rows.pack()
    assert packed["score"].values.tolist() == [0.5, 0.25, 1.0] and packed["score"].lengths.tolist() == [1, 0, 2]
    assert packed["state"].values.tolist() == [[1, 3, 4], [2, 5, 6]] and packed["state"].values.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=12))
def test_pictures_come_back_in_order_whoever_had_them(pictures: list[tuple[int, int]]) -> None:
    """Each picture is (its process, its number of rows)."""
    whole, parts, numbers = columns(), [columns() for _ in range(4)], [[] for _ in range(4)]
    for number, (owner, count) in enumerate(pictures):
        values = number + np.linspace(0, 0.5, count)
        arrays = {"score": values, "state": np.stack((values, values * 2)).astype(np.uint8)}
        whole.add(**arrays)
        parts[owner].add(**arrays)
        numbers[owner].append(number)
    joined = columns()
    joined.extend([part.pack() for part in parts], np.array(sum(numbers, []), dtype=np.int64))
    for name, expected in whole.pack().items():
        np.testing.assert_array_equal(joined.pack()[name].values, expected.values)
        np.testing.assert_array_equal(joined.pack()[name].lengths, expected.lengths)
