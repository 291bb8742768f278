"""Training and validation in several processes on one machine, started as people start them, against one process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import val
from models.yolo import Model
from tests.known_detector import write_weights
from tests.processes import QUIET, free_port, together
from utils.base.callbacks import Callbacks
from utils.base.config import DataConfig, Hyp
from utils.base.options import options
from utils.base.paths import ROOT
from utils.checkpoints.checkpoint import load_checkpoint
from utils.data.datasets import create_dataloader
from utils.data.samplers import EpochSampler
from utils.distributed.processes import rank, world_size
from utils.distributed.sync_bn import convert_sync_batchnorm
from utils.training.loss import ComputeLoss
from utils.training.optim import ModelEMA, Recipe, Schedule, build_optimizer
from utils.training.precision import Precision
from utils.training.setup import set_up
from utils.training.train_options import TrainOptions
from utils.training.trainer import EpochSettings, Position, Trainer

ONCE = ("Model Summary", "optimizer:", "Starting training", "Results saved to", "Validating", "epochs completed")


def launch(script: str, *words: str) -> str:
    """Start a script in two processes; returns what they wrote, a progress bar's states on lines of their own."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [sys.executable, *launcher, str(ROOT / script), *words, "--workers", "0", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240, env=os.environ | QUIET)
    text = (done.stdout + done.stderr).replace("\r", "\n")
    assert done.returncode == 0 and "Traceback" not in text, text
    return text


def said(text: str) -> list[str]:
    """The lines that were written, progress bars and empty lines left out."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and "%|" not in line]


def test_two_processes_train_as_one(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # 65 pixels bring a warning that every process meets, and one that only one of them should utter
    words = ["--epochs", "2", "--batch-size", "4", "--imgsz", "65", "--project", str(runs)]
    text = launch("train.py", "--data", str(squares), "--cfg", str(tiny_cfg), *words)
    assert [path.name for path in runs.iterdir()] == ["exp"]
    (table,) = runs.rglob("results.csv")
    rows = pd.read_csv(table, skipinitialspace=True)
    assert rows["epoch"].tolist() == [0, 1] and rows.notna().all().all()

    lines = said(text)
    for words in (*ONCE, "--imgsz 65"):
        assert sum(words in line for line in lines) == 1, words
    assert sum(line.startswith("epoch ") for line in lines) == 2  # each epoch has one line, of the main process

    last, best = (load_checkpoint(runs / "exp/weights" / name) for name in ("last.pt", "best.pt"))
    assert last["epoch"] == best["epoch"] == -1 and last["model"]["names"] == ["red", "blue"]
    assert all(torch.isfinite(value.float()).all() for value in last["model"]["state_dict"].values())


def test_options_that_need_one_process(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for given, words in (
        ({"batch_size": 3}, "multiple of the 2 processes"),
        ({"image_weights": True}, "single process"),
        ({"evolve": 3}, "single process"),
    ):
        with pytest.raises(ValueError, match=words):
            set_up(options(TrainOptions, {"data": str(squares), "project": str(tmp_path / "runs")} | given))
    assert not torch.distributed.is_initialized() and not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------------------------------- validation by several
@pytest.fixture
def grid(tmp_path: Path) -> dict[str, object]:
    """Options of val.py for a detector that fires in every cell, with one confidence, and images some of whose cells
    hold an object: so every detection is tied with all others, and their order alone decides.
    """
    rng, root = np.random.default_rng(0), tmp_path / "grid"
    for sub in ("images", "labels"):
        (root / sub).mkdir(parents=True)
    for number in range(11):
        cv2.imwrite(str(root / f"images/{number}.png"), rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
        cells = rng.permutation(64)[: rng.integers(0, 40)]
        rows = [f"1 {(8 * (c % 8) + 4) / 64} {(8 * (c // 8) + 4) / 64} {10 / 64} {13 / 64}\n" for c in cells]
        (root / f"labels/{number}.txt").write_text("".join(rows))
    (root / "grid.yaml").write_text("train: images\nval: images\nnames: [car, person, bus]\n")
    return {
        "data": str(root / "grid.yaml"), "weights": str(write_weights(tmp_path / "known.pt")), "imgsz": 64,
        "batch_size": 2, "workers": 0, "device": "cpu", "save_json": True, "save_txt": True,
    }  # fmt: skip


def run_val(options: dict[str, object], two_names: str, port: int) -> tuple[int, object]:
    """First with a mistake that every process finds, then without; each time the processes meet and part."""
    code = val.main(["--weights", options["weights"], "--data", two_names, "--device", "cpu", "--imgsz", "32"])
    os.environ["MASTER_PORT"] = str(port)
    return code, val.run(**options)


def test_val_py_in_several_processes_is_val_py(grid: dict[str, object], squares: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    summary, maps, _ = val.run(**grid, project=str(runs), name="one")
    assert 0.05 < summary[3] < 0.9 and min(summary[:2]) > 0.1
    three = grid | {"project": str(runs), "name": "three"}
    found = together(run_val, tmp_path, three, str(squares), free_port(), world=3, meet=False)
    for code, (row, per_class, speed) in found:
        assert code == 1 and row == summary and per_class == maps and min(speed) > 0
    given = {name.replace("_", "-"): value for name, value in grid.items() if value is not True and name != "workers"}
    words = [f"--{name}={value}" for name, value in given.items()]
    lines = said(launch("val.py", *words, "--save-json", "--save-txt", "--project", str(runs), "--name", "two"))
    for start in ("all ", "person", "(small)", "Speed:", "Results saved to"):
        assert sum(line.startswith(start) for line in lines) == 1, start
    for name in ("two", "three"):
        for one in sorted(file for file in (runs / "one").rglob("*") if file.suffix in (".json", ".txt", ".jpg")):
            assert (runs / name / one.relative_to(runs / "one")).read_bytes() == one.read_bytes(), one
        assert len(list((runs / name).rglob("*"))) == len(list((runs / "one").rglob("*")))


# ------------------------------------------------------------------------------------- the arithmetic of two processes
def test_two_processes_see_the_images_of_one_step_by_step() -> None:
    """What has to hold before their losses can be compared."""
    for epoch in range(2):
        steps = {1: [set() for _ in range(6)], 2: [set() for _ in range(6)]}
        for world, number in ((1, 0), (2, 0), (2, 1)):
            sampler = EpochSampler(np.arange(24), shuffle=True, seed=3, rank=number, world_size=world)
            sampler.set_epoch(epoch)
            for at, key in enumerate(sampler):
                steps[world][at * world // 4].add(key)
        assert steps[1] == steps[2]


WAYS = {"both": (True, True), "own matches": (True, False), "own batch norm": (False, True), "neither": (False, False)}


def train_some(data: str, cfg: str, sync_bn: bool, shared: bool) -> dict[str, torch.Tensor]:
    """Two epochs of three steps of the real trainer, four images a step over all processes."""
    torch.manual_seed(0)
    hyp = Hyp.load({"warmup_epochs": 0, "nominal_batch": 4, "lr0": 0.02})
    model = Model(cfg, verbose=False).to(memory_format=torch.channels_last)
    model.hyp, model.names = asdict(hyp.scaled(2, 2, 64, 0.0)), ["red", "blue"]
    config, total = DataConfig.load(data), 4
    loader, _ = create_dataloader(
        config.train, 64, total // world_size(), 32, hyp=hyp, augment=True, rank=rank(), workers=0, shuffle=True
    )
    recipe = Recipe("SGD", 0.02, 0.9, 5e-4)
    optimizer, net = build_optimizer(model, recipe), model
    if world_size() > 1:
        net = convert_sync_batchnorm(model, torch.device("cpu")) if sync_bn else model
        net = nn.parallel.DistributedDataParallel(net)
    schedule, precision = Schedule(hyp, recipe, 2, len(loader), total), Precision.choose("off", torch.device("cpu"))
    trainer = Trainer(
        net, model, ComputeLoss(model, shared=shared), optimizer, schedule, ModelEMA(model), precision,
        EpochSettings(2, 64, 32), Callbacks(),
    )  # fmt: skip
    losses = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        losses.append(trainer.epoch(loader, Position(epoch)))
    state = {name: value.double() for name, value in trainer.model.state_dict().items()}
    return {"losses": torch.tensor(losses, dtype=torch.float64)} | state


def every_way(data: str, cfg: str) -> dict[str, dict[str, torch.Tensor]]:
    return {way: train_some(data, cfg, *flags) for way, flags in WAYS.items()}


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The largest differences of an epoch's losses and of a weight."""
    weights = max(float((one[name] - other[name]).abs().max()) for name in one if name != "losses")
    return float((one["losses"] - other["losses"]).abs().max()), weights


def test_two_processes_learn_what_one_learns_from_the_same_batches(
    squares: Path, tiny_cfg: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    alone = train_some(str(squares), str(tiny_cfg), True, True)
    first, second = together(every_way, tmp_path, str(squares), str(tiny_cfg))
    assert all(torch.equal(first["both"][name], second["both"][name]) for name in alone)
    found = {way: difference(alone, first[way]) for way in WAYS}
    for way, (losses, weights) in found.items():
        record_property(way, f"losses {losses:.1e}, weights {weights:.1e}")
    assert max(found["both"]) < 1e-5
    # each of the two is needed
    assert min(found["own matches"][0], found["own batch norm"][0]) > 100 * found["both"][0]
