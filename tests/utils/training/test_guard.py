"""Steps that are taken back, batches in pieces, and signals: the first one stops training, the second one Python."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from utils.base.paths import ROOT
from utils.training.guard import (
    LIMIT,
    Interrupted,
    Interruption,
    OutOfMemory,
    StepGuard,
    StoppableLoader,
    TrainingFault,
    in_pieces,
    repeatable,
    short_of_memory,
)

NAN = torch.tensor([1.0, float("nan"), 0.0])


def test_statistics_and_the_state_of_the_loss_are_those_of_the_last_good_step() -> None:
    model, loss = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).train(), nn.BatchNorm1d(1)
    loss.state_dict = lambda: {"mean": float(loss.running_mean)}
    loss.load_state_dict = lambda state: loss.running_mean.fill_(state["mean"])
    guard = StepGuard(model, loss)
    model(torch.rand(2, 1, 4, 4))
    loss.running_mean.fill_(3)
    guard.accept()
    good = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.full((2, 1, 4, 4), float("nan")))
    loss.running_mean.fill_(float("nan"))
    assert not torch.equal(good["1.running_mean"], model[1].running_mean)
    guard.refuse(0, 0)
    assert all(torch.equal(value, good[name]) for name, value in model.named_buffers())
    assert int(model[1].num_batches_tracked) == 1 and loss.running_mean == 3


def test_the_batch_is_named_a_good_step_ends_the_streak_and_many_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard(nn.Linear(1, 1), nn.Identity())  # without buffers there is nothing to take back
    guard.suspect(torch.zeros(3), 3, ("good.jpg",))
    guard.suspect(NAN, 4, [f"{i}.jpg" for i in range(6)])
    guard.refuse(2, 5)
    assert "epoch 2: not finite: batch 4 (0.jpg, 1.jpg, 2.jpg, 3.jpg and 2 more)" in caplog.text
    assert "good.jpg" not in caplog.text and (guard.skipped, guard.streak) == (1, 1)
    guard.accept()
    guard.refuse(2, 6)
    assert "the gradient up to batch 6" in caplog.text and (guard.skipped, guard.streak) == (2, 1)
    for _ in range(LIMIT - 2):
        guard.refuse(0, 0)
    guard.suspect(NAN, 9, ("bad.jpg",))
    with pytest.raises(TrainingFault, match=r"10 steps in a row.*batch 9 \(bad\.jpg\).*last\.pt"):
        guard.refuse(0, 9)


def test_memory_errors_differ_from_others() -> None:
    words = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), *map(RuntimeError, words)):
        with pytest.raises(OutOfMemory), short_of_memory():
            raise error
    with pytest.raises(OutOfMemory), short_of_memory():
        torch.empty(1 << 60, dtype=torch.uint8)
    for error in (RuntimeError("shapes do not match"), ValueError()):
        with pytest.raises(type(error)), short_of_memory():
            raise error


def test_what_cannot_repeat_is_named() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(TrainingFault, match=r"^--deterministic: put_ does not repeat .*reliability\.md\)$"),
            repeatable(),
        ):
            torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(False)
    with pytest.raises(RuntimeError, match="^another$"), repeatable():
        raise RuntimeError("another")


def test_what_is_taken_back_is_not_suspected_again(caplog: pytest.LogCaptureFixture) -> None:
    guard = StepGuard(nn.Linear(1, 1), nn.Identity())
    guard.suspect(NAN, 4, ("bad.jpg",))
    guard.undo()  # as when memory runs out in the next batch, and this one is computed again
    guard.suspect(NAN, 4, ("bad.jpg",))
    guard.refuse(0, 5)
    assert caplog.text.count("bad.jpg") == 1


@given(count=st.integers(1, 9), parts=st.integers(1, 12), owners=st.lists(st.integers(0, 8), max_size=20))
def test_pieces_hold_every_image_and_label_once(count: int, parts: int, owners: list[int]) -> None:
    images = torch.arange(count).float().view(-1, 1, 1, 1)
    owners = [owner % count for owner in owners]
    targets = torch.tensor([[owner, label] for label, owner in enumerate(owners)]).float().reshape(-1, 2)
    pieces = list(in_pieces(images, targets, parts))
    assert len(pieces) == min(parts, count) and torch.equal(torch.cat([image for image, _ in pieces]), images)
    found = [(int(image[int(row[0])]), int(row[1])) for image, mine in pieces for row in mine]
    assert sorted(found) == sorted((owner, label) for label, owner in enumerate(owners))


# ---- signals
@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_handlers_are_back(number: signal.Signals | None) -> None:
    """In another thread they are left alone."""
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as other:
        other.submit(Interruption().__enter__).result()
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before
    with Interruption() as interruption:
        assert list(StoppableLoader([1, 2], interruption)) == [1, 2] and signal.getsignal(signal.SIGTERM) != before[1]
        if number:
            os.kill(os.getpid(), number)
            deadline = time.monotonic() + 5
            while not interruption.number and time.monotonic() < deadline:
                time.sleep(0.001)
            assert signal.getsignal(number) in before, "a second one would be ignored"
            with pytest.raises(Interrupted) as stop:
                list(StoppableLoader([1, 2], interruption))
            assert stop.value.signal == number and isinstance(stop.value, KeyboardInterrupt)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    "joined, second, code",
    [("False", "os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM), ("True", "pass", 128 + signal.SIGTERM)],
    ids=["second signal", "the step at hand never ends as another process is gone"],
)
def test_the_program_ends_at_once(joined: str, second: str, code: int) -> None:
    program = (
        "import os, signal, time\nfrom utils.training import guard\n"
        f"guard.is_joined, guard.GRACE = lambda: {joined}, 0.3\n"
        "with guard.Interruption():\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(0.1)\n"
        f"    {second}\n    time.sleep(30)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False, timeout=60, capture_output=True)
    assert done.returncode == code
