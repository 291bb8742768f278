"""Matching against brute force over every cell, the loss against a plain-Python sum, and its behaviour at the edges."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.processes import together
from utils.boxes.iou import LOSSES
from utils.distributed.processes import rank
from utils.training.loss import ComputeLoss, FocalLoss, QFocalLoss, match, smooth_BCE

STRIDES = (8, 16, 32)
ANCHORS = [[(10, 13), (16, 30), (33, 23)], [(30, 61), (62, 45), (59, 119)], [(116, 90), (156, 198), (373, 326)]]
HYP = {"box": 0.05, "obj": 1.0, "cls": 0.5, "cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0}
SIDE = 128


def make_model(nc=3, levels=3, **hyp):
    anchors = torch.tensor((ANCHORS * 2)[:levels], dtype=torch.float32)
    stride = torch.tensor([8.0 * 2**level for level in range(levels)])
    head = SimpleNamespace(na=3, nc=nc, nl=levels, anchors=anchors / stride[:, None, None], stride=stride)
    return SimpleNamespace(model=[head], hyp=HYP | hyp)


def make_predictions(nc=3, batch=2, levels=3, seed=0, dtype=torch.float32):
    rng = torch.Generator().manual_seed(seed)
    sides = [SIDE // 8 >> level for level in range(levels)]
    maps = [torch.randn(batch, 3, side, side, 5 + nc, generator=rng) for side in sides]
    return [level.to(dtype).requires_grad_() for level in maps]


def make_targets(count=12, nc=3, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(batch, size=(count, 1)), rng.integers(nc, size=(count, 1))]
    rows += [rng.random((count, 2)), rng.uniform(0.03, 0.9, (count, 2))]
    return torch.from_numpy(np.concatenate(rows, axis=1)).float()


def brute_force_matches(targets, anchors, rows, cols, threshold):
    """Every target, anchor and cell: a cell learns what lies in it, or up to half a cell beside, above or below it."""
    found = []
    for image, label, x, y, w, h in targets.tolist():
        x, y, w, h = x * cols, y * rows, w * cols, h * rows
        home = (min(int(x), cols - 1), min(int(y), rows - 1))
        for index, (anchor_w, anchor_h) in enumerate(anchors.tolist()):
            if max(w / anchor_w, anchor_w / w, h / anchor_h, anchor_h / h) >= threshold:
                continue
            for col in range(cols):
                for row in range(rows):
                    beside = row == home[1] and (col - 0.5 < x < col or col + 1 < x < col + 1.5)
                    above = col == home[0] and (row - 0.5 < y < row or row + 1 < y < row + 1.5)
                    if (col, row) == home or beside or above:
                        found.append((int(image), index, row, col, int(label), x - col, y - row, w, h))
    return sorted(found)


@pytest.mark.parametrize(
    "rows", [torch.zeros(0, 6), torch.tensor([[0, 0, 0.5, 0.5, 0.0, 0.0], [0, 0, 0.5, 0.5, 0.0, 0.3]])]
)
def test_no_objects_and_objects_without_size_match_nothing(rows):
    for matches in match(rows, make_model().model[0].anchors, [(16, 16), (8, 8), (4, 4)], 4.0):
        assert [len(field) for field in matches[:-1]] == [0] * 7 and matches.total == 0


@pytest.mark.parametrize("seed", range(3))
def test_matching_agrees_with_brute_force(seed):
    targets, anchors = make_targets(40, seed=seed), make_model().model[0].anchors
    grids = [(16, 20), (8, 10), (4, 5)]
    for matches, level, (rows, cols) in zip(match(targets, anchors, grids, 4.0), anchors, grids, strict=True):
        whole = torch.stack((matches.image, matches.anchor, matches.row, matches.col, matches.label), 1)
        ours = sorted(torch.cat((whole, matches.box), 1).tolist())
        np.testing.assert_allclose(ours, brute_force_matches(targets, level, rows, cols, 4.0), atol=1e-5)
        torch.testing.assert_close(matches.anchor_size, level[matches.anchor])


@pytest.mark.parametrize("x, y", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.5)])
def test_objects_on_the_border_stay_in_the_image(x, y):
    targets = torch.tensor([[0, 0, x, y, 0.2, 0.2]])
    sides = (16, 8, 4)
    found = match(targets, make_model().model[0].anchors, [(side, side) for side in sides], 4.0)
    for matches, side in zip(found, sides, strict=True):
        assert ((matches.row >= 0) & (matches.row < side) & (matches.col >= 0) & (matches.col < side)).all()


def plain_loss(predictions, targets, model):
    """The loss in scalar arithmetic, one match at a time (no repeated cells, CIoU by torchvision)."""
    from torchvision.ops import complete_box_iou_loss

    hyp, box, obj, cls = model.hyp, 0.0, 0.0, 0.0
    grids = [tuple(level.shape[2:4]) for level in predictions]
    matches = match(targets, model.model[0].anchors, grids, hyp["anchor_t"])
    for level, (prediction, found) in enumerate(zip(predictions, matches, strict=True)):
        wanted, boxes, classes = torch.zeros(prediction.shape[:4]), [], []
        for i in range(len(found.image)):
            where = (found.image[i], found.anchor[i], found.row[i], found.col[i])
            share = prediction[where][:4].sigmoid() * 2
            centre, sides = share[:2] - 0.5, share[2:] ** 2 * found.anchor_size[i]
            ours = torch.cat((centre - sides / 2, centre + sides / 2))
            target = torch.cat((found.box[i, :2] - found.box[i, 2:] / 2, found.box[i, :2] + found.box[i, 2:] / 2))
            boxes.append(complete_box_iou_loss(ours, target))
            wanted[where] = (1 - boxes[-1]).clamp(0).detach()
            truth = F.one_hot(found.label[i], model.model[0].nc).float()
            classes.append(F.binary_cross_entropy_with_logits(prediction[where][5:], truth))
        if boxes:
            box, cls = box + sum(boxes) / len(boxes), cls + sum(classes) / len(classes)
        balance = (4.0, 1.0, 0.4)[level]
        obj = obj + balance * F.binary_cross_entropy_with_logits(prediction[..., 4], wanted)
    items = torch.stack((box * hyp["box"], obj * hyp["obj"], cls * hyp["cls"]))
    return items.sum() * len(predictions[0]), items.detach()


def test_loss_and_gradient_agree_with_plain_arithmetic():
    model = make_model()
    targets = torch.tensor([[0, 2, 0.31, 0.42, 0.2, 0.3], [1, 0, 0.77, 0.13, 0.5, 0.6], [1, 1, 0.2, 0.8, 0.1, 0.1]])
    ours, theirs = make_predictions(), make_predictions()
    loss, items = ComputeLoss(model)(ours, targets)
    expected, expected_items = plain_loss(theirs, targets, model)
    assert loss.shape == (1,) and items.shape == (3,) and not items.requires_grad
    torch.testing.assert_close(loss[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(items, expected_items, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("nc", [1, 3])
def test_without_targets_only_objectness_is_learnt(nc):
    predictions = make_predictions(nc)
    loss, items = ComputeLoss(make_model(nc))(predictions, torch.zeros(0, 6))
    loss.backward()
    assert items[0] == items[2] == 0 < items[1]
    for prediction in predictions:
        assert prediction.grad[..., 4].all() and not prediction.grad[..., [0, 1, 2, 3, 5]].any()
    assert torch.equal(ComputeLoss(make_model(nc, pooled=1))(predictions, torch.zeros(0, 6))[1], items)
    items = ComputeLoss(make_model(nc))(predictions, make_targets(nc=nc))[1]
    assert items[0] > 0 and (items[2] == 0) == (nc == 1)  # one class has no class loss


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("scale", [1, 60])
def test_every_box_loss_is_finite_even_for_wild_logits(kind, scale):
    predictions = [(p.detach() * scale).requires_grad_() for p in make_predictions()]
    loss, _ = ComputeLoss(make_model(box_iou=kind))(predictions, make_targets(40))
    loss.backward()
    assert loss.isfinite().all() and all(p.grad.isfinite().all() for p in predictions)


def test_pooled_counts_every_match_alike():
    predictions, targets = make_predictions(), make_targets()
    model = make_model(pooled=1)
    items = ComputeLoss(model)(predictions, targets)[1]
    grids = [level.shape[2:4] for level in predictions]
    counts = [len(found.label) for found in match(targets, model.model[0].anchors, grids, HYP["anchor_t"])]
    assert min(counts) > 0 and len(set(counts)) > 1
    # a level alone: the others are given anchors that nothing fits, so v6.1's sum is that level's mean
    means = []
    for level in range(3):
        alone = make_model()
        for other in {0, 1, 2} - {level}:
            alone.model[0].anchors[other] = 1e6
        means.append(ComputeLoss(alone)(predictions, targets)[1])
    for part in (0, 2):
        mean_over_matches = sum(n * float(mean[part]) for n, mean in zip(counts, means, strict=True)) / sum(counts)
        assert float(items[part]) == pytest.approx(3 * mean_over_matches, rel=1e-5)
    assert float(items[1]) == pytest.approx(float(ComputeLoss(make_model())(predictions, targets)[1][1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_scored_in_float32(dtype):
    predictions, targets = make_predictions(dtype=dtype), make_targets()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = ComputeLoss(make_model())(predictions, targets)
    expected, _ = ComputeLoss(make_model())([p.detach().float() for p in predictions], targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert predictions[0].grad.dtype == dtype


def objectness_target(*rows, **settings):
    """The objectness that one prediction of the finest level should have, seen through a criterion that keeps it."""
    seen, compute = [], ComputeLoss(make_model())
    vars(compute).update(settings, object_loss=lambda logits, target: seen.append(target.clone()) or logits.mean())
    predictions = [torch.zeros_like(p) for p in make_predictions()]
    compute(predictions, torch.tensor(rows))
    return float(seen[0].view(predictions[0].shape[:4])[0, 0, 8, 8])


def test_of_objects_on_one_prediction_the_last_or_the_best_sets_its_objectness():
    """Two objects, the second too large to fit well: the same cell and anchor. `gr` mixes overlap and certainty."""
    good, poor = [0, 0, 0.53, 0.53, 0.08, 0.1], [0, 1, 0.53, 0.53, 0.2, 0.3]
    fit, misfit = objectness_target(good), objectness_target(poor)
    assert fit > misfit > 0 and objectness_target(poor, good) == fit and objectness_target(good, poor) == misfit
    assert objectness_target(good, poor, sort_obj_iou=True) == fit
    assert objectness_target(good, gr=0.0) == 1 and objectness_target(good, gr=0.5) == pytest.approx((1 + fit) / 2)


@pytest.mark.parametrize(
    "levels, balance",
    [(2, [4, 1]), (3, [4, 1, 0.4]), (4, [4, 1, 0.25, 0.06]), (6, [4, 1, 0.25, 0.06, 0.02, 0.02])],
)
def test_levels_are_balanced_as_in_v61(levels, balance):
    compute = ComputeLoss(make_model(levels=levels))
    assert compute.balance[:levels] == balance
    if levels < 5:
        assert compute(make_predictions(levels=levels), make_targets())[0].isfinite()


def test_autobalance_gives_weight_to_what_is_learnt_well_even_perfectly():
    predictions = [p.detach() for p in make_predictions()]
    predictions[0][..., 4] += 50  # sure of objects everywhere
    predictions[2][..., 4] -= 50  # right about the background
    compute = ComputeLoss(make_model(), autobalance=True)
    before = list(compute.balance)
    compute(predictions, torch.zeros(0, 6))
    assert compute.balance[1] == 1 and compute.balance[2] > before[2] and math.isfinite(compute.balance[2])


FORMS = {
    **{kind: {"box_iou": kind} for kind in LOSSES},
    "focal": {"fl_gamma": 1.5, "label_smoothing": 0.1, "cls_pw": 2.0, "obj_pw": 0.5},
    "blunt": {"fl_gamma": 0.5, "pooled": 1},
    "best": {"sort_obj_iou": True},
    "certain": {"gr": 0.3},
    "one class": {"nc": 1},
    "some do not match": {"anchor_t": 1.3, "box_iou": "WIoUv3", "pooled": 1},
    "none matches": {"anchor_t": 0.9, "box_iou": "WIoUv3", "pooled": 1},
}


def three_steps(name, targets, monkeypatch, compact):
    """Losses, parts, gradients, and the running mean after each step, in one of the two forms of the matches."""
    given = dict(FORMS[name])
    monkeypatch.setattr("utils.training.loss.COMPACT", ("cpu",) * compact)
    attributes = {key: given.pop(key) for key in ("gr", "sort_obj_iou") if key in given}
    compute, found = ComputeLoss(make_model(**given)), []
    vars(compute).update(attributes)
    for step in range(3):
        predictions = make_predictions(given.get("nc", 3), seed=step)
        loss, parts = compute(predictions, targets)
        loss.backward()
        found += [loss, parts, torch.as_tensor(compute.mean_iou_loss.value), *(p.grad for p in predictions)]
    return found


@pytest.mark.parametrize("count", [0, 40])
@pytest.mark.parametrize("name", FORMS)
def test_places_without_a_match_count_for_nothing(name, count, monkeypatch):
    """Off the CPU matches stand among places that are none; objects share predictions, and some have no size."""
    targets = make_targets(count, nc=FORMS[name].get("nc", 3))
    targets = torch.cat((targets, targets[:6], targets[:2] * torch.tensor([1, 1, 1, 1, 0, 1])))
    listed, spread = (three_steps(name, targets, monkeypatch, compact) for compact in (True, False))
    for one, other in zip(listed, spread, strict=True):
        torch.testing.assert_close(other, one, rtol=2e-6, atol=1e-8, check_dtype=False)


def test_a_prediction_that_learns_nothing_spoils_nothing(monkeypatch):
    """Boxes and classes of cells without an object may be any number, in both forms."""
    for compact in (True, False):
        monkeypatch.setattr("utils.training.loss.COMPACT", ("cpu",) * compact)
        predictions = make_predictions()
        with torch.no_grad():
            predictions[0][1, ..., [0, 1, 2, 3, 5, 6, 7]] = float("nan")
        targets = make_targets()
        targets[:, 0] = 0  # all in the first image
        loss, _ = ComputeLoss(make_model())(predictions, targets)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in predictions)


def test_smoothing_and_focal_losses():
    assert smooth_BCE(0.1) == pytest.approx((0.95, 0.05)) and smooth_BCE(0.0) == (1, 0)
    zero, one = torch.zeros(1), torch.ones(1)
    assert FocalLoss(nn.BCEWithLogitsLoss(), 1.5)(zero, one).item() == pytest.approx(0.061266, abs=1e-6)
    # logit 1 against a target of 0.3: p = 0.731, BCE = 1.313 - 0.3, alpha 0.3 / 4 + 0.7 * 3 / 4, |y - p|^1.5
    p = 1 / (1 + math.exp(-1))
    expected = (math.log(1 + math.e) - 0.3) * (0.075 + 0.525) * (p - 0.3) ** 1.5
    assert QFocalLoss(nn.BCEWithLogitsLoss(), 1.5)(one, one * 0.3).item() == pytest.approx(expected, rel=1e-5)
    logits, truth = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.eye(4, 3)
    for reduction in ("none", "sum", "mean"):
        wrapped = nn.BCEWithLogitsLoss(reduction=reduction, pos_weight=torch.tensor([2.0]))
        result = FocalLoss(wrapped, gamma=0.0, alpha=0.5)(logits, truth)
        torch.testing.assert_close(result * 2, wrapped(logits, truth))


# -------------------------------------------------------------------------------------------------- several processes
BATCH = 4
SHARED = {
    "plain": {},
    "uneven": {"cut": 1},
    "pooled": {"pooled": 1, "cut": 3},
    "WIoUv3": {"box_iou": "WIoUv3"},
    "focal, smoothed": {"fl_gamma": 1.5, "label_smoothing": 0.1, "cls_pw": 2.0},
    "WIoUv2, one process without a match": {"box_iou": "WIoUv2", "rows": slice(0, 2)},
    "no match": {"box_iou": "WIoUv3", "pooled": 1, "rows": slice(0, 0)},
}


def learn(part, cut=2, rows=slice(None), **hyp):
    """Losses, parts, gradients and state after each of three steps on `part` of the images; and of a validation."""
    compute, found = ComputeLoss(make_model(**hyp), shared=True), {}
    for step in range(3):
        maps = make_predictions(batch=BATCH, seed=step)
        predictions = [level.detach()[part].clone().requires_grad_() for level in maps]
        targets = make_targets(30, batch=BATCH, seed=step)
        targets = targets[targets[:, 0].argsort()][rows]
        here = torch.isin(targets[:, 0], torch.arange(BATCH)[part])
        loss, parts = compute(predictions, targets[here] - torch.tensor([part.start, 0, 0, 0, 0, 0]))
        loss.backward()
        found |= {f"loss{step}": loss.detach(), f"parts{step}": parts}
        found |= {f"gradient{step}{level}": value.grad for level, value in enumerate(predictions)}
        found[f"state{step}"] = torch.tensor([*compute.balance, float(compute.mean_iou_loss.value)])
    before = compute.state_dict()
    if part.start == 0:  # the others need not join a validation, and it moves nothing
        compute([value.detach() for value in predictions], targets[here])
    assert compute.state_dict() == before
    return found


def in_two():
    found = {}
    for name, case in SHARED.items():
        cut = case.get("cut", 2)
        found[name] = learn(slice(0, cut) if rank() == 0 else slice(cut, BATCH), **case)
    return found


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    return together(in_two, tmp_path_factory.mktemp("halves"))


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_learn_what_one_would(name, halves):
    first, second = (half[name] for half in halves)
    for key, expected in learn(slice(0, BATCH), **SHARED[name]).items():
        joined = {"l": torch.add, "p": lambda a, b: (a + b) / 2, "g": lambda a, b: torch.cat((a, b))}
        torch.testing.assert_close(
            joined.get(key[0], lambda a, b: a)(first[key], second[key]), expected, rtol=2e-6, atol=1e-6, msg=key
        )
        assert key[0] != "s" or torch.equal(first[key], second[key])


def test_the_state_of_a_training_goes_on():
    case = {"box_iou": "WIoUv3"}
    one = ComputeLoss(make_model(**case), autobalance=True)
    for seed in range(3):
        if seed == 2:
            other = ComputeLoss(make_model(**case), autobalance=True)
            other.load_state_dict(one.state_dict())
            found = other(make_predictions(seed=seed), make_targets(seed=seed))[0]
        expected = one(make_predictions(seed=seed), make_targets(seed=seed))[0]
    assert torch.equal(found, expected)
