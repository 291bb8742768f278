"""The validation loop, with a network that is a table of answers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.evaluator import EvalSettings, Listener, evaluate, log_table

CPU = torch.device("cpu")


class Pictures(NamedTuple):
    images: Tensor
    targets: Tensor
    paths: tuple[str, ...]
    shapes: tuple


def batch(targets: list[list[float]], count: int = 2) -> Pictures:
    """`count` pictures of 100 x 200 pixels on disk, letterboxed to 64 x 128 in a 96 x 128 batch."""
    shapes = tuple(((100, 200), ((0.64, 0.64), (0.0, 16.0))) for _ in range(count))
    return Pictures(
        torch.zeros(count, 3, 96, 128, dtype=torch.uint8),
        torch.tensor(targets).view(-1, 6),
        tuple("ab"[:count]),
        shapes,
    )


def answers(rows: dict[int, list[list[float]]], count: int = 2, classes: int = 2) -> Tensor:
    """(B, M, 5 + C) predictions: per picture rows of cx, cy, w, h, objectness, class scores in pixels of the batch."""
    out = torch.zeros(count, 4, 5 + classes)
    for i, found in rows.items():
        out[i, : len(found)] = torch.tensor(found)
    return out


class Quiet(Listener):
    progress = False

    def __init__(self) -> None:
        self.images, self.batches = [], 0

    def loss(self, raw: list[Tensor], targets: Tensor) -> Tensor:
        return torch.tensor([1.0, 2.0, 3.0])

    def image(self, result) -> None:  # noqa: ANN001
        self.images.append(result)

    def batch(self, index: int, batch, detections) -> None:  # noqa: ANN001
        self.batches += 1


def test_no_pictures_at_all() -> None:
    result = evaluate(lambda x: (x, None), [], ["a"], CPU, listener=Quiet())
    assert result.summary == (0, 0, 0, 0, 0, 0, 0)


def test_perfect_answers_score_0995_and_come_back_in_native_pixels() -> None:
    targets = [[0, 0, 0.5, 0.5, 0.25, 0.5], [1, 1, 0.25, 0.5, 0.125, 0.25]]
    found = answers({0: [[64, 48, 32, 48, 1, 1, 0]], 1: [[32, 48, 16, 24, 1, 0, 1]]})
    listener = Quiet()
    result = evaluate(lambda x: (found, [found]), [batch(targets)], ["a", "b"], CPU, listener=listener)
    assert result.metrics.map50 == pytest.approx(0.995) and result.metrics.map == pytest.approx(0.995)
    assert result.losses == (1, 2, 3) and listener.batches == 1 and all(ms >= 0 for ms in result.speed)
    # 64, 48 in the batch: undo 16 px of padding and the gain of 0.64
    assert listener.images[0].detections[0, :4].tolist() == pytest.approx([75, 12.5, 125, 87.5])
    assert listener.images[0].shape == (100, 200) and listener.images[0].correct.all()


def test_wrong_class_scores_nothing_unless_classes_are_one() -> None:
    targets, found = [[0, 0, 0.5, 0.5, 0.25, 0.5]], answers({0: [[64, 48, 32, 48, 1, 0, 1]]})
    plain = evaluate(lambda x: (found, None), [batch(targets)], ["a", "b"], CPU, listener=Quiet())
    single = evaluate(
        lambda x: (found, None), [batch(targets)], ["a", "b"], CPU, EvalSettings(single_cls=True), Quiet()
    )
    assert plain.metrics.map50 == 0 and single.metrics.map50 == pytest.approx(0.995)


def test_hybrid_puts_labels_among_the_detections() -> None:
    targets, nothing = [[0, 0, 0.5, 0.5, 0.25, 0.5]], answers({})
    result = evaluate(lambda x: (nothing, None), [batch(targets)], ["a", "b"], CPU, EvalSettings(hybrid=True), Quiet())
    assert result.metrics.map50 == pytest.approx(0.995)


def test_table_names_the_classes_and_the_sizes(caplog: pytest.LogCaptureFixture) -> None:
    targets = [[0, 0, 0.5, 0.5, 0.25, 0.5]]
    result = evaluate(
        lambda x: (answers({0: [[64, 48, 32, 48, 1, 1, 0]]}), None), [batch(targets)], ["a", "b"], CPU, listener=Quiet()
    )
    with caplog.at_level("INFO", logger="yolov5"):
        log_table(result, per_class=True)
    rows = [line.split() for line in caplog.text.splitlines()]
    assert any("all" in row and "0.995" in row for row in rows) and any("a" in row for row in rows)
    assert any("(medium)" in row for row in rows)
    caplog.clear()
    log_table(evaluate(lambda x: (answers({}), None), [batch([])], ["a"], CPU, listener=Quiet()))
    assert "no labels" in caplog.text


def test_losses_are_means_over_batches() -> None:
    class Rising(Quiet):
        def loss(self, raw: list[Tensor], targets: Tensor) -> Tensor:
            return torch.full((3,), float(self.batches))

    found = answers({})
    result = evaluate(lambda x: (found, [found]), [batch([])] * 3, ["a", "b"], CPU, listener=Rising())
    assert result.losses == pytest.approx((1, 1, 1)) and np.isfinite(result.summary).all()
