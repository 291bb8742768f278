"""The order of an epoch, and of what is left of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from utils.data.samplers import EpochSampler, SampleKey, epoch_weights, labels_to_class_weights, labels_to_image_weights


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 6),
    world=st.integers(1, 3),
    kind=st.sampled_from(["plain", "shuffled", "weighted", "grouped", "shuffled groups"]),
    epoch=st.integers(0, 5),
    data=st.data(),
)
def test_after_an_interruption_come_the_batches_that_are_left(
    count: int, batch: int, world: int, kind: str, epoch: int, data: st.DataObject
) -> None:
    """As a loader deals them out, in every process; the length stays that of the whole epoch, the order its own."""
    rank = data.draw(st.integers(0, world - 1))
    groups = {"grouped": "group" in kind, "shuffle": kind.startswith("shuffled"), "batch_size": batch}
    sampler = EpochSampler(np.arange(count), seed=3, rank=rank, world_size=world, **groups)
    if kind == "weighted":
        sampler.set_weights(np.arange(1, count + 1))
    loader = DataLoader(Keys(), batch_size=batch, sampler=sampler, collate_fn=list)
    sampler.set_epoch(epoch)
    whole = list(loader)
    done = data.draw(st.integers(0, len(whole)))
    sampler.set_epoch(epoch, done=done)
    assert list(loader) == whole[done:] and len(loader) == len(whole)
    sampler.set_epoch(epoch + 1, plain=True)
    assert all(key.plain and key.epoch == epoch + 1 for keys in loader for key in keys)
    sampler.set_epoch(epoch)
    assert list(loader) == whole


class Keys:
    """A data set whose items are their keys."""

    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key


def rows(*classes: int) -> np.ndarray:
    return np.array([[c, 0.5, 0.5, 0.1, 0.1] for c in classes], dtype=np.float32).reshape(-1, 5)


def test_no_images_and_no_labels() -> None:
    assert list(EpochSampler(np.arange(0))) == [] and len(EpochSampler(np.arange(0))) == 0
    assert [key.position for key in EpochSampler(np.arange(5))] == [0, 1, 2, 3, 4]
    assert labels_to_class_weights([], nc=4).tolist() == [0.25] * 4 == labels_to_class_weights([rows()], nc=4).tolist()
    assert labels_to_image_weights([], 3).shape == (0,)
    assert labels_to_image_weights([rows(), rows()], 3).tolist() == [0, 0]


def test_weights_are_inverse_frequencies() -> None:
    weights = labels_to_class_weights([rows(0, 0, 0), rows(0, 1)], nc=3)  # counts 4, 1, 0 -> 1/4, 1, 1
    assert weights.tolist() == pytest.approx([0.25 / 2.25, 1 / 2.25, 1 / 2.25])


def test_images_of_weak_classes_come_up_more() -> None:
    labels, even = [rows(0), rows(1), rows()], torch.ones(2)
    assert epoch_weights(labels, even, np.array([0.9, 0.1])).tolist() == pytest.approx([0.005, 0.405, 0])
    assert epoch_weights(labels, even, np.ones(2)).tolist() == [1, 1, 1]
