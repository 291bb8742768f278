"""A data set with broken files trains: each is listed with its reason, and nobody's file is touched."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import train
from tests.conftest import draw_squares
from tests.hostile import png
from utils.checkpoints.checkpoint import load_checkpoint
from utils.data.label_index import load_index

BAD_ROWS = {  # label file -> its text, the line, what is said of it, whether the image is left out
    "0": ("0 .5 .5 .2\n", "1", "4 columns where a box has 5", "yes"),
    "1": ("0 .5 .5 .2 .2\n1 nan .5 .2 .2\n", "2", "a value is not finite: 1 nan 0.5 0.2 0.2", "yes"),
    "2": ("0 .5 1e308 .2 .2\n", "1", "a value is not finite: 0 0.5 inf 0.2 0.2", "yes"),
    "3": ("0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n0 .5 .5 .2 .2\n", "3", "1 duplicate labels ignored", "no"),
    "4": ("0 0x1 .5 .2 .2\n", "1", "not numbers: '0 0x1 .5 .2 .2'", "yes"),
    "5": ("0 ٠.٥ .5 .2 .2\n", "1", "not a plain number: '٠.٥'", "yes"),
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """40 sound images of squares, most of them with sound labels, and all that can lie beside them."""
    root = tmp_path / "squares"
    draw_squares(root, "train", 40)
    draw_squares(root, "val", 6, seed=1)
    images, labels = root / "images/train", root / "labels/train"
    whole = (images / "39.png").read_bytes()
    for name, (text, *_) in BAD_ROWS.items():
        (labels / f"{name}.txt").write_text(text)
    (labels / "6.txt").write_bytes("0 .5 .5 .2 .2 螺".encode("gbk"))
    with (labels / "7.txt").open("wb") as file:
        file.truncate(1 << 30)
    (labels / "8.txt").unlink()
    (labels / "8.txt").mkdir()
    bomb = png(60000, 60000, b"", kind=(8, 2, 0))
    for name, content in (("empty.png", b""), ("cut.png", whole[:900]), ("text.jpg", b"hello"), ("bomb.png", bomb)):
        (images / name).write_bytes(content)
    cv2.imwrite(str(images / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    os.mkfifo(images / "pipe.jpg")
    (images / "folder.jpg").mkdir()
    (images / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "images/val/a\nb.png").write_bytes(b"")
    (root / "squares.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\n")
    return root


EXPECTED_FILES = {  # in the image folder -> what is said of it
    "empty.png": "unusable image: empty file",
    "cut.png": "unusable image: the file is cut off",
    "text.jpg": "unusable image: its content is no image, whatever its name says",
    "bomb.png": "unusable image: 60000 x 60000 pixels are more than OpenCV decodes",
    "dot.png": "unusable image: 1 x 1 pixels are too few, each side needs 10",
    "pipe.jpg": "unusable image: it is a pipe, not a file",
    "gone.jpg": "no such image",
}


def state(root: Path) -> dict[str, tuple]:
    """Everything that is kept of files: kind, size, time of change, permissions, content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status, is_small = path.lstat(), path.is_file() and path.stat().st_size < 1 << 20
        changed = status.st_mtime_ns * path.is_file()
        found[str(path.relative_to(root))] = status.st_mode, status.st_size, changed, is_small and path.read_bytes()
    return found


def test_training_lists_what_is_broken_and_touches_nothing(
    broken: Path, tiny_cfg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(broken)
    given = {"data": str(broken / "squares.yaml"), "cfg": str(tiny_cfg), "project": str(tmp_path / "runs")}
    train.run(**given, imgsz=64, epochs=1, batch_size=8, workers=0, device="cpu")
    run = tmp_path / "runs/exp"
    assert load_checkpoint(run / "weights/best.pt")["epoch"] == -1
    assert "and 6 more; 15 images are left out in all" in capsys.readouterr().err, "the log shows the first ten"
    with (run / "dataset_report.csv").open(encoding="utf-8-sig", newline="") as file:
        _, *rows = csv.reader(file)
    found = {(split, file): (line, reason, left_out) for split, file, line, reason, _, left_out in rows}
    labels, images = broken / "labels/train", broken / "images/train"
    expected = {("train", f"{labels}/{name}.txt"): tuple(said) for name, (_, *said) in BAD_ROWS.items()}
    expected |= {("train", f"{images}/{name}"): ("", said, "yes") for name, said in EXPECTED_FILES.items()}
    expected["train", f"{labels}/6.txt"] = ("", "not UTF-8 text", "yes")
    too_large = "its 1,073,741,824 bytes are more than the 16,777,216 that are read of such a file"
    expected["train", f"{labels}/7.txt"] = ("", f"no readable label file: {too_large}", "yes")
    expected["train", f"{labels}/8.txt"] = ("", "no readable label file: it is a folder, not a file", "yes")
    expected["val", f"{broken}/images/val/a\\nb.png"] = ("", "unusable image: empty file", "yes")
    assert found == expected and len(rows) == len(found)

    after = state(broken)
    added = {name for name in after.keys() - before.keys() if name.endswith(".npz")}
    assert after.keys() - added == before.keys() and len(added) == 2, "only the caches of labels are new"
    assert {name: after[name] for name in before} == before


def test_a_sound_data_set_has_no_report(squares: Path, tiny_cfg: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/exp").mkdir(parents=True)
    (tmp_path / "runs/exp/dataset_report.csv").write_text("of an earlier run")
    words = {"data": str(squares), "cfg": str(tiny_cfg), "project": str(tmp_path / "runs"), "exist_ok": True}
    train.run(**words, imgsz=64, epochs=1, batch_size=4, workers=0, device="cpu", noval=True)
    assert not (tmp_path / "runs/exp/dataset_report.csv").exists()


# ---- a folder that belongs to somebody else
@pytest.fixture
def read_only() -> Iterator[Path]:
    """A data set that this process, whoever runs it, may only read."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "squares"
        draw_squares(root, "train", 4)
        folders = [path for path in (Path(name), *Path(name).rglob("*")) if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            yield root
        finally:
            os.seteuid(user)
            for folder in folders:
                folder.chmod(0o755)


def test_a_read_only_data_set_is_read(read_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not os.access(read_only, os.W_OK, effective_ids=True)
    assert len(load_index(read_only / "images/train")) == 4
    assert "cannot be written (Permission denied)" in caplog.text and not list(read_only.rglob("*.npz"))
