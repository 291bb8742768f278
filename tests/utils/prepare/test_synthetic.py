"""The embedded data set: the same bytes on every machine, truthful labels, and no short cut to the class."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from utils.base.paths import ROOT
from utils.prepare import synthetic
from utils.prepare.synthetic import CLASSES, draw_dataset, draw_scene


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [(320, 416), (640, 480)])
def test_labels_are_boxes_inside_the_image(size: tuple[int, int]) -> None:
    for index in range(6):
        image, labels = draw_scene(np.random.default_rng([5, index]), size)
        assert image.shape == (*size[::-1], 3) and image.dtype == np.uint8
        assert set(labels[:, 0]) <= set(range(len(CLASSES)))
        assert (labels[:, 1:] >= 0).all() and (labels[:, 3:] <= size).all()
        assert (labels[:, 3:] - labels[:, 1:3] >= 3).all()
    config = yaml.safe_load((ROOT / "data/shapes.yaml").read_text(encoding="utf-8"))
    assert config["names"] == dict(enumerate(CLASSES))


def test_boxes_bound_the_painted_pixels() -> None:
    """Of every shape the pixels painted for it, before others go over them, fill its box to the edges."""
    checked = 0
    for seed in range(8):
        scene = synthetic._Scene(np.random.default_rng(seed), (320, 320))
        for _ in range(12):
            before, count = scene.owner.copy(), len(scene.labels)
            scene.shape()
            if len(scene.labels) > count:
                rows, cols = np.nonzero(scene.owner != before)
                box = np.array((cols.min(), rows.min(), cols.max() + 1, rows.max() + 1))
                np.testing.assert_allclose(box, scene.labels[-1][1:], atol=2.5)
                checked += 1
    assert checked > 80


def share_of_right_neighbours(features: list, kinds: np.ndarray) -> float:
    """How often the seven nearest of the others, in standardised features, vote for the right class."""
    scaled = (np.array(features) - np.mean(features, 0)) / np.std(features, 0)
    distance = ((scaled[:, None] - scaled) ** 2).sum(-1) + np.diag(np.full(len(scaled), np.inf))
    votes = kinds[np.argsort(distance, 1)[:, :7]]
    return float(np.mean([np.bincount(row).argmax() for row in votes] == kinds))


def test_neither_colour_nor_size_nor_place_tells_the_class() -> None:
    colours, boxes, outlines, kinds = [], [], [], []
    for index in range(60):
        image, labels = draw_scene(np.random.default_rng([5, index]), (320, 320))
        for kind, x1, y1, x2, y2 in labels:
            patch = image[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
            grey = cv2.resize(patch, (12, 12), interpolation=cv2.INTER_AREA).astype(float).mean(-1)
            colours.append(patch.mean((0, 1)))
            boxes.append((np.log(x2 - x1), np.log(y2 - y1), x1 + x2, y1 + y2))
            outlines.append(abs(grey - np.median(grey)).ravel())
            kinds.append(int(kind))
    assert len(kinds) > 300 and np.bincount(kinds).max() < 0.25 * len(kinds)
    assert share_of_right_neighbours(colours, np.array(kinds)) < 0.3
    assert share_of_right_neighbours(boxes, np.array(kinds)) < 0.3
    assert share_of_right_neighbours(outlines, np.array(kinds)) > 0.33, "the outline does tell it"


def test_every_shape_remains_visible() -> None:
    for seed in range(6):
        scene = synthetic._Scene(np.random.default_rng(seed), (200, 200))
        for _ in range(25):  # crowded on purpose
            scene.shape()
        showing = np.bincount(scene.owner.ravel() + 1, minlength=len(scene.areas) + 1)[1:]
        assert (showing >= synthetic.LEAST_VISIBLE * np.array(scene.areas) - 1e-6).all()
        assert (showing < 0.98 * np.array(scene.areas)).any(), "nothing is ever covered"


def test_the_same_set_twice_and_no_drawing_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        draw_dataset(tmp_path / name, train=3, val=2, size=(64, 96))
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) == 2 * 5 + 1
    labels = [draw_scene(np.random.default_rng([0, 0, index]), (96, 64))[1] for index in range(8)]
    assert round(float(np.concatenate(labels).sum())) == 4507, "another drawing needs another RECIPE"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # nothing left beside them
    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "draw_scene", None)
        draw_dataset(tmp_path / "a", train=3, val=2, size=(64, 96))
    draw_dataset(tmp_path / "a", train=1, val=1, size=(64, 64), seed=9)
    assert json.loads((tmp_path / "a" / synthetic.MARKER).read_text())["seed"] == 9 and len(files(tmp_path / "a")) == 5


def test_label_files_match_the_scenes(tmp_path: Path) -> None:
    draw_dataset(tmp_path / "set", train=2, val=0, size=(96, 128), seed=3)
    for index in range(2):
        image = cv2.imread(str(tmp_path / f"set/images/train/{index:04d}.jpg"))
        height, width = image.shape[:2]
        rng = np.random.default_rng([3, 0, index])
        assert (rng.integers(6, 9, 2) * 16).tolist() == [width, height]
        drawn, labels = draw_scene(rng, (width, height))
        assert abs(image.astype(int) - drawn).mean() < 12  # JPEG
        rows = np.loadtxt(tmp_path / f"set/labels/train/{index:04d}.txt", ndmin=2).reshape(-1, 5)
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        boxes = np.concatenate((low, high), 1) * (width, height, width, height)
        np.testing.assert_allclose(boxes, labels[:, 1:], atol=1e-3)


def test_an_interrupted_drawing_leaves_nothing_and_another_process_may_finish_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, wanted = tmp_path / "set", {"train": 2, "val": 1, "size": (64, 64)}

    def interrupted(*given):
        monkeypatch.setattr(synthetic, "draw_scene", overtaken)
        raise KeyboardInterrupt

    def overtaken(*given):
        monkeypatch.setattr(synthetic, "draw_scene", draw_scene)
        draw_dataset(root, **wanted)
        return draw_scene(*given)

    monkeypatch.setattr(synthetic, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(root, **wanted)
    assert list(tmp_path.iterdir()) == []
    draw_dataset(root, **wanted)
    assert list(tmp_path.iterdir()) == [root] and len(files(root)) == 7


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not a drawn data set"):
        draw_dataset(tmp_path, train=1, val=1)
    assert files(tmp_path) == {"mine.txt": b"precious"}
