"""What is decided before training starts, and what may change when a run goes on."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from utils.base.config import DataConfig, Hyp
from utils.checkpoints.checkpoint import save_checkpoint
from utils.data.tiles import Tiling
from utils.training.setup import STATE, Setup, meet, own_device, set_up
from utils.training.train_options import CHANGEABLE, TrainOptions, check_options, continued


def test_validation_looks_at_as_many_tiles_as_at_images() -> None:
    for size, expected in ((-1, 2), (2, 4), (64, 32)):
        opt = TrainOptions(batch_size=size, tile=96, tile_overlap=0.5)
        data = DataConfig(None, Path(), (), (), (), ("one",))
        setup = Setup(opt, Hyp(), data, torch.device("cpu"), Path())
        assert setup.tiling == Tiling(96, 0.5, "nms", expected) and setup.val_batch == expected
        assert replace(setup, opt=TrainOptions()).tiling is None


def test_defaults_are_in_order_and_flags_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    assert {item.name for item in fields(TrainOptions)} >= CHANGEABLE
    check_options(TrainOptions())
    assert not caplog.text
    check_options(replace(TrainOptions(), bucket="mine", upload_dataset="val"))
    assert "--bucket, --upload_dataset" in caplog.text


@pytest.mark.parametrize(
    "change, processes, says",
    [
        ({"epochs": 0}, 1, "--epochs"),
        ({"batch_size": -2}, 1, "--batch-size"),
        ({"workers": -1}, 1, "--workers"),
        ({"evolve": 0}, 1, "--evolve 0"),
        ({"save_minutes": -1.0}, 1, "--save-minutes"),
        ({"batch_size": 5}, 2, "multiple of the 2"),
        ({"image_weights": True}, 2, "single process"),
    ],
)
def test_what_cannot_work_is_refused(change: dict, processes: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    with pytest.raises(ValueError, match=says):
        check_options(replace(TrainOptions(), **change))


@pytest.mark.parametrize(
    "asked, given, changed",
    [
        ({}, (), {}),
        ({"epochs": 9, "patience": 4, "imgsz": 320}, ["epochs", "seed"], {"epochs": 9}),
        ({"batch_size": -1}, ["batch_size"], {}),  # the one that was measured stays
        ({"seed": 1}, ["seed"], None),
        ({"imgsz": 320}, ["imgsz"], None),
        ({"optimizer": "SGD"}, ["optimizer"], None),
        ({"batch_size": 8}, ["batch_size"], None),
    ],
)
def test_a_run_that_goes_on_keeps_all_but_what_is_given_and_may_change(
    asked: dict, given: list[str], changed: dict | None
) -> None:
    stored = TrainOptions(epochs=7, patience=3)
    if changed is not None:
        assert continued(stored, replace(stored, **asked), given) == replace(stored, **changed)
        return
    name, value = next(iter(asked.items()))
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} .*cannot become {value}"):
        continued(stored, replace(stored, **asked), given)


def test_set_up_finds_everything_and_claims_the_folder(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    meet()  # alone there is nobody to join
    assert not torch.distributed.is_initialized() and own_device("cpu") == torch.device("cpu")
    setup = set_up(TrainOptions(data=str(squares), project=str(tmp_path / "runs"), device="cpu"))
    assert setup.names == ["red", "blue"] and setup.folder == tmp_path / "runs/exp"
    assert [path.name for path in setup.folder.iterdir()] == ["run.lock"]
    assert setup.hyp.pooled == 1 and setup.opt.data == str(squares.resolve())
    assert replace(setup, opt=replace(setup.opt, single_cls=True)).names == ["item"]
    with pytest.raises(ValueError, match="later"), setup.hold:
        raise ValueError("later")
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_not_there_end_a_run_before_its_data_is_made(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.training.setup.prepare", lambda data: pytest.fail("too early"))
    with pytest.raises(ValueError, match=r"none\.pt do not exist"):
        set_up(TrainOptions(data=str(squares), project=str(tmp_path / "runs"), weights="none.pt", device="cpu"))
    assert not (tmp_path / "runs").exists()


def test_a_checkpoint_out_of_its_run_is_refused_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for content, says in (({"x": 1}, "holds no training run"), (dict.fromkeys(STATE, 1), "a run's folder weights")):
        save_checkpoint(tmp_path / "a/last.pt", content)
        with pytest.raises(ValueError, match=says):
            set_up(TrainOptions(resume=str(tmp_path / "a/last.pt")))
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "last.pt"]
