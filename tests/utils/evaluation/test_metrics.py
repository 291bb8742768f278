"""Scores against worked examples, a scalar AP, and pycocotools; images without labels or detections included."""

import numpy as np
import pytest
import torch

from utils.evaluation.metrics import ConfusionMatrix, DetectionMetrics, ap_per_class, compute_ap, fitness, process_batch

NAMES = ["cat", "dog", "owl"]
IOUS = torch.linspace(0.5, 0.95, 10)
NO_DETECTIONS, NO_LABELS = torch.zeros(0, 6), torch.zeros(0, 5)


def scene(seed, classes=3, objects=8):
    """Labels of whole pixels and noisy detections of them, with false ones, by falling confidence."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(2.0, 5.6, (objects, 2))).round()
    low = rng.integers(0, 300, (objects, 2))
    labels = np.concatenate((rng.integers(classes, size=(objects, 1)), low, low + sides), axis=1)
    copies = labels[rng.integers(objects, size=3 * objects)]
    boxes = copies[:, 1:] + rng.normal(0, 0.05, (len(copies), 4)) * np.tile(copies[:, 3:] - copies[:, 1:3], 2)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    label = np.where(rng.random(len(copies)) < 0.85, copies[:, 0], rng.integers(classes, size=len(copies)))
    confidence = np.sort(rng.random(len(copies)))[::-1]
    detections = np.concatenate((boxes.round(1), confidence[:, None], label[:, None]), axis=1)
    return torch.from_numpy(detections), torch.from_numpy(labels)


def measured(*images, names=NAMES):
    metrics = DetectionMetrics(names)
    for detections, labels in images:
        metrics.update(detections, labels)
    return metrics.compute()


# --------------------------------------------------------------------------------------------------- nothing to count
def test_images_without_labels_or_detections():
    result = DetectionMetrics(NAMES).compute()
    assert (result.images, result.labels, result.precision, result.recall, result.map50, result.map) == (0,) * 6
    assert result.per_class == [] and result.curves is None and not result.maps.any()
    assert [size.labels for size in result.by_size.values()] == [0] * 3
    assert all(np.isnan(size.map) for size in result.by_size.values())
    detections, _ = scene(0)
    result = measured((NO_DETECTIONS, NO_LABELS), (detections, NO_LABELS))
    assert result.images == 2 and result.labels == 0 and result.map == 0
    assert result.confusion.matrix[:, :-1].sum() == 0 < result.confusion.matrix[:, -1].sum()
    _, labels = scene(0)
    result = measured((NO_DETECTIONS, labels), (NO_DETECTIONS, NO_LABELS))
    assert result.labels == 8 and result.images == 2
    assert sum(row.labels for row in result.per_class) == 8
    assert all((row.images, row.map, row.recall) == (1, 0, 0) for row in result.per_class)
    assert result.confusion.matrix[-1].sum() == 8
    assert all(size.map == 0 or np.isnan(size.map) for size in result.by_size.values())


# ------------------------------------------------------------------------------------------------------ whole results
def test_results_of_perfect_detections_and_per_class():
    _, labels = scene(2)
    perfect = torch.cat((labels[:, 1:], torch.linspace(0.9, 0.6, 8)[:, None], labels[:, :1]), dim=1)
    result = measured((perfect, labels))
    assert result.map == pytest.approx(0.995) and result.precision == result.recall == pytest.approx(1)
    assert np.array_equal(result.confusion.matrix, np.diag([*np.bincount(labels[:, 0].int(), minlength=3), 0]))
    assert all(size.map == pytest.approx(1) for size in result.by_size.values() if size.labels)
    detections = torch.tensor([[0.0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [20, 0, 30, 10, 0.7, 2]])
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [0, 90, 90, 99, 99], [2, 20, 0, 30, 10]])
    result = measured((detections, labels), (NO_DETECTIONS, torch.tensor([[2.0, 0, 0, 5, 5]])))
    cat, owl = result.per_class
    assert (cat.index, cat.name, cat.images, cat.labels) == (0, "cat", 1, 2)
    assert (owl.index, owl.name, owl.images, owl.labels) == (2, "owl", 2, 2)
    assert (result.images, result.labels) == (2, 4)
    # recall 0.5 at precision 1, then straight to (1, 0) from where the detections end: at precision 1 or 0.5
    assert owl.map50 == pytest.approx(0.75, abs=0.003) and cat.map50 == pytest.approx(0.5 + 0.125, abs=0.003)
    assert result.map50 == pytest.approx((cat.map50 + owl.map50) / 2)
    np.testing.assert_allclose(result.maps, [cat.map, result.map, owl.map])
    assert list(result.curves.classes) == [0, 2] and result.curves.precision.shape == (2, 1000)
    np.testing.assert_allclose(result.curves.ap[:, 0], [cat.map50, owl.map50])
    assert result.precision == pytest.approx(np.mean([cat.precision, owl.precision]))
    detections, labels = torch.tensor([[0.0, 0, 9, 9, 0.9, 2]]), torch.tensor([[1.0, 50, 50, 60, 60], [2, 0, 0, 9, 9]])
    curves = measured((detections, labels)).curves
    assert list(curves.classes) == [1, 2] and len(curves.pr_precision) == len(curves.ap) == 2
    assert not curves.pr_precision[0].any() and curves.pr_precision[1, 0] == 1


def test_the_order_of_images_and_classes_without_a_name():
    images = [scene(seed) for seed in range(4)]
    forward, backward = measured(*images), measured(*images[::-1])
    assert forward.map == pytest.approx(backward.map) and forward.map > 0.1
    detections, labels = scene(0)
    with pytest.raises(ValueError, match="detection has class .* 2 names"):
        DetectionMetrics(["cat", "dog"]).update(detections, NO_LABELS)
    with pytest.raises(ValueError, match="label has class"):
        DetectionMetrics(["cat", "dog"]).update(NO_DETECTIONS, labels)


# --------------------------------------------------------------------------------------------------------- by size
def coco_stats(images):
    """pycocotools' 12 numbers."""
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, annotations, found = COCO(), [], []
    for number, (detections, labels) in enumerate(images, start=1):
        for label, x1, y1, x2, y2 in labels.tolist():
            more = {"id": len(annotations) + 1, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append({"image_id": number, "category_id": int(label), "bbox": box} | more)
        for x1, y1, x2, y2, score, label in detections.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": number, "category_id": int(label), "bbox": box, "score": score})
    listed, kinds = ([{"id": number} for number in numbers] for numbers in (range(1, len(images) + 1), range(3)))
    truth.dataset = {"images": listed, "annotations": annotations, "categories": kinds, "info": {}}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 1:, 2]  # thresholds, recalls, classes, sizes
    valid = np.where(precision < 0, np.nan, precision)
    return {
        name: (np.nanmean(valid[0, :, :, i]), np.nanmean(valid[:, :, :, i]))
        for i, name in enumerate(("small", "medium", "large"))
    }


@pytest.mark.parametrize("seed", range(3))
def test_results_by_size_are_pycocotools(seed, capsys):
    images = [scene(10 * seed + index) for index in range(12)]
    images += [(scene(99)[0], NO_LABELS.double()), (NO_DETECTIONS.double(), scene(98)[1])]
    result = measured(*images)
    for name, (map50, overall) in coco_stats(images).items():
        assert result.by_size[name].labels > 0
        assert result.by_size[name].map50 == pytest.approx(map50, abs=1e-9), name
        assert result.by_size[name].map == pytest.approx(overall, abs=1e-9), name


def test_a_size_s_detections_are_not_wrong_in_another_and_a_hundred_count():
    small, large = [0.0, 0, 20, 20], [100.0, 100, 300, 300]
    labels = torch.tensor([[0, *small], [0, *large]])
    detections = torch.tensor([[*small, 0.9, 0], [*large, 0.8, 0], [400, 0, 420, 20, 0.95, 0]])
    sizes = measured((detections, labels)).by_size
    assert sizes["large"].map == pytest.approx(1)  # the false small box is no error among the large
    assert sizes["small"].map50 == pytest.approx(0.5)
    assert np.isnan(sizes["medium"].map) and sizes["medium"].labels == 0
    image = scene(5)
    many = torch.cat([image[0]] + [image[0] + torch.tensor([0, 0, 0, 0, -1.0, 0])] * 13)
    many[:, 5] = 0
    labels = image[1].clone()
    labels[:, 0] = 0
    stats = coco_stats([(many, labels)])
    for name, size in measured((many, labels)).by_size.items():
        assert size.map == pytest.approx(stats[name][1], abs=1e-9, nan_ok=True)


# ------------------------------------------------------------------------------------------------------ v6.1's names
@pytest.mark.parametrize("recall, precision, area", [([1.0], [1.0], 0.995), ([0.5], [1.0], 0.75), ([], [], 0.5)])
def test_worked_areas(recall, precision, area):
    assert compute_ap(np.array(recall), np.array(precision))[0] == pytest.approx(area, abs=0.0051)


def test_area_of_a_sawtooth_is_that_of_its_envelope():
    area, envelope, recall = compute_ap(np.array([0.2, 0.4, 0.4, 0.6]), np.array([1.0, 0.5, 0.8, 0.6]))
    np.testing.assert_allclose(envelope, [1, 1, 0.8, 0.8, 0.6, 0])
    np.testing.assert_allclose(recall, [0, 0.2, 0.4, 0.4, 0.6, 1])
    exact = 0.2 * 1 + 0.2 * 0.9 + 0.2 * 0.7 + 0.4 * 0.3
    assert area == pytest.approx(exact, abs=1e-3)


def test_matching_takes_the_surest_detection_of_a_label_not_the_nearest():
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [1, 0, 0, 10, 10]])
    detections = torch.tensor(
        [[0.0, 0, 10, 8, 0.9, 0], [0, 0, 10, 10, 0.8, 0], [0, 0, 10, 10, 0.7, 2], [0, 0, 10, 4, 0.6, 1]]
    )
    expected = np.zeros((4, 10), bool)
    expected[0] = np.linspace(0.5, 0.95, 10) < 0.801  # the second is nearer, but comes later
    np.testing.assert_array_equal(process_batch(detections, labels, IOUS), expected)
    assert process_batch(NO_DETECTIONS, labels, IOUS).shape == (0, 10)
    assert not process_batch(detections, NO_LABELS, IOUS).any()


def test_v61_s_scores():
    correct = np.array([[1], [0], [1], [1]], dtype=bool)
    right, wrong, precision, recall, f1, ap, classes = ap_per_class(
        correct, np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 0, 4]), np.array([0, 0, 4, 7])
    )
    assert classes.tolist() == [0, 4, 7] and ap.shape == (3, 1)
    # best mean F1 just below confidence 0.6: class 0 has 2 of 2 labels with 3 detections
    np.testing.assert_allclose(precision, [2 / 3, 1, 0])
    np.testing.assert_allclose(recall, [1, 1, 0])
    np.testing.assert_allclose(f1, [0.8, 1, 0])
    assert right.tolist() == [2, 1, 0] and wrong.tolist() == [1, 0, 0]
    empty = ap_per_class(np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.zeros(0))
    assert [len(part) for part in empty] == [0] * 7
    with pytest.raises(ValueError, match="plot_curves"):
        ap_per_class(np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), np.zeros(0), plot=True)
    np.testing.assert_allclose(fitness(np.array([[9.0, 9, 0.5, 0.25, 7]])), [0.05 + 0.225])


# -------------------------------------------------------------------------------------------------------- confusion
def test_confusion():
    labels = torch.tensor([[0.0, 0, 0, 10, 10], [1, 50, 50, 60, 60], [2, 80, 80, 90, 90]])
    detections = torch.tensor(
        [[0.0, 0, 10, 9, 0.9, 0], [50, 50, 60, 60, 0.8, 2], [20, 20, 30, 30, 0.7, 1], [0, 0, 10, 10, 0.2, 1]]
    )
    matrix = ConfusionMatrix(3)
    matrix.update(detections, labels)
    expected = np.zeros((4, 4))
    expected[0, 0] = expected[2, 1] = expected[1, 3] = expected[3, 2] = 1
    np.testing.assert_array_equal(matrix.matrix, expected)
    labels = torch.tensor([[0.0, 0, 0, 10, 10]])
    detections = torch.tensor([[0.0, 0, 10, 8, 0.9, 1], [0, 0, 10, 10, 0.5, 0]])
    matrix = ConfusionMatrix(2)
    matrix.update(detections, labels)
    assert matrix.matrix[0, 0] == 1 and matrix.matrix[1, 2] == 1 and matrix.matrix.sum() == 2
    detections, labels = torch.tensor([[0.0, 0, 5, 5, 0.9, 1]]), torch.tensor([[0.0, 50, 50, 60, 60]])
    ours, theirs = ConfusionMatrix(2), ConfusionMatrix(2)
    ours.update(detections, labels)
    theirs.process_batch(detections, labels)
    assert ours.matrix[1, 2] == ours.matrix[2, 0] == 1
    assert theirs.matrix[1, 2] == 0 and theirs.matrix[2, 0] == 1


@pytest.mark.parametrize("seed", range(3))
def test_confusion_counts_every_label_and_every_sure_detection_once(seed):
    matrix, (detections, labels) = ConfusionMatrix(3), scene(seed)
    matrix.update(detections, labels)
    assert matrix.matrix[:, :3].sum() == len(labels)
    assert matrix.matrix[:3].sum() == (detections[:, 4] > 0.25).sum()
