"""Training in two processes on one machine, started as people start it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import torch

from utils.checkpoint import load_checkpoint
from utils.config import options
from utils.paths import ROOT
from utils.setup import TrainOptions, set_up

ONCE = ("Model Summary", "optimizer:", "Starting training", "Results saved to", "Validating", "epochs completed")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
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
        ({"evolve": 3}, "single process"),
    ):
        with pytest.raises(ValueError, match=words):
            set_up(options(TrainOptions, {"data": str(squares), "project": str(tmp_path / "runs")} | given))
    assert not torch.distributed.is_initialized() and not (tmp_path / "runs").exists()
