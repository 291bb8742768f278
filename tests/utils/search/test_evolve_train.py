"""A search over real trainings, through train.py."""

from __future__ import annotations

from pathlib import Path

import cv2
import pandas as pd
import pytest

import train
from utils.base.config import Hyp
from utils.base.yaml import read_yaml

pytest.importorskip("optuna")


def test_two_real_trainings(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    options = {
        "imgsz": 64,
        "epochs": 1,
        "batch_size": 4,
        "workers": 0,
        "device": "cpu",
        "project": str(tmp_path / "runs"),
    }
    train.run(data=str(squares), cfg=str(tiny_cfg), evolve=2, **options)
    folder = tmp_path / "runs/exp"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "evolve.csv", "evolve.png", "hyp_evolve.yaml", "search.journal", "search.yaml", "trials", "trials.csv",
    }  # fmt: skip
    assert cv2.imread(str(folder / "evolve.png")).std() > 5
    table = pd.read_csv(folder / "evolve.csv", skipinitialspace=True).rename(columns=str.strip)
    assert len(table) == 2 and table["val/box_loss"].gt(0).all() and table["lr0"].nunique() == 2
    assert pd.read_csv(folder / "trials.csv")["state"].tolist() == ["done", "done"]
    for number in range(2):
        trial = folder / "trials" / str(number)
        assert read_yaml(trial / "hyp.yaml")["lr0"] == table["lr0"][number] and (trial / "results.csv").exists()
        assert read_yaml(trial / "opt.yaml")["optimizer"] == "SGD" and not (trial / "weights").exists()
    best = table["metrics/mAP_0.5:0.95"].idxmax()
    assert Hyp.load(folder / "hyp_evolve.yaml").lr0 == table["lr0"][best]


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert train.main(["--evolve", "0", "--project", str(tmp_path / "runs")]) == 1
    assert "--evolve 0: must be from 1" in capsys.readouterr().err and not (tmp_path / "runs").exists()
