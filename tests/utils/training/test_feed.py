"""Where images are augmented, and how batches come to the device."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from utils.base.config import Hyp
from utils.data.batch_painting import Sketches
from utils.data.painting import Sketch
from utils.data.samplers import Batch
from utils.training import feed as module
from utils.training.feed import augments_on, feed
from utils.training.guard import OutOfMemory
from utils.training.train_options import TrainOptions

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_no_batches_are_fed() -> None:
    assert list(feed([], CPU)) == []


def test_painted_batches_pass_and_planned_ones_are_painted() -> None:
    targets = torch.zeros(1, 6)
    painted = Batch(torch.zeros(1, 3, 2, 4, dtype=torch.uint8), targets, ("a",), (None,))
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    planned = painted._replace(images=Sketches.pack([Sketch.of(image)]))
    first, second = feed([painted, planned], CPU)
    assert first is painted
    np.testing.assert_array_equal(second.images[0].numpy(), image[..., ::-1].transpose(2, 0, 1))
    assert second.targets is targets and second[2:] == painted[2:]


def test_on_a_gpu_the_next_batch_is_made_before_the_last_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are pretended, and only the order looked at; lack of memory is what the trainer knows."""
    told, one = [], Batch(torch.zeros(1), torch.zeros(1, 6), ("a",), (None,))
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)

    def made(batch: Batch, device: torch.device) -> Batch:
        told.append(f"make {batch.paths[0]}")
        if batch.paths[0] == "d":
            raise torch.OutOfMemoryError
        return batch

    monkeypatch.setattr(module, "_on_device", made)
    batches = [one._replace(paths=(name,)) for name in "abcd"]
    assert list(feed([], GPU)) == []
    told.extend(f"use {batch.paths[0]}" for batch in feed(batches[:3], GPU))
    assert told == ["make a", "make b", "use a", "make c", "use b", "use c"]
    assert torch.cuda.current_stream.return_value.wait_event.call_count == 3
    with pytest.raises(OutOfMemory):
        list(feed(batches, GPU))


def test_where_images_are_augmented(caplog: pytest.LogCaptureFixture) -> None:
    auto, on_cpu, on_gpu = (TrainOptions(augment_device=name) for name in ("auto", "cpu", "cuda"))
    assert [augments_on(CPU, opt, Hyp()) for opt in (auto, on_cpu)] == [False, False]
    assert [augments_on(GPU, opt, Hyp()) for opt in (auto, on_cpu, on_gpu)] == [True, False, True]
    with pytest.raises(ValueError, match="--augment-device cuda: the network is on the cpu"):
        augments_on(CPU, on_gpu, Hyp())
    assert not caplog.messages
    assert not augments_on(GPU, auto, replace(Hyp(), albumentations=0.1)) and "albumentations" in caplog.messages[0]
    assert not augments_on(GPU, replace(on_gpu, quad=True), Hyp()) and "--quad" in caplog.messages[1]
