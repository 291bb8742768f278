"""Overlap measures and box losses against worked values, torchvision, and formulas in plain Python."""

import math

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou as torchvision_box_iou
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from utils.boxes.iou import (
    LOSSES,
    METRICS,
    RunningMean,
    bbox_ioa,
    bbox_iou,
    box_iou,
    iou_loss,
    paired_iou,
    wh_iou,
)

# two boxes with every quantity by hand: 4 x 2 at (3, 3), 2 x 6 at (4, 5)
FIRST, SECOND = (3.0, 3.0, 4.0, 2.0), (4.0, 5.0, 2.0, 6.0)
SHARED = 2.0 * 2.0  # x 3..5, y 2..4
UNION = 8.0 + 12.0 - SHARED
IOU = SHARED / UNION
WIDE, HIGH = 4.0, 6.0  # of the enclosing box: x 1..5, y 2..8
DISTANCE = 1.0**2 + 2.0**2
DIAGONAL = WIDE**2 + HIGH**2


def worked_ciou():
    v = 4 / math.pi**2 * (math.atan(2 / 6) - math.atan(4 / 2)) ** 2
    return IOU - DISTANCE / DIAGONAL - v * v / (1 - IOU + v)


def worked_eiou():
    return IOU - DISTANCE / DIAGONAL - (4 - 2) ** 2 / WIDE**2 - (2 - 6) ** 2 / HIGH**2


def worked_siou():
    sine = 2.0 / math.sqrt(DISTANCE)  # of the angle between the line of centres and the horizontal
    angle = 1 - 2 * math.sin(math.asin(sine) - math.pi / 4) ** 2
    gamma = 2 - angle
    distance = (1 - math.exp(-gamma * (1 / WIDE) ** 2)) + (1 - math.exp(-gamma * (2 / HIGH) ** 2))
    shape = (1 - math.exp(-2 / 4)) ** 4 + (1 - math.exp(-4 / 6)) ** 4
    return IOU - (distance + shape) / 2


WISE = math.exp(DISTANCE / DIAGONAL)
WORKED_MEASURES = {
    "IoU": IOU,
    "GIoU": IOU - (WIDE * HIGH - UNION) / (WIDE * HIGH),
    "DIoU": IOU - DISTANCE / DIAGONAL,
    "CIoU": worked_ciou(),
    "EIoU": worked_eiou(),
    "SIoU": worked_siou(),
}


def worked_losses(mean=0.5):
    beta = (1 - IOU) / mean
    return {name: 1 - value for name, value in WORKED_MEASURES.items()} | {
        "Focal-EIoU": math.sqrt(IOU) * (1 - worked_eiou()),
        "WIoUv1": WISE * (1 - IOU),
        "WIoUv2": math.sqrt(beta) * WISE * (1 - IOU),
        "WIoUv3": beta / (3 * 1.9 ** (beta - 3)) * WISE * (1 - IOU),
    }


def tensor(*boxes):
    return torch.tensor(boxes, dtype=torch.float64)


def random_boxes(count, seed, xywh=False):
    rng = np.random.default_rng(seed)
    low, sides = rng.uniform(0, 50, (count, 2)), rng.uniform(0.5, 60, (count, 2))
    return torch.from_numpy(np.concatenate((low, sides if xywh else low + sides), axis=1))


def test_every_loss_has_a_worked_value():
    assert set(worked_losses()) == set(LOSSES) and set(WORKED_MEASURES) == set(METRICS)


@pytest.mark.parametrize("kind", LOSSES)
def test_no_boxes(kind):
    loss, quality = iou_loss(torch.zeros(0, 4), torch.zeros(0, 4), kind, RunningMean())
    assert loss.shape == quality.shape == (0,)


@pytest.mark.parametrize("kind", LOSSES)
def test_worked_losses(kind):
    state = RunningMean(start=0.5)
    loss, quality = iou_loss(tensor(FIRST), tensor(SECOND), kind, state)
    assert loss.item() == pytest.approx(worked_losses()[kind], abs=1e-6)
    measure = {"Focal-EIoU": "EIoU"}.get(kind, "IoU" if kind.startswith("WIoU") else kind)
    assert quality.item() == pytest.approx(WORKED_MEASURES[measure], abs=1e-6)


@pytest.mark.parametrize(
    "kind, oracle",
    [("GIoU", generalized_box_iou_loss), ("DIoU", distance_box_iou_loss), ("CIoU", complete_box_iou_loss)],
)
def test_losses_and_gradients_agree_with_torchvision(kind, oracle):
    ours, theirs = (random_boxes(200, 1).requires_grad_() for _ in range(2))
    target = random_boxes(200, 2)
    loss, _ = iou_loss(ours, target, kind, xywh=False)
    expected = oracle(theirs, target)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_pairwise_is_all_pairs_and_agrees_with_torchvision():
    first, second = random_boxes(7, 3), random_boxes(5, 4)
    torch.testing.assert_close(box_iou(first, second), torchvision_box_iou(first, second))
    assert box_iou(first[:0], second).shape == (0, 5)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_perfect_box_costs_nothing_and_a_step_downhill_helps(kind):
    target = random_boxes(50, 5, xywh=True)
    loss, quality = iou_loss(target.clone(), target, kind, RunningMean())
    assert loss.abs().max() < 1e-5 and (quality - 1).abs().max() < 1e-5
    predicted = (target * torch.linspace(0.8, 1.25, 4)).requires_grad_()
    state = RunningMean()
    loss, _ = iou_loss(predicted, target, kind, state)
    loss.sum().backward()
    moved, _ = iou_loss((predicted - 1e-3 * predicted.grad).detach(), target, kind, state)
    assert moved.sum() < loss.sum()


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_gradients_are_finite_at_the_worst(kind, dtype):
    worst = [(5, 5, 0, 0), (5, 5, 3, 0), (0, 0, 1e-8, 1e-8), (1e4, 1e4, 1e4, 1e4), (17.65, 81.43, 155.25, 197.94)]
    pairs = [(p, q) for p in worst for q in worst]
    predicted = torch.tensor([p for p, _ in pairs], dtype=dtype, requires_grad=True)
    target = torch.tensor([q for _, q in pairs], dtype=dtype)
    loss, quality = iou_loss(predicted, target, kind, RunningMean())
    loss.sum().backward()
    assert loss.isfinite().all() and predicted.grad.isfinite().all()
    assert (quality <= 1 + 1e-6).all() and not quality.requires_grad


@pytest.mark.parametrize("kind", ["CIoU", "EIoU", "SIoU", "WIoUv1"])
def test_the_centre_of_a_tiny_box_is_moved_as_in_double_precision(kind):
    """Logits far below zero make boxes thinner than their coordinates' rounding; v6.1's gradient is noise there."""
    generator = torch.Generator().manual_seed(7)
    sides = torch.logspace(-10, -1, 10)[torch.randint(10, (200, 2), generator=generator)]
    predicted = torch.cat((torch.rand(200, 2, generator=generator), sides), 1)
    target = torch.cat((torch.rand(200, 2, generator=generator), 1 + torch.rand(200, 2, generator=generator)), 1)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        boxes = predicted.detach().to(dtype).clone().requires_grad_()
        iou_loss(boxes, target.to(dtype), kind)[0].sum().backward()
        gradients.append(boxes.grad[:, :2].double())
    error = (gradients[0] - gradients[1]).norm(dim=1)
    assert (error <= 1e-3 * gradients[1].norm(dim=1) + 1e-5).all()


def test_focal_weight_is_a_constant_for_the_gradient():
    first = tensor(FIRST).requires_grad_()
    second = first.detach().clone().requires_grad_()
    iou_loss(first, tensor(SECOND), "Focal-EIoU")[0].sum().backward()
    (math.sqrt(IOU) * iou_loss(second, tensor(SECOND), "EIoU")[0]).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["WIoUv2", "WIoUv3"])
def test_the_running_mean_moves_in_training_only(kind):
    state = RunningMean(momentum=0.25, start=1.0)
    iou_loss(tensor(FIRST), tensor(SECOND), kind, state)
    assert state.value == 1.0
    iou_loss(tensor(FIRST).requires_grad_(), tensor(SECOND), kind, state)
    assert float(state.value) == pytest.approx(0.75 + 0.25 * (1 - IOU))
    state.update(torch.zeros(0))
    assert float(state.value) == pytest.approx(0.75 + 0.25 * (1 - IOU))


@pytest.mark.parametrize(
    "call", [lambda: paired_iou(*[torch.zeros(1, 4)] * 2, "XIoU"), lambda: iou_loss(*[torch.zeros(1, 4)] * 2, "XIoU")]
)
def test_unknown_names_list_the_known(call):
    with pytest.raises(ValueError, match="XIoU.*CIoU"):
        call()


def test_v61_s_functions():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [10, 10, 12, 12]])
    np.testing.assert_allclose(bbox_iou(boxes[0], boxes, CIoU=True), [1.0, 0.031746, -0.694444], atol=1e-6)
    first, second = random_boxes(6, 6), random_boxes(6, 7)
    torch.testing.assert_close(bbox_iou(first.T, second, GIoU=True), paired_iou(first, second, "GIoU"))
    centred, other = random_boxes(6, 8, xywh=True), random_boxes(6, 9, xywh=True)
    torch.testing.assert_close(bbox_iou(centred.T, other, x1y1x2y2=False), paired_iou(centred, other, xywh=True))
    covered = bbox_ioa(np.array([0.0, 0, 10, 10]), np.array([[5.0, 5, 15, 15], [2, 2, 4, 4], [20, 20, 30, 30]]))
    np.testing.assert_allclose(covered, [0.25, 1, 0], atol=1e-6)
    assert bbox_ioa(np.zeros(4), np.zeros((0, 4))).shape == (0,)
    sides = wh_iou(torch.tensor([[2.0, 4.0]]), torch.tensor([[2.0, 4.0], [4.0, 2.0], [1.0, 1.0]]))
    np.testing.assert_allclose(sides, [[1, 4 / 12, 1 / 8]])
