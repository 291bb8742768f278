"""What all tests share: one thread per process (xdist runs several), a tiny data set, a tiny trained-looking model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from utils.base.log import LOGGER
from utils.prepare import named_weights

torch.set_num_threads(1)
cv2.setNumThreads(1)


@pytest.fixture(scope="session", autouse=True)
def _away_from_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that a test downloads or draws may land in the user's folders; every machine computes the same."""
    patch = pytest.MonkeyPatch()
    patch.setenv("YOLOV5_CPU_BF16", "0")  # tests of --amp auto look for themselves
    patch.setenv("YOLOV5_DATASETS_DIR", str(tmp_path_factory.getbasetemp() / "datasets"))
    patch.setenv("YOLOV5_WEIGHTS_DIR", str(tmp_path_factory.getbasetemp() / "weights"))
    patch.setattr(named_weights, "cache_folder", lambda: tmp_path_factory.getbasetemp() / "cache")
    patch.setenv("YOLOV5_OFFLINE", "1")  # tests of fetching take it away, for a server of their own
    yield
    patch.undo()


@contextmanager
def logger_as_it_was() -> Iterator[None]:
    """Scripts set the logger up for a whole process; whoever comes after this finds it untouched."""
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    yield
    LOGGER.handlers[:], LOGGER.propagate = before[0], before[2]
    LOGGER.setLevel(before[1])


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    with logger_as_it_was():
        yield


def draw_squares(folder: Path, split: str, count: int, size: int = 64, seed: int = 0) -> None:
    """Images with one bright square each (class 0 red, class 1 blue) and their labels."""
    rng = np.random.default_rng(seed)
    for sub in ("images", "labels"):
        (folder / sub / split).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
        side = int(rng.integers(size // 5, size // 2))
        x, y = rng.integers(0, size - side, 2)
        kind = int(rng.integers(2))
        image[y : y + side, x : x + side] = (40, 40, 250) if kind == 0 else (250, 40, 40)
        cv2.imwrite(str(folder / f"images/{split}/{i}.png"), image)
        box = ((x + side / 2) / size, (y + side / 2) / size, side / size, side / size)
        (folder / f"labels/{split}/{i}.txt").write_text(f"{kind} {box[0]:.6f} {box[1]:.6f} {box[2]:.6f} {box[3]:.6f}\n")


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """The YAML of a data set of 12 + 6 images of squares."""
    root = tmp_path / "squares"
    draw_squares(root, "train", 12)
    draw_squares(root, "val", 6, seed=1)
    file = root / "squares.yaml"
    file.write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
    return file


@pytest.fixture
def tiny_cfg(tmp_path: Path) -> Path:
    """A model YAML small enough to train in a test: P4 and P5 only, with routing attention before the last C3."""
    file = tmp_path / "tiny.yaml"
    file.write_text(
        "nc: 2\ndepth_multiple: 0.33\nwidth_multiple: 0.125\n"
        "anchors: [[10,10, 16,16, 24,24], [30,30, 40,40, 50,50]]\n"
        "backbone:\n"
        "  - [-1, 1, Conv, [64, 6, 2, 2]]\n  - [-1, 1, Conv, [128, 3, 2]]\n"
        "  - [-1, 1, C3, [128]]\n"
        "  - [-1, 1, Conv, [256, 3, 2]]\n  - [-1, 1, C3, [256]]\n"
        "  - [-1, 1, Conv, [512, 3, 2]]\n"
        "head:\n  - [-1, 1, BiLevelRoutingAttention, []]\n  - [-1, 1, C3, [512, False]]\n"
        "  - [[4, 7], 1, Detect, [nc, anchors]]\n"
    )
    return file
