"""The order of an epoch, and of what is left of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from utils.data.samplers import EpochSampler, SampleKey


def test_no_pictures_no_keys() -> None:
    assert list(EpochSampler(np.arange(0))) == [] and len(EpochSampler(np.arange(0))) == 0


@settings(max_examples=100, deadline=None)
@given(
    pictures=st.integers(1, 40),
    batch=st.integers(1, 6),
    world=st.integers(1, 3),
    kind=st.sampled_from(["plain", "shuffled", "weighted", "grouped", "shuffled groups"]),
    epoch=st.integers(0, 5),
    data=st.data(),
)
def test_after_an_interruption_come_the_batches_that_are_left(
    pictures: int, batch: int, world: int, kind: str, epoch: int, data: st.DataObject
) -> None:
    """As a loader deals them out, in every process; and the length stays that of the whole epoch."""
    rank = data.draw(st.integers(0, world - 1))
    groups = {"grouped": "group" in kind, "shuffle": kind.startswith("shuffled"), "batch_size": batch}
    sampler = EpochSampler(np.arange(pictures), seed=3, rank=rank, world_size=world, **groups)
    if kind == "weighted":
        sampler.set_weights(np.arange(1, pictures + 1))
    loader = DataLoader(Keys(), batch_size=batch, sampler=sampler, collate_fn=list)
    sampler.set_epoch(epoch)
    whole = list(loader)
    done = data.draw(st.integers(0, len(whole)))
    sampler.set_epoch(epoch, done=done)
    assert list(loader) == whole[done:] and len(loader) == len(whole)


class Keys:
    """A data set whose items are their keys."""

    def __getitem__(self, key: SampleKey) -> SampleKey:
        return key
