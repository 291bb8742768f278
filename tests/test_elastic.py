"""Several processes of which one dies, and that get a signal: torchrun begins again, the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import QUIET, free_port
from utils.base.paths import ROOT
from utils.base.yaml import read_yaml
from utils.checkpoints.checkpoint import load_checkpoint
from utils.training.setup import find_run, launch_id
from utils.training.train_options import TrainOptions

PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import torch, train
torch.set_num_threads(1)
after_step, steps = train.Run.after_step, []

def step(self):
    steps.append(self)
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if os.environ.get("DIE") and first and len(steps) == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    after_step(self)

train.Run.after_step = step
sys.exit(train.main(sys.argv[1:]))
"""


def launch(folder: Path, words: list[str], restarts: int = 0, **env: str) -> subprocess.Popen[str]:
    """Two processes of the program above, by torchrun."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    launcher = ["--nproc-per-node", "2", "--master-port", str(free_port()), "--max-restarts", str(restarts)]
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, str(program), *words]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=os.environ | QUIET | env, text=True, **streams)


@pytest.fixture
def words(squares: Path, tiny_cfg: Path, tmp_path: Path) -> list[str]:
    """The command line of a run of three epochs, three steps each."""
    hyp = tmp_path / "hyp.yaml"
    hyp.write_text("{lr0: 0.02, warmup_epochs: 0, nominal_batch: 4, ema_tau: 3}")
    given = {"data": squares, "cfg": tiny_cfg, "hyp": hyp, "project": tmp_path / "runs", "epochs": 3, "batch-size": 4}
    given |= {"imgsz": 64, "workers": 0, "device": "cpu", "optimizer": "Adam", "loggers": "none", "save-minutes": 1e-6}
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def states(folder: Path) -> dict[str, Any]:
    content = load_checkpoint(folder / "weights/resume.pt")
    return {f"{part} {key}": value for part in ("model", "ema") for key, value in content[part]["state_dict"].items()}


def test_a_process_dies_and_the_run_goes_on_by_itself(words: list[str], tmp_path: Path) -> None:
    """The same command begins again in the folder of its first try, and ends as if nothing had been."""
    for name, env in (("whole", {}), ("died", {"DIE": "1"})):
        done = launch(tmp_path, [*words, "--name", name], restarts=1, **env)
        text, _ = done.communicate(timeout=240)
        assert done.returncode == 0, text
        assert ("resuming" in text) == (name == "died")
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["died", "whole"]
    whole, died = (states(tmp_path / "runs" / name) for name in ("whole", "died"))
    assert whole.keys() == died.keys() and all(torch.equal(whole[key], died[key]) for key in whole)
    tables = [(tmp_path / "runs" / name / "results.csv").read_text() for name in ("whole", "died")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 4


def test_both_stop_at_the_same_step(words: list[str], tmp_path: Path) -> None:
    process = launch(tmp_path, [*words, "--name", "stopped", "--epochs", "500", "--batch-size", "-1"])
    last, deadline = tmp_path / "runs/stopped/weights/last.pt", time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert "stopped and saved; go on with --resume" in text, text
    position = load_checkpoint(last)["position"]
    written = read_yaml(last.parent.parent / "opt.yaml")
    assert position["epoch"] < 499 and written["launch"]
    assert written["batch_size"] == 2 * 16  # each of the two takes what its CPU is given


def test_only_a_restart_looks_for_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, launch_name in (("exp", "one"), ("exp2", "two"), ("exp3", "two")):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "opt.yaml").write_text(f"launch: {launch_name}\n")
        last = tmp_path / name / "weights/last.pt"
        last.touch()
        os.utime(last, (len(name), len(name) + int(name.removeprefix("exp") or 1)))
    opt = TrainOptions(project=str(tmp_path))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert launch_id() is None and find_run(opt) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert find_run(opt) is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert find_run(opt) == tmp_path / "exp3/weights/last.pt"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "three")
    assert find_run(opt) is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert str(os.getppid()) in launch_id()
