"""Steps that are taken back, and batches in pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.training.guard import LIMIT, StepGuard, TrainingFault, halves, out_of_memory

NAN = torch.tensor([1.0, float("nan"), 0.0])


def test_a_model_without_buffers_has_nothing_to_take_back() -> None:
    guard = StepGuard(nn.Linear(2, 2))
    guard.accept()
    guard.undo()
    assert (guard.skipped, guard.streak) == (0, 0)


def test_statistics_are_those_of_the_last_good_step() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train()
    guard = StepGuard(model)
    model(torch.rand(2, 1, 4, 4))
    guard.accept()
    good = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.full((2, 1, 4, 4), float("nan")))
    assert not torch.equal(good["1.running_mean"], model[1].running_mean)
    guard.refuse(0, 0)
    assert all(torch.equal(value, good[name]) for name, value in model.named_buffers())
    assert int(model[1].num_batches_tracked) == 1


def test_the_batch_is_named_and_a_good_step_ends_the_streak(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard(nn.Linear(1, 1))
    assert not guard.note(torch.zeros(3), 3, ("good.jpg",)) and guard.note(NAN, 4, [f"{i}.jpg" for i in range(6)])
    guard.refuse(2, 5)
    assert "epoch 2: not finite: batch 4 (0.jpg, 1.jpg, 2.jpg, 3.jpg and 2 more)" in caplog.text
    assert "good.jpg" not in caplog.text and (guard.skipped, guard.streak) == (1, 1)
    guard.accept()
    guard.refuse(2, 6)
    assert "the gradient up to batch 6" in caplog.text and (guard.skipped, guard.streak) == (2, 1)


def test_many_in_a_row_end_the_run() -> None:
    guard = StepGuard(nn.Linear(1, 1))
    for _ in range(LIMIT - 1):
        guard.refuse(0, 0)
    guard.note(NAN, 9, ("bad.jpg",))
    with pytest.raises(TrainingFault, match=r"10 steps in a row.*batch 9 \(bad\.jpg\).*last\.pt"):
        guard.refuse(0, 9)


def test_memory_errors_are_told_from_others() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as no_room:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(no_room.value)
    assert not out_of_memory(RuntimeError("shapes do not match")) and not out_of_memory(ValueError())


@given(pictures=st.integers(1, 9), parts=st.integers(1, 12), owners=st.lists(st.integers(0, 8), max_size=20))
def test_pieces_hold_every_picture_and_label_once(pictures: int, parts: int, owners: list[int]) -> None:
    images = torch.arange(pictures).float().view(-1, 1, 1, 1)
    owners = [owner % pictures for owner in owners]
    targets = torch.tensor([[owner, label] for label, owner in enumerate(owners)]).float().reshape(-1, 2)
    pieces = list(halves(images, targets, parts))
    assert len(pieces) == min(parts, pictures) and torch.equal(torch.cat([image for image, _ in pieces]), images)
    found = [(int(image[int(row[0])]), int(row[1])) for image, mine in pieces for row in mine]
    assert sorted(found) == sorted((owner, label) for label, owner in enumerate(owners))
