"""train.py and val.py from the command line and from Python, on images of 64 pixels."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import train
import val
from utils.base.callbacks import Callbacks
from utils.base.options import options
from utils.base.paths import ROOT
from utils.base.yaml import read_yaml
from utils.checkpoints.checkpoint import load_checkpoint
from utils.training.train_options import TrainOptions

BASE = {"imgsz": 64, "epochs": 2, "batch_size": 4, "workers": 0, "device": "cpu"}


@pytest.fixture
def job(squares: Path, tiny_cfg: Path, tmp_path: Path) -> dict[str, Any]:
    """Options of a run of two epochs of three steps."""
    return BASE | {"data": str(squares), "cfg": str(tiny_cfg), "project": str(tmp_path / "runs")}


@pytest.fixture
def trained(job: dict[str, Any]) -> Path:
    """The folder of such a run, finished."""
    train.run(**job)
    return Path(job["project"]) / "exp"


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["model"]["state_dict"]


def test_a_run_leaves_what_people_know(trained: Path) -> None:
    left = "weights opt.yaml hyp.yaml results.csv results.png labels.jpg labels_correlogram.jpg train_batch0.jpg"
    left += " val_batch0_labels.jpg val_batch0_pred.jpg confusion_matrix.png"
    assert set(left.split()) <= {path.name for path in trained.iterdir()}
    table = pd.read_csv(trained / "results.csv", skipinitialspace=True)
    assert table["epoch"].tolist() == [0, 1] and table.drop(columns="epoch").notna().all().all()
    assert read_yaml(trained / "opt.yaml")["imgsz"] == 64 and read_yaml(trained / "hyp.yaml")["box"] == 0.05
    for name in ("best.pt", "last.pt"):
        content = load_checkpoint(trained / "weights" / name)
        assert content["epoch"] == -1 and content["optimizer"] is None and content["ema"] is None
        assert content["model"]["names"] == ["red", "blue"]


def test_val_of_a_run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds data and size of the run; then every task, and mistakes."""
    given: dict[str, Any] = {
        "weights": str(trained / "weights/best.pt"),
        "project": str(tmp_path / "val"),
        "workers": 0,
    }
    summary, maps, speed = val.run(**given, save_txt=True, save_conf=True, save_json=True, conf_thres=0.0001)
    folder = tmp_path / "val/exp"
    assert len(summary) == 7 and len(maps) == 2 and min(speed) >= 0
    assert (folder / "best_predictions.json").exists() and len(list((folder / "labels").glob("*.txt"))) == 6
    assert read_yaml(trained / "opt.yaml")["data"] == str(tmp_path / "squares/squares.yaml")
    monkeypatch.setattr(val, "STUDY_SIZES", range(64, 128 + 1, 64))
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    for task in ("speed", "train", "study"):
        assert (
            val.main([*words, "--name", task, "--task", task, *["--augment", "--single-cls"] * (task != "study")]) == 0
        )
        drawn = [path.name for path in (tmp_path / "val" / task).glob("study*")]
        assert len(drawn) == (2 if task == "study" else 0) and ("study.png" in drawn) == (task == "study")
    for wrong in ("--weights none.pt", "--task test", "--data coco128.yaml"):
        assert val.main([*words, *wrong.split()]) == 1


def test_same_seed_same_weights_and_another_seed_others(job: dict[str, Any], tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.run(**job | {"name": name, "seed": seed, "epochs": 1})
    first, second, other = (weights_of(tmp_path / "runs" / name / "weights/last.pt") for name in "abc")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_a_log_that_is_no_terminal_has_one_line_an_epoch(job: dict[str, Any], tmp_path: Path) -> None:
    lines = {}
    for epochs in (2, 4):
        given = job | {"name": epochs, "epochs": epochs}
        words = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        with open(tmp_path / "log", "wb") as log:
            subprocess.run([sys.executable, "train.py", *words, "--cache"], cwd=ROOT, stderr=log, check=True)
        text = (tmp_path / "log").read_bytes()
        assert b"\r" not in text and b"\x1b" not in text and b"%|" not in text and len(text) < 9000
        # where a machine is slow there are lines on how far things are
        lines[epochs] = [line for line in text.decode().splitlines() if not re.search(r": \d+ of \d+ ", line)]
    found = [line for line in lines[4] if line.startswith("epoch ")]
    number = r"[\d.e+-]+"
    wanted = "".join(rf"{name} {number}, " for name in ("box", "obj", "cls", "P", "R", "mAP50", "mAP50-95"))
    for epoch, line in enumerate(found):
        left = r", \d+:\d\d left" if epoch < 3 else ""
        assert re.fullmatch(rf"epoch {epoch}/3: {wanted}RSS {number}G, {number} s{left}", line), line
    assert len(found) == 4 and len(lines[4]) == len(lines[2]) + 2


class Torn(Exception):
    pass


@contextmanager
def ends_early(epoch: int, **changes: Any) -> Iterator[None]:
    """Training is torn down once the checkpoint of this epoch is written, with changes of its progress if wanted."""
    saved = train.CheckpointWriter.save

    def save(self: train.CheckpointWriter, improved: bool = False) -> None:
        here = self.progress.last_epoch == epoch
        for name, value in changes.items() if here else ():
            setattr(self.progress, name, value)
        saved(self, improved)
        if here:
            raise Torn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.CheckpointWriter, "save", save)
        with pytest.raises(Torn):
            yield


def test_resume_ends_where_an_uninterrupted_run_ends(job: dict[str, Any], tmp_path: Path) -> None:
    cfg = tmp_path / "residual.yaml"
    cfg.write_text(Path(job["cfg"]).read_text().replace("Attention, []", "Attention, [{residual: true}]"))
    job |= {"epochs": 3, "cfg": str(cfg)}
    train.run(name="whole", **job)
    with ends_early(1):
        train.run(name="cut", **job)
    last = tmp_path / "runs/cut/weights/last.pt"
    train.run(resume=str(last))
    whole, cut = (weights_of(tmp_path / "runs" / name / "weights/last.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    for table in ("results.csv", "residual.csv"):
        rows = [(tmp_path / "runs" / name / table).read_text() for name in ("whole", "cut")]
        assert rows[0] == rows[1] and len(rows[0].splitlines()) == 4
    with pytest.raises(ValueError, match="is finished"):
        train.run(resume=str(last))


def test_a_finished_run_goes_on_for_more_epochs(job: dict[str, Any], tmp_path: Path) -> None:
    """The step size is constant here, so that the first epochs of a long run and those of a short one are the same."""
    hyp = tmp_path / "constant.yaml"
    hyp.write_text("{lrf: 1.0, warmup_epochs: 0, nominal_batch: 4}")
    job |= {"hyp": str(hyp), "optimizer": "SGD"}
    train.run(**job | {"name": "long", "epochs": 3})
    train.run(**job | {"name": "short", "epochs": 1})
    last = tmp_path / "runs/short/weights/last.pt"
    with pytest.raises(ValueError, match="cannot become 7"):
        train.run(resume=str(last), epochs=3, seed=7)
    train.run(resume=str(last), epochs=3, workers=0, seed=0)
    long, short = (weights_of(tmp_path / "runs" / name / "weights/last.pt") for name in ("long", "short"))
    assert all(torch.equal(long[key], short[key]) for key in long)
    assert len(pd.read_csv(tmp_path / "runs/short/results.csv")) == 3


def test_resume_auto_begins_then_goes_on_then_is_content(job: dict[str, Any], tmp_path: Path) -> None:
    for epochs, rows in ((1, 1), (2, 2), (2, 2)):
        train.run(**job | {"name": "night", "resume": "auto", "epochs": epochs})
        assert len(pd.read_csv(tmp_path / "runs/night/results.csv")) == rows
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["night"]


def test_resume_weighs_images_by_the_last_validation(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, weigh = [], train.epoch_weights
    monkeypatch.setattr(train, "epoch_weights", lambda *given: seen.append(given[2]) or weigh(*given))
    with ends_early(0, maps=np.array([0.25, 0.75])):  # as if the little model had learnt something
        train.run(**job | {"name": "cut", "noval": True, "image_weights": True})
    train.run(resume=str(tmp_path / "runs/cut/weights/last.pt"))
    assert [list(maps) for maps in seen] == [[0, 0], [0.25, 0.75]]


class Watcher:
    """Notes the sizes of the images; `greedy` draws from the generators between epochs, as a listener may."""

    def __init__(self, greedy: bool = False) -> None:
        self.sizes: dict[int, tuple[int, ...]] = {}
        self.greedy = greedy

    def on_train_batch_end(self, iteration: int, model: nn.Module, images: Tensor, *rest: object) -> None:
        self.sizes[iteration] = tuple(images.shape)

    def on_fit_epoch_end(self, row: list[float], epoch: int, *rest: object) -> None:
        if self.greedy:
            torch.rand(epoch + 1), np.random.rand(), random.random()  # noqa: NPY002 - the global generators


def test_resume_repeats_what_the_network_and_the_trainer_draw(
    job: dict[str, Any], tiny_cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stochastic depth skips half of the branches, sizes vary, and only one of the runs draws between its epochs."""
    text = tiny_cfg.read_text()
    stage = text.replace("BiLevelRoutingAttention, []", "BiFormerStage, [512, 2, 0.5, {n_win: 2}]")
    assert stage != text
    tiny_cfg.write_text(stage)
    given = job | {"project": str(tmp_path), "multi_scale": True, "noval": True, "epochs": 3}
    monkeypatch.setattr("utils.training.setup.subscribe_loggers", lambda *args: None)
    monkeypatch.setattr(train.Run, "finish", lambda self: ())

    def watch(watcher: Watcher, **options_given: object) -> None:
        callbacks = Callbacks()
        callbacks.subscribe(watcher)
        train.train(options(TrainOptions, options_given), callbacks)

    whole, cut = Watcher(greedy=True), Watcher()
    watch(whole, name="whole", **given)
    with ends_early(0):
        watch(cut, name="cut", **given)
    watch(cut, resume=str(tmp_path / "cut/weights/last.pt"))
    assert whole.sizes == cut.sizes and len(whole.sizes) == 9 and len(set(whole.sizes.values())) > 2
    states = [load_checkpoint(tmp_path / name / "weights/last.pt") for name in ("whole", "cut")]
    for kind in ("model", "ema"):
        first, second = (state[kind]["state_dict"] for state in states)
        assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights_transfer_and_frozen_layers_stay(trained: Path, job: dict[str, Any]) -> None:
    best = trained / "weights/best.pt"
    train.run(**job | {"cfg": "", "weights": str(best), "freeze": [3], "name": "more", "epochs": 1})
    start, after = weights_of(best), weights_of(trained.with_name("more") / "weights/last.pt")
    assert torch.equal(start["model.0.conv.weight"], after["model.0.conv.weight"])
    for name in ("cv1.conv.weight", "cv1.bn.running_mean"):
        assert torch.equal(start[f"model.2.{name}"], after[f"model.2.{name}"])
        assert not torch.equal(start[f"model.7.{name}"], after[f"model.7.{name}"])
    table = pd.read_csv(trained.with_name("more") / "results.csv", skipinitialspace=True)
    assert table["epoch"].tolist() == [-1, 0]  # the weights as they came are scored before the first step
    assert table["train/box_loss"].isna().tolist() == [True, False] and table["val/box_loss"].gt(0).all()


@pytest.mark.parametrize(
    "extra",
    [
        {"rect": True, "single_cls": True},
        {"image_weights": True, "optimizer": "SGD", "cos_lr": True, "label_smoothing": 0.1},
        {"multi_scale": True, "quad": True},
        {"cache": "ram", "amp": "bf16", "optimizer": "Adam", "noautoanchor": True},
        {"noval": True, "nosave": True},
        {"hyp": "hyp.scratch-high.yaml", "save_period": 1},
        {"batch_size": -1},
        {"patience": 1, "epochs": 6, "freeze": [8]},
    ],
    ids=lambda extra: "+".join(extra),
)
def test_options_train(job: dict[str, Any], tmp_path: Path, extra: dict) -> None:
    train.run(**job | extra)
    folder = tmp_path / "runs/exp"
    content = load_checkpoint(folder / "weights/best.pt")
    assert content["epoch"] == -1 and content["model"]["names"] == (["item"] if "rect" in extra else ["red", "blue"])
    assert (folder / "weights/epoch1.pt").exists() == ("save_period" in extra)
    assert len(pd.read_csv(folder / "results.csv")) in ((2, 3, 4, 5) if "patience" in extra else (2,))


def test_the_largest_batch_is_measured_in_the_precision_of_training(job: dict[str, Any], monkeypatch: Any) -> None:
    seen = []

    def measured(model: nn.Module, imgsz: int, dtype: torch.dtype | None) -> int:
        seen.append((dtype, torch.backends.cudnn.benchmark))
        raise KeyError

    monkeypatch.setattr(train, "autobatch", measured)
    for given in ({"amp": "bf16"}, {"amp": "off"}, {"amp": "off", "multi_scale": True}):
        with pytest.raises(KeyError):
            train.run(**job | {"batch_size": -1, **given})
    assert seen == [(torch.bfloat16, True), (None, True), (None, False)]  # shapes that vary are not searched for


def test_detections_kept_in_validation_are_an_option(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    settings, evaluate = [], train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *given: settings.append(given[4]) or evaluate(*given))
    label = next((tmp_path / "squares/labels/val").glob("*.txt"))
    label.write_text(label.read_text() + "0 0.5 0.5 0.2 0.2\n0 0.3 0.3 0.2 0.2\n")
    train.run(**job | {"epochs": 1, "max_det": 2})
    assert {one.max_det for one in settings} == {2}
    said = [line for line in capsys.readouterr().err.splitlines() if "--max-det" in line]
    assert len(said) == 1 and "1 image has more than 2 objects (most: 3)" in said[0]
    with pytest.raises(ValueError, match="--max-det 0"):
        train.run(**job | {"max_det": 0})
