"""Arrays of many pictures, a different number of rows each, kept end to end.

So they can be packed into a few flat arrays, sent to another process and put into the order of the data set there,
without an object for each picture or row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """One column of n pictures."""

    values: np.ndarray  # all rows, picture after picture
    lengths: np.ndarray  # (n,) rows of each picture


class Ragged:
    """Named columns that grow by one array a picture; `column` gives all rows of one, picture after picture.

    Args:
        empty: of each column the array of a picture without rows. Its only axis of length 0 is the one that grows.
    """

    def __init__(self, **empty: np.ndarray) -> None:
        self._axes = {name: array.shape.index(0) for name, array in empty.items()}
        self._parts = {name: [array] for name, array in empty.items()}
        self._lengths: dict[str, list[int]] = {name: [] for name in empty}

    def add(self, **arrays: np.ndarray) -> None:
        """One picture's rows of every column."""
        for name, array in arrays.items():
            self._parts[name].append(array)
            self._lengths[name].append(array.shape[self._axes[name]])

    def column(self, name: str) -> np.ndarray:
        """All rows of one column."""
        return np.concatenate(self._parts[name], axis=self._axes[name])

    def pack(self) -> dict[str, Packed]:
        """Every column, flat."""
        return {name: Packed(self.column(name), np.array(self._lengths[name], dtype=np.int64)) for name in self._parts}

    def extend(self, packs: Sequence[Mapping[str, Packed]], numbers: np.ndarray) -> None:
        """Add the pictures of several packs by rising number; those of one number keep their order.

        `numbers` holds one number for each picture of the first pack, then of the second, and so on.
        """
        order = np.argsort(numbers, kind="stable")
        for name, axis in self._axes.items():
            values = np.concatenate([self._parts[name][0], *(pack[name].values for pack in packs)], axis=axis)
            lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(pack[name].lengths for pack in packs)])
            rows = np.argsort(np.repeat(numbers, lengths), kind="stable")
            self._parts[name].append(values.take(rows, axis=axis))
            self._lengths[name].extend(lengths[order].tolist())
