"""What may change when a run goes on."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from utils.training.train_options import CHANGEABLE, TrainOptions, continued


def test_nothing_given_keeps_everything() -> None:
    stored = TrainOptions(epochs=7, batch_size=4, workers=2)
    assert continued(stored, TrainOptions(), ()) == stored


def test_what_is_given_and_may_change_does() -> None:
    stored, asked = TrainOptions(epochs=7, patience=3, seed=5), TrainOptions(epochs=9, patience=4, seed=5, imgsz=320)
    assert continued(stored, asked, ["epochs", "seed"]) == replace(stored, epochs=9)


@pytest.mark.parametrize("name, value", [("seed", 1), ("imgsz", 320), ("optimizer", "SGD"), ("batch_size", 8)])
def test_what_would_make_it_another_run_is_refused(name: str, value: object) -> None:
    stored = TrainOptions()
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} .*cannot become {value}"):
        continued(stored, replace(stored, **{name: value}), [name])


def test_a_batch_size_that_was_measured_stays() -> None:
    stored = TrainOptions(batch_size=48)
    assert continued(stored, TrainOptions(batch_size=-1), ["batch_size"]) == stored


def test_what_may_change_are_options() -> None:
    assert {item.name for item in fields(TrainOptions)} >= CHANGEABLE
