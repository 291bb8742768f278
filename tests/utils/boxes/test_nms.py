"""Suppression against a greedy loop in plain Python, and its options one by one."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import utils.boxes.nms as nms_file
from utils.base.paths import ROOT
from utils.boxes.iou import box_iou
from utils.boxes.nms import non_max_suppression

OPTIONS = [
    {},
    {"multi_label": True, "conf_thres": 0.01},
    {"agnostic": True, "iou_thres": 0.2},
    {"classes": [0, 2], "conf_thres": 0.05},
    {"max_det": 3, "multi_label": True},
    {"multi_label": True, "conf_thres": 0.001, "iou_thres": 0.6, "max_det": 20},
]


def predictions(batch=2, rows=200, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    groups = rng.uniform(50, 300, (8, 2))
    centres = groups[rng.integers(8, size=(batch, rows))] + rng.normal(0, 6, (batch, rows, 2))
    sides = rng.uniform(20, 60, (batch, rows, 2))
    return torch.from_numpy(np.concatenate((centres, sides, rng.random((batch, rows, 1 + classes))), axis=2)).float()


def greedy(rows, conf_thres=0.25, iou_thres=0.45, classes=None, agnostic=False, multi_label=False, max_det=300):
    """One image, one pair at a time."""
    found = []
    for x, y, w, h, objectness, *scores in rows.tolist():
        best = max(range(len(scores)), key=scores.__getitem__)
        for label, score in enumerate(scores):
            confidence = float(torch.tensor(objectness) * torch.tensor(score))
            wanted = (multi_label or label == best) and (classes is None or label in classes)
            if objectness > conf_thres and confidence > conf_thres and wanted:
                found.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2, confidence, label])
    found.sort(key=lambda row: -row[4])
    kept = []
    for row in found:
        rivals = [other for other in kept if agnostic or other[5] == row[5]]
        if not rivals or box_iou(torch.tensor([row[:4]]), torch.tensor(rivals)[:, :4]).max() <= iou_thres:
            kept.append(row)
    return torch.tensor(kept[:max_det]).reshape(-1, 6)


@pytest.mark.parametrize("options", OPTIONS)
def test_nothing_in_nothing_out(options):
    results = non_max_suppression(torch.zeros(3, 0, 8), **options)
    assert [tuple(result.shape) for result in results] == [(0, 6)] * 3
    assert non_max_suppression(torch.zeros(0, 10, 8), **options) == []
    assert len(non_max_suppression(torch.zeros(1, 10, 8), **options)[0]) == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_agrees_with_a_greedy_loop(options):
    prediction = predictions(batch=4)
    before = prediction.clone()
    for result, rows in zip(non_max_suppression(prediction, **options), prediction, strict=True):
        torch.testing.assert_close(result, greedy(rows, **options), rtol=1e-5, atol=1e-3)
    assert torch.equal(prediction, before)


def test_a_growing_prefix_gives_the_whole_answer(monkeypatch):
    """Many boxes in one group: the first prefix holds too few survivors and has to grow."""
    prediction = predictions(rows=400, seed=5)
    prediction[..., :2] = 100 + prediction[..., :2] / 100
    prediction[:, :4, :2] += torch.arange(4)[:, None] * 200
    prediction[:, :4, 4] = 0.02  # the boxes apart from the group are the least confident
    options = {"max_det": 10, "conf_thres": 0.001, "agnostic": True}
    lengths = []
    original = nms_file.survivors
    monkeypatch.setattr(nms_file, "FIRST_PREFIX", 1)
    monkeypatch.setattr(nms_file, "survivors", lambda rows, *rest: lengths.append(len(rows)) or original(rows, *rest))
    for result, rows in zip(non_max_suppression(prediction, **options), prediction, strict=True):
        torch.testing.assert_close(result, greedy(rows, **options), rtol=1e-5, atol=1e-3)
    assert min(lengths) > 10


@pytest.mark.parametrize("at_once, most", [(50_000, 30_000), (40, 30_000), (40, 7)])
@pytest.mark.parametrize("options", OPTIONS)
def test_images_looked_at_together_are_as_each_alone(options, at_once, most, monkeypatch):
    """As on a GPU: in one call; in several, with prefixes too short for some images; with too many candidates."""
    monkeypatch.setattr(nms_file, "AT_ONCE", at_once)
    monkeypatch.setattr(nms_file, "MAX_CANDIDATES", most)
    prediction = predictions(batch=5, rows=300)
    prediction[1, :, 4] = 0  # nothing to be found
    prediction[2, :, 2] = float("nan")
    prediction[3, 20:, 4] = 0
    given = {"max_det": 6} | options
    labels = [torch.tensor([[2.0, 500, 500, 40, 40]]), *[torch.zeros(0, 5)] * 3, torch.tensor([[1.0, 50, 50, 40, 40]])]
    for more in ({}, {"labels": labels}, {"conf_thres": 0.999}):
        alone = non_max_suppression(prediction, **given | more)
        with monkeypatch.context() as patch:
            patch.setattr(nms_file, "ONE_BY_ONE", ())
            results = [non_max_suppression(prediction, **given | more, on_cpu=on_cpu) for on_cpu in (False, True)]
        for together in results:
            assert all(map(torch.equal, together, alone)) and len(together) == 5
    assert max(map(len, non_max_suppression(prediction, **given))) > 1


def test_only_the_most_confident_compete_where_there_are_too_many(monkeypatch):
    monkeypatch.setattr(nms_file, "MAX_CANDIDATES", 5)
    prediction = predictions(batch=1)
    result = non_max_suppression(prediction, conf_thres=0.0, iou_thres=1.0, agnostic=True)[0]
    scores = (prediction[0, :, 4] * prediction[0, :, 5:].max(dim=1).values).sort(descending=True).values
    torch.testing.assert_close(result[:, 4], scores[:5])


def test_v61_s_example_and_half_precision():
    prediction = torch.tensor([[[50.0, 50, 20, 20, 0.9, 0.9, 0.8], [50, 50, 20, 20, 0.9, 0.5, 0.6]]])
    single = non_max_suppression(prediction)[0]
    np.testing.assert_allclose(single[:, 4:], [[0.81, 0], [0.54, 1]], rtol=1e-6)
    multi = non_max_suppression(prediction, multi_label=True)[0]
    np.testing.assert_allclose(multi[:, 4:], [[0.81, 0], [0.72, 1]], rtol=1e-6)
    np.testing.assert_allclose(multi[:, :4], [[40, 40, 60, 60]] * 2)
    results = non_max_suppression(predictions().half())
    assert results[0].dtype == torch.float32 and len(results[0])


@pytest.mark.parametrize("has_library", [True, False])
def test_the_library_is_loaded_alone_or_with_its_package(has_library):
    script = f"""
import sys, torch
from pathlib import Path
from utils.boxes.nms import suppressor
if not {has_library}:
    Path.glob = lambda *_: iter([Path("missing_C.so")])
nms, boxes, scores = suppressor(), 100 * torch.rand(200, 4).sort(1).values, torch.rand(200)
assert ("torchvision" in sys.modules) is not {has_library}
import torchvision
kept = torchvision.ops.nms(boxes, scores, 0.5)
assert 0 < len(kept) < 200 and torch.equal(nms(boxes, scores, 0.5), kept)"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "column, value", [(2, 1.99), (2, 7681), (2, NAN), (3, 0), (3, INF), (0, NAN), (0, INF), (4, NAN), (4, 0.25)]
)
def test_noise_is_left_out(column, value):
    row = torch.tensor([[[50.0, 50, 20, 20, 0.9, 0.9]]])
    assert len(non_max_suppression(row)[0]) == 1
    row[0, 0, column] = value
    assert len(non_max_suppression(row)[0]) == 0


def test_labels_join_and_classes_far_apart_do_not_suppress_each_other():
    labels = [torch.tensor([[2.0, 500, 500, 40, 40]]), torch.zeros(0, 5)]
    with_labels = non_max_suppression(predictions(), labels=labels)
    np.testing.assert_allclose(with_labels[0][0], [480, 480, 520, 520, 1, 2])
    torch.testing.assert_close(with_labels[1], non_max_suppression(predictions())[1])
    rows = torch.tensor([[[-20_000.0, 10, 50, 50, 0.9, 0.9, 0.1], [-20_000 + 7680, 10, 50, 50, 0.8, 0.9, 0.1]]])
    rows = torch.cat((rows, torch.tensor([[[-20_000.0, 10, 50, 50, 0.7, 0.1, 0.9]]])), dim=1)
    assert len(non_max_suppression(rows)[0]) == 3


@pytest.mark.parametrize("options", [{"conf_thres": 1.5}, {"iou_thres": -0.1}])
def test_thresholds_must_lie_between_0_and_1(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} .*0..1"):
        non_max_suppression(predictions(), **options)


@pytest.mark.parametrize("shape", [(7,), (10, 7), (1, 10, 5), (1, 10, 7, 1)])
def test_predictions_of_another_shape_are_one_line(shape):
    with pytest.raises(ValueError, match=f"the weights return {' x '.join(map(str, shape))}, not"):
        non_max_suppression(torch.zeros(shape))
