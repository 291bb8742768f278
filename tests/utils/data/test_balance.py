"""Class and picture weights on counts small enough for paper."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.data.balance import epoch_weights, labels_to_class_weights, labels_to_image_weights


def rows(*classes: int) -> np.ndarray:
    return np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in classes], dtype=np.float32).reshape(-1, 5)


def test_no_labels() -> None:
    assert labels_to_class_weights([], nc=4).tolist() == [0.25] * 4
    assert labels_to_image_weights([], 3).shape == (0,)
    assert labels_to_class_weights([rows()], nc=4).tolist() == [0.25] * 4
    assert labels_to_image_weights([rows(), rows()], 3).tolist() == [0, 0]


def test_weights_are_inverse_frequencies() -> None:
    weights = labels_to_class_weights([rows(0, 0, 0), rows(0, 1)], nc=3)  # counts 4, 1, 0 -> 1/4, 1, 1
    assert weights.tolist() == pytest.approx([0.25 / 2.25, 1 / 2.25, 1 / 2.25])


def test_pictures_of_weak_classes_come_up_more() -> None:
    labels, even = [rows(0), rows(1), rows()], torch.ones(2)
    assert epoch_weights(labels, even, np.array([0.9, 0.1])).tolist() == pytest.approx([0.005, 0.405, 0])
    assert epoch_weights(labels, even, np.ones(2)).tolist() == [1, 1, 1]
