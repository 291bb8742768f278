"""Training in two processes on one machine, started as people start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from models.yolo import Model
from tests.processes import QUIET, free_port, together
from utils.callbacks import Callbacks
from utils.checkpoint import load_checkpoint
from utils.config import DataConfig, Hyp, options
from utils.datasets import create_dataloader
from utils.dist import rank, world_size
from utils.loss import ComputeLoss
from utils.optim import Recipe, Schedule, build_optimizer
from utils.paths import ROOT
from utils.setup import TrainOptions, set_up
from utils.sync_bn import convert_sync_batchnorm
from utils.torch_utils import ModelEMA
from utils.trainer import EpochSettings, Precision, Trainer

ONCE = ("Model Summary", "optimizer:", "Starting training", "Results saved to", "Validating", "epochs completed")


def launch(folder: Path, *words: str) -> str:
    """Train in two processes; returns what they wrote, one progress bar after the other on lines of their own."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    tiny = ["--epochs", "2", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--project", str(folder)]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "train.py"), *tiny, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env=os.environ | QUIET,
    )
    text = (done.stdout + done.stderr).replace("\r", "\n")
    assert done.returncode == 0 and "Traceback" not in text, text
    return text


def said(text: str) -> Counter[str]:
    """How often each line was said, progress bars and empty lines left out."""
    lines = (line.strip() for line in text.splitlines())
    return Counter(line for line in lines if line and "%|" not in line)


def test_two_processes_train_as_one(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    # 65 pixels bring a warning that every process meets, and one that only one of them should utter
    text = launch(runs, "--data", str(squares), "--cfg", str(tiny_cfg), "--imgsz", "65")
    assert [path.name for path in runs.iterdir()] == ["exp"]
    (table,) = runs.rglob("results.csv")
    rows = pd.read_csv(table, skipinitialspace=True)
    assert rows["epoch"].tolist() == [0, 1] and rows.notna().all().all()

    lines = said(text)
    for words in ONCE:
        assert sum(count for line, count in lines.items() if words in line) == 1, words
    # the head of the losses stands once over each epoch
    assert sum(count for line, count in lines.items() if "gpu_mem" in line) == 2
    assert sum(count for line, count in lines.items() if "--imgsz 65" in line) == 1
    # 12 pictures in batches of 4 over both processes: 3 steps, which only one process shows
    assert any("| 3/3 " in line and line.startswith("1/1") for line in map(str.strip, text.splitlines()))

    last, best = (load_checkpoint(runs / "exp/weights" / name) for name in ("last.pt", "best.pt"))
    assert last["epoch"] == best["epoch"] == -1 and last["model"]["names"] == ["red", "blue"]
    assert all(torch.isfinite(value.float()).all() for value in last["model"]["state_dict"].values())


def test_options_that_need_one_process(squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    for given, words in (
        ({"batch_size": 3}, "multiple of the 2 processes"),
        ({"image_weights": True}, "single process"),
        ({"batch_size": -1}, "single process"),
    ):
        with pytest.raises(ValueError, match=words):
            set_up(options(TrainOptions, {"data": str(squares), "project": str(tmp_path / "runs")} | given))
    assert not torch.distributed.is_initialized() and not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------- the arithmetic of two processes
WAYS = {"both": (True, True), "own matches": (True, False), "own batch norm": (False, True), "neither": (False, False)}


def train_some(data: str, cfg: str, sync_bn: bool, shared: bool) -> dict[str, torch.Tensor]:
    """Two epochs of three steps of the real trainer, four pictures a step over all processes."""
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
        losses.append(trainer.epoch(epoch, loader))
    state = {name: value.double() for name, value in trainer.ema.ema.state_dict().items()}
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
    print(found)
    assert max(found["both"]) < 1e-5
    # each of the two is needed
    assert min(found["own matches"][0], found["own batch norm"][0]) > 100 * found["both"][0]
