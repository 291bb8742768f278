"""The validation loop, with a network that is a table of answers."""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.evaluation.evaluator import EvalSettings, evaluate, log_table
from utils.evaluation.metrics import ConfusionMatrix
from utils.evaluation.reports import Report

CPU = torch.device("cpu")


class Images(NamedTuple):
    images: Tensor
    targets: Tensor
    paths: tuple[str, ...]
    shapes: tuple


def batch(targets, count=2):
    """`count` images of 100 x 200 pixels on disk, letterboxed to 64 x 128 in a 96 x 128 batch."""
    shapes = tuple(((100, 200), ((0.64, 0.64), (0.0, 16.0))) for _ in range(count))
    return Images(
        torch.zeros(count, 3, 96, 128, dtype=torch.uint8),
        torch.tensor(targets).view(-1, 6),
        tuple("ab"[:count]),
        shapes,
    )


def answers(rows, count=2, classes=2):
    """(B, M, 5 + C) predictions: per image rows of cx, cy, w, h, objectness, class scores in pixels of the batch."""
    out = torch.zeros(count, 4, 5 + classes)
    for i, found in rows.items():
        out[i, : len(found)] = torch.tensor(found)
    return out


class Quiet(Report):
    def __init__(self):
        super().__init__(Path(), ["a"], plots=False, compute_loss=lambda *seen: (None, self.loss(*seen)))
        self.images, self.batches = [], 0

    def loss(self, raw, targets):
        return torch.tensor([1.0, 2.0, 3.0])

    def image(self, path, shape, detections, batch):
        self.images.append((path, shape, detections))

    def batch(self, index, batch, detections):
        self.batches += 1


def test_losses_are_means_and_nothing_is_zero():
    result = evaluate(lambda x: (x, None), [], ["a"], CPU, report=Quiet())
    assert result.summary == (0, 0, 0, 0, 0, 0, 0)

    class Rising(Quiet):
        def loss(self, raw, targets):
            return torch.full((3,), float(self.batches))

    found = answers({})
    result = evaluate(lambda x: (found, [found]), [batch([])] * 3, ["a", "b"], CPU, report=Rising())
    assert result.losses == pytest.approx((1, 1, 1)) and np.isfinite(result.summary).all()


def test_perfect_answers_score_0995_and_come_back_in_native_pixels():
    targets = [[0, 0, 0.5, 0.5, 0.25, 0.5], [1, 1, 0.25, 0.5, 0.125, 0.25]]
    found = answers({0: [[64, 48, 32, 48, 1, 1, 0]], 1: [[32, 48, 16, 24, 1, 0, 1]]})
    listener = Quiet()
    result = evaluate(lambda x: (found, [found]), [batch(targets)], ["a", "b"], CPU, report=listener)
    assert result.metrics.map50 == pytest.approx(0.995) and result.metrics.map == pytest.approx(0.995)
    assert result.losses == (1, 2, 3) and listener.batches == 1 and all(ms >= 0 for ms in result.speed)
    # 64, 48 in the batch: undo 16 px of padding and the gain of 0.64
    assert listener.images[0][:2] == ("a", (100, 200))
    assert listener.images[0][2][0, :4].tolist() == pytest.approx([75, 12.5, 125, 87.5])


def test_wrong_classes_one_class_and_hybrid():
    targets, found = [[0, 0, 0.5, 0.5, 0.25, 0.5]], answers({0: [[64, 48, 32, 48, 1, 0, 1]]})
    plain = evaluate(lambda x: (found, None), [batch(targets)], ["a", "b"], CPU, report=Quiet())
    single = evaluate(
        lambda x: (found, None), [batch(targets)], ["a", "b"], CPU, EvalSettings(single_cls=True), Quiet()
    )
    assert plain.metrics.map50 == 0 and single.metrics.map50 == pytest.approx(0.995)
    targets, nothing = [[0, 0, 0.5, 0.5, 0.25, 0.5]], answers({})
    result = evaluate(lambda x: (nothing, None), [batch(targets)], ["a", "b"], CPU, EvalSettings(hybrid=True), Quiet())
    assert result.metrics.map50 == pytest.approx(0.995)


def test_table_names_the_classes_and_the_sizes(caplog):
    targets = [[0, 0, 0.5, 0.5, 0.25, 0.5]]
    result = evaluate(
        lambda x: (answers({0: [[64, 48, 32, 48, 1, 1, 0]]}), None), [batch(targets)], ["a", "b"], CPU, report=Quiet()
    )
    with caplog.at_level("INFO", logger="yolov5"):
        log_table(result, per_class=True)
    rows = [line.split() for line in caplog.text.splitlines()]
    assert any("all" in row and "0.995" in row for row in rows) and any("a" in row for row in rows)
    assert any("(medium)" in row for row in rows)
    caplog.clear()
    log_table(evaluate(lambda x: (answers({}), None), [batch([])], ["a"], CPU, report=Quiet()))
    assert "no labels" in caplog.text


# -------------------------------------------------------------------------------------------------- several processes
NAMES = ["a", "b", "c"]


class Detections(NamedTuple):
    """A scene: what is there in each image of each batch, and what a network without errors would say to it."""

    batches: list[Images]
    answers: list[Tensor]


def scene(seed, batches, objects=6):
    """Batches of one to three images with up to `objects` objects; confidences are few, so that many are equal."""
    rng, images, answered = np.random.default_rng(seed), [], []
    for number in range(batches):
        count = int(rng.integers(1, 4))
        targets, found = [], {}
        for image in range(count):
            kinds = rng.integers(3, size=int(rng.integers(objects + 1)))
            places = rng.uniform(0.2, 0.8, (len(kinds), 2)), rng.uniform(0.02, 0.4, (len(kinds), 2))
            rows = np.concatenate((np.full((len(kinds), 1), image), kinds[:, None], *places), axis=1)
            targets += rows.tolist()
            boxes = (rows[:, 2:] + rng.normal(0, 0.02, (len(kinds), 4))) * (128, 96, 128, 96)
            sure = rng.integers(1, 5, len(kinds)) / 4
            classes = np.eye(3)[np.where(rng.random(len(kinds)) < 0.8, kinds, rng.integers(3, size=len(kinds)))]
            found[image] = np.concatenate((boxes, sure[:, None], classes), axis=1).tolist()
        images.append(batch(targets, count)._replace(paths=tuple(f"{number}_{i}.jpg" for i in range(count))))
        out = torch.zeros(count, objects, 8)
        for image, rows in found.items():
            out[image, : len(rows)] = torch.tensor(rows).view(-1, 8)
        answered.append(out)
    return Detections(images, answered)


class Reporter(Quiet):
    """Is told everything, and brings it together."""

    def loss(self, raw, targets):
        return raw[0].sum() * torch.tensor([0.1, 0.3, 0.7])

    def batch(self, index, batch, detections):
        self.found.append((index, ",".join(batch.paths), np.zeros((0, 6), np.float32)))

    def image(self, *given):
        pass


def evaluated(seen, world, monkeypatch, **settings):
    """The main process's result and what its listener knows, the processes taking turns; the main one comes last."""
    sent: list = []

    def gather(share):
        sent.insert(0, copy.deepcopy(share))
        return sent if len(sent) == world else None

    monkeypatch.setattr("utils.evaluation.evaluator.gather_to_main", gather)
    for first in reversed(range(world)):
        answers, listener = iter(seen.answers[first::world]), Reporter()

        def forward(images, answers=answers):
            found = next(answers)
            return found, [found]

        given = EvalSettings(first=first, stride=world, **settings)
        result = evaluate(forward, seen.batches[first::world], NAMES, CPU, given, listener)
        assert (result is None) == (first > 0 and world > 1)
    return result, [one[:2] for one in listener.found]


def same(one, other):
    """Equal to the last bit, nan included, all the way down."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, ConfusionMatrix):
        return same(one.matrix, other.matrix)
    return one == other or (one != one and other != other)


@pytest.mark.parametrize("world", [2, 9])
@pytest.mark.parametrize("seed, batches, objects", [(0, 0, 6), (1, 7, 0), (2, 1, 6), (3, 7, 6), (4, 8, 30), (5, 13, 6)])
@pytest.mark.parametrize("single_cls", [False, True])
def test_shares_give_the_same_to_the_last_bit(world, seed, batches, objects, single_cls, monkeypatch):
    seen = scene(seed, batches, objects)
    (expected, heard), (found, gathered) = (
        evaluated(seen, number, monkeypatch, single_cls=single_cls) for number in (1, world)
    )
    assert same(found.metrics, expected.metrics) and found.losses == expected.losses
    assert heard == gathered == [(index, ",".join(batch.paths)) for index, batch in enumerate(seen.batches)]
    assert all(milliseconds >= 0 for milliseconds in found.speed)
    if objects and batches > 1:
        assert expected.metrics.map50 > 0.05 and expected.metrics.confusion.matrix.any() and any(expected.losses)


def test_equal_confidences_make_the_order_of_images_matter(monkeypatch):
    """So a result put together by rank, not by batch, would be another."""
    seen = scene(3, 7)
    reordered = Detections(*(rows[::2] + rows[1::2] for rows in seen))
    results = [evaluated(one, 1, monkeypatch)[0] for one in (seen, reordered)]
    assert results[0].metrics.map != results[1].metrics.map and results[0].losses != results[1].losses
    assert results[0].metrics.map == pytest.approx(results[1].metrics.map, abs=0.05)
