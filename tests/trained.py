"""Detectors that have learnt something: trained once in a run of the tests, by whichever process comes first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

import train
from tests.conftest import draw_squares, logger_as_it_was

SIZE = 64  # pixels, of the images
EPOCHS = 15  # mAP50 of about 0.7


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def trained_weights(cfg: str, folder: Path) -> tuple[Path, Path]:
    """The weights of a description trained on squares, and the data set's YAML; both below `folder`, and shared."""
    place = folder / f"trained-{Path(cfg).stem}"
    data, weights = place / "squares.yaml", place / "exp/weights/best.pt"
    with FileLock(folder / f"{place.name}.lock"):
        if not weights.is_file():
            draw_squares(place, "train", 96, SIZE)
            draw_squares(place, "val", 24, SIZE, seed=1)
            data.write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
            settings = {"imgsz": SIZE, "batch_size": 16, "workers": 0, "device": "cpu", "loggers": ["none"]}
            with logger_as_it_was():
                train.run(cfg=cfg, data=str(data), epochs=EPOCHS, project=str(place), exist_ok=True, **settings)
    return weights, data
