"""One epoch of training on a network small enough to reason about."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from utils.base.callbacks import Callbacks
from utils.base.config import Hyp
from utils.data.loader_faults import WorkerFault
from utils.training.guard import OutOfMemory, TrainingFault
from utils.training.optim import Recipe, Schedule
from utils.training.precision import Precision
from utils.training.state import cut_finer
from utils.training.trainer import EpochSettings, Position, Trainer

CPU = torch.device("cpu")


class Images(NamedTuple):
    images: Tensor
    targets: Tensor
    paths: tuple[str, ...] = ("x",)


class Mean(nn.Module):
    """Answers with one learned number per image, as a list of one level."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen.append(tuple(images.shape))
        return [self.weight * images.amax((1, 2, 3))]


class Drawing(Mean):
    """Notes a number from each of the global generators."""

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen.append((random.random(), np.random.rand(), torch.rand(1).item()))  # noqa: NPY002 - global
        return [self.weight * images.amax((1, 2, 3))]


class ToOne(nn.Module):
    """Squared distance from 1, summed over the batch."""

    def forward(self, predictions: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = ((predictions[0] - 1) ** 2).sum()
        return loss, loss.detach().expand(3)


class Poisoned(ToOne):
    """Not a number for images with labels."""

    def forward(self, predictions: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, items = super().forward(predictions, targets)
        factor = float("nan") if len(targets) else 1.0
        return loss * factor, items * factor


class Steep(nn.Module):
    """0 at 0, where its slope is infinite."""

    def forward(self, predictions: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = predictions[0].abs().sqrt().sum()
        return loss, loss.detach().expand(3)


class Average:
    """Counts the optimiser's steps."""

    def __init__(self) -> None:
        self.steps = 0

    def update(self, model: nn.Module) -> None:
        self.steps += 1


def trainer(
    hyp: Hyp, epochs: int = 1, batches: int = 4, batch: int = 1, model: Mean | None = None,
    loss: nn.Module | None = None, **settings: object,
) -> Trainer:  # fmt: skip
    model, recipe = model or Mean(), Recipe("SGD", 0.1, 0.0, 0.0)
    nothing = {"params": []}
    optimizer = torch.optim.SGD([nothing, {"params": [*model.parameters()]}, dict(nothing)], lr=0.1, momentum=0.0)
    return Trainer(
        model, model, loss or ToOne(), optimizer, Schedule(hyp, recipe, epochs, batches, batch), Average(),
        Precision.choose("off", CPU), EpochSettings(epochs, 64, 32, **settings), Callbacks(),
    )  # fmt: skip


def loader(batches: int = 4, side: int = 64) -> list[Images]:
    return [Images(torch.full((1, 3, side, side), 255, dtype=torch.uint8), torch.zeros(0, 6))] * batches


def test_gradients_gather_up_to_the_nominal_batch_and_the_epoch_ends_with_a_step() -> None:
    one, seen = trainer(Hyp(warmup_epochs=0, nominal_batch=3), epochs=2), []
    assert one.epoch([], Position(0)) == [0, 0, 0] and one.model.weight.item() == 0
    one.callbacks.register_action("on_train_batch_end", "", lambda number, *rest: seen.append(number))
    losses = one.epoch(loader(4), Position(0))
    # three images give one gradient of 3 * 2 * (0 - 1), so 0 -> 0.6; the fourth alone 2 * (0.6 - 1), so 0.6 -> 0.68
    assert one.ema.steps == 2 and one.model.weight.item() == pytest.approx(0.68)
    assert losses == pytest.approx([(1 + 1 + 1 + 0.16) / 4] * 3)
    one.epoch(loader(4), Position(1))
    assert seen == [*range(8)], "callbacks get every batch"
    one = trainer(Hyp(warmup_epochs=0, nominal_batch=1), clip_norm=0.5)
    one.epoch(loader(1), Position(0))
    assert one.model.weight.item() == pytest.approx(0.05), "long gradients are clipped"


def test_multi_scale_stays_on_the_grid_and_repeats_with_the_seed() -> None:
    runs = []
    for _ in range(2):
        one = trainer(Hyp(warmup_epochs=0), multi_scale=True, seed=3)
        one.epoch(loader(8), Position(0))
        runs.append(one.model.seen)
    sides = {shape[-1] for shape in runs[0]}
    assert runs[0] == runs[1] and len(sides) > 1 and all(side % 32 == 0 and 32 <= side <= 96 for side in sides)


def drawn(epoch: int, seed: int = 0, rank: int | None = None, before: int = 0) -> list[tuple[float, ...]]:
    """What a network draws in an epoch of two batches; `before` that, somebody else drew so many numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        if rank is not None:
            patch.setenv("RANK", str(rank))
        one = trainer(Hyp(), epochs=9, batches=2, model=Drawing(), seed=seed)
        for _ in range(before):
            random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002 - global
        one.epoch(loader(2), Position(epoch))
    return one.model.seen


def test_what_the_network_draws_depends_on_seed_epoch_and_process_alone() -> None:
    first = drawn(epoch=3, seed=5)
    assert len(set(first)) == 2 and drawn(epoch=3, seed=5, before=7) == first
    assert drawn(epoch=3, seed=5, rank=0) == first  # a run of one process, by a launcher or without
    others = [drawn(3, seed=4), drawn(4, seed=5), drawn(5, seed=3), drawn(3, seed=5, rank=1), drawn(3, 5, 2)]
    numbers = [number for batches in (first, *others) for batch in batches for number in batch]
    assert len(set(numbers)) == len(numbers) == 6 * 2 * 3


def test_after_a_step_the_state_is_whole() -> None:
    """An epoch that is cut off after any step and begun there again by another trainer ends the same."""
    nothing, hyp = torch.zeros(0, 6), Hyp(warmup_epochs=0, nominal_batch=2)
    greys = [torch.full((1, 3, 8, 8), grey, dtype=torch.uint8) for grey in range(40, 250, 30)]
    batches = [Images(grey, nothing) for grey in greys]
    whole = trainer(hyp, batches=len(batches))
    expected = whole.epoch(batches, Position())

    class Cut(Exception):
        pass

    for steps in range(1, 4):
        one, position, left = trainer(hyp, batches=len(batches)), Position(), [steps]

        def cut(left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Cut

        with pytest.raises(Cut):
            one.epoch(batches, position, cut)
        assert position.batch == 2 * steps
        other, rest = trainer(hyp, batches=len(batches)), Rest(batches[position.batch :], len(batches))
        other.model.load_state_dict(one.model.state_dict())
        assert other.epoch(rest, position) == expected and torch.equal(other.model.weight, whole.model.weight)


class Rest(list):
    """The batches that are left of an epoch, with the length of the whole."""

    def __init__(self, batches: list[Images], total: int) -> None:
        super().__init__(batches)
        self.total = total

    def __len__(self) -> int:
        return self.total


def test_a_loss_that_is_not_finite_moves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    poison = Images(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(1, 6), ("poison.jpg",))
    good, hyp = loader(2, side=8), Hyp(warmup_epochs=0, nominal_batch=1)
    one, clean = trainer(hyp, batches=3, loss=Poisoned()), trainer(hyp, batches=3)
    losses = one.epoch([good[0], poison, good[1]], Position())
    clean.epoch(good, Position())
    assert torch.equal(one.model.weight, clean.model.weight) and one.ema.steps == 2 and np.isfinite(losses).all()
    assert one.guard.skipped == 1 and one.guard.streak == 0
    assert "epoch 0: not finite: batch 1 (poison.jpg); step skipped" in caplog.text
    with pytest.raises(TrainingFault, match="10 steps in a row"):
        one.epoch([poison] * 12, Position())
    assert torch.equal(one.model.weight, clean.model.weight)
    one = trainer(Hyp(warmup_epochs=0, nominal_batch=1), loss=Steep())  # only its gradient is not finite
    one.epoch(loader(4), Position())
    assert one.model.weight.item() == 0 and one.guard.skipped == 4 and one.ema.steps == 0


class Cramped(Mean):
    """Runs out of memory with more than `room` images at a time."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def forward(self, images: Tensor) -> list[Tensor]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def in_memory(one: Trainer, batches: list[Images], setup: SimpleNamespace) -> list[float]:
    """An epoch as train.py does it: where memory runs out it goes on from the last step."""
    position = Position()
    while True:
        try:
            return one.epoch(Rest(batches[position.batch :], len(batches)), position)
        except OutOfMemory:
            cut_finer(one, setup, 0)


def test_out_of_memory_cuts_batches_in_pieces_and_changes_no_step(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.randint(256, (8, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batches = [Images(images, torch.zeros(0, 6)), Images(images[:5], torch.zeros(0, 6))] * 2
    hyp, setup = Hyp(warmup_epochs=0, nominal_batch=16), SimpleNamespace(opt=SimpleNamespace(batch_size=8))
    roomy, cramped = (trainer(hyp, batch=8, model=model) for model in (Mean(), Cramped(2)))
    expected, found = roomy.epoch(batches, Position()), in_memory(cramped, batches, setup)
    assert cramped.split == 4 and roomy.ema.steps == cramped.ema.steps == 2
    assert caplog.text.count("out of memory") == 2 and "computed in 4 pieces" in caplog.text
    torch.testing.assert_close(cramped.model.weight, roomy.model.weight)
    assert {shape[0] for shape in cramped.model.seen} <= {1, 2} and len(found) == len(expected)
    with pytest.raises(TrainingFault, match="single image.*--imgsz"):
        in_memory(trainer(hyp, model=Cramped(0)), batches, setup)


class Failing(list):
    """A loader that gives an error instead of its first batch."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Images]:
        raise self.error


def test_memory_that_runs_out_elsewhere_is_no_reason_for_smaller_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that failed half way cannot be repeated, and a loader or a listener is not helped."""
    one = trainer(Hyp(warmup_epochs=0))

    def fail(error: Exception) -> None:
        raise error

    one.callbacks.register_action("on_train_batch_end", "", lambda *seen: fail(MemoryError("a listener's")))
    with pytest.raises(MemoryError, match="a listener's"):
        one.epoch(loader(1), Position())
    monkeypatch.setattr(one, "callbacks", Callbacks())
    monkeypatch.setattr(one.optimizer, "step", lambda: fail(torch.OutOfMemoryError("of moments")))
    with pytest.raises(torch.OutOfMemoryError, match="of moments"):
        one.epoch(loader(1), Position())
    gone = WorkerFault("a loader process failed with RuntimeError: DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(WorkerFault):
        one.epoch(Failing(gone), Position())
