"""The embedded data set: the same bytes on every machine, truthful labels."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from utils.prepare import synthetic
from utils.prepare.synthetic import CLASSES, draw_dataset, draw_scene

ROOT = Path(__file__).resolve().parents[3]


def scenes(count: int, size: tuple[int, int] = (320, 320)):
    return [draw_scene(np.random.default_rng([5, index]), size) for index in range(count)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("size", [(320, 416), (640, 480)])
def test_labels_are_boxes_inside_the_picture(size: tuple[int, int]):
    for image, labels in scenes(6, size):
        assert image.shape == (*size[::-1], 3) and image.dtype == np.uint8
        assert set(labels[:, 0]) <= set(range(len(CLASSES)))
        assert (labels[:, 1:] >= 0).all() and (labels[:, 3:] <= size).all()
        assert (labels[:, 3:] - labels[:, 1:3] >= 3).all()


def test_boxes_bound_the_painted_pixels():
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


def test_the_same_set_twice_and_no_drawing_when_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    draw_dataset(tmp_path / "a", train=3, val=2, size=(64, 96))
    draw_dataset(tmp_path / "b", train=3, val=2, size=(64, 96))
    assert files(tmp_path / "a") == files(tmp_path / "b")
    labels = [draw_scene(np.random.default_rng([0, 0, index]), (96, 64))[1] for index in range(8)]
    assert round(float(np.concatenate(labels).sum())) == 4507, "another drawing needs another RECIPE"
    assert len(files(tmp_path / "a")) == 2 * 5 + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # nothing left beside them
    monkeypatch.setattr(synthetic, "draw_scene", None)
    draw_dataset(tmp_path / "a", train=3, val=2, size=(64, 96))


def test_label_files_match_the_scenes(tmp_path: Path):
    draw_dataset(tmp_path / "set", train=2, val=0, size=(96, 128), seed=3)
    for index in range(2):
        image = cv2.imread(str(tmp_path / f"set/images/train/{index:04d}.jpg"))
        height, width = image.shape[:2]
        rng = np.random.default_rng([3, 0, index])
        assert (rng.integers(6, 9, 2) * 16).tolist() == [width, height]
        drawn, labels = draw_scene(rng, (width, height))
        assert abs(image.astype(int) - drawn).mean() < 12  # JPEG
        text = (tmp_path / f"set/labels/train/{index:04d}.txt").read_text()
        rows = np.array([line.split() for line in text.splitlines()], float).reshape(-1, 5)
        low, high = rows[:, 1:3] - rows[:, 3:] / 2, rows[:, 1:3] + rows[:, 3:] / 2
        boxes = np.concatenate((low, high), 1) * (width, height, width, height)
        np.testing.assert_allclose(boxes, labels[:, 1:], atol=1e-3)


def test_an_interrupted_drawing_leaves_nothing_and_is_redone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def fail_at_the_third(rng, size):
        calls.append(size)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw_scene(rng, size)

    monkeypatch.setattr(synthetic, "draw_scene", fail_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        draw_dataset(tmp_path / "set", train=4, val=1, size=(64, 64))
    assert list(tmp_path.iterdir()) == []
    draw_dataset(tmp_path / "set", train=4, val=1, size=(64, 64))
    assert len(list(tmp_path.glob("set/images/*/*.jpg"))) == 5


def test_another_process_may_finish_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, arguments = tmp_path / "set", {"train": 1, "val": 1, "size": (64, 64)}

    def overtaken(rng, size):
        monkeypatch.setattr(synthetic, "draw_scene", draw_scene)
        draw_dataset(root, **arguments)
        return draw_scene(rng, size)

    monkeypatch.setattr(synthetic, "draw_scene", overtaken)
    draw_dataset(root, **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(files(root)) == 5


def test_a_set_of_another_recipe_is_replaced(tmp_path: Path):
    draw_dataset(tmp_path / "set", train=2, val=1, size=(64, 64))
    draw_dataset(tmp_path / "set", train=1, val=1, size=(64, 64), seed=9)
    assert json.loads((tmp_path / "set" / synthetic.MARKER).read_text())["seed"] == 9
    assert len(files(tmp_path / "set")) == 5


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not a drawn data set"):
        draw_dataset(tmp_path, train=1, val=1)
    assert files(tmp_path) == {"mine.txt": b"precious"}


def test_the_yaml_names_the_classes():
    config = yaml.safe_load((ROOT / "data/shapes.yaml").read_text(encoding="utf-8"))
    assert tuple(config["names"].values()) == CLASSES and list(config["names"]) == list(range(len(CLASSES)))
