"""The controls: comparing colours across the gap solves them, nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import yaml

from tests.utils.prepare.test_synthetic import files, share_of_right_neighbours
from utils.base.paths import ROOT
from utils.prepare import controls
from utils.prepare.controls import FRAME, GAP, LEAST_DIFFERENCE, PAIRS, SIDES, SIGNS, SIZE, draw_far, draw_near
from utils.prepare.synthetic import MARKER, draw_dataset

DARK, LIGHT = 45, 205  # no colour reaches a frame's brightness in all three channels


class Tag(NamedTuple):
    sign: int
    centre: np.ndarray
    colour: np.ndarray


def scenes(draw, count: int = 100):
    """Scenes as they come out of their JPEG files."""
    for index in range(count):
        image, labels = draw(np.random.default_rng([3, index]))
        yield cv2.imdecode(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 92))[1], -1), labels


def colour_at(image: np.ndarray, centre: np.ndarray, reach: int = 5) -> np.ndarray:
    x, y = centre.astype(int)
    return image[y - reach : y + reach, x - reach : x + reach].reshape(-1, 3).mean(0)


def tags_of(image: np.ndarray) -> list[Tag]:
    """Every tag by its frame, found by brightness alone."""
    found = []
    for sign, mask in enumerate((image.min(2) > LIGHT, image.max(2) < DARK)):
        _, _, stats, centres = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        for box, centre in zip(stats[1:], centres[1:], strict=True):
            if box[4] > 100:
                found.append(Tag(sign, centre, colour_at(image, centre)))
    return found


def test_scenes_are_whole_and_balanced() -> None:
    for name, draw in (("far", draw_far), ("near", draw_near)):
        for image, labels in scenes(draw, 12):
            assert image.shape == (SIZE, SIZE, 3) and labels.shape == (PAIRS, 5)
            assert np.bincount(labels[:, 0].astype(int)).tolist() == [PAIRS / 2] * 2
            assert (labels[:, 1:] >= 0).all() and (labels[:, 1:] <= SIZE).all()
            sides = labels[:, 3:] - labels[:, 1:3]
            assert (sides >= SIDES[0] - 1e-4).all() and (sides <= SIDES[1] + 1e-4).all()
        content = yaml.safe_load((ROOT / f"data/{name}.yaml").read_text(encoding="utf-8"))
        assert content["names"] == dict(enumerate(SIGNS)) and content["imgsz"] == SIZE and content["download"] == name


def test_far_is_solved_by_comparing_colours_and_by_nothing_else() -> None:
    right = {"same colour": [], "nearest": [], "farthest": [], "beside": [], "next colour": []}
    alone, kinds = [], []
    for image, labels in scenes(draw_far):
        tags = tags_of(image)
        signs = np.array([tag.sign for tag in tags])
        assert np.bincount(signs).tolist() == [PAIRS / 2] * 2, "how many there are of a sign tells nothing"
        for kind, *box in labels:
            centre, size = np.array((box[0] + box[2], box[1] + box[3])) / 2, box[2] - box[0]
            colour = colour_at(image, centre)
            away = np.array([tag.centre - centre for tag in tags])
            assert (abs(away).max(1) >= GAP).all()
            unlike = np.array([np.linalg.norm(tag.colour - colour) for tag in tags])
            assert np.sort(unlike)[1] > 0.7 * LEAST_DIFFERENCE, "no other tag has this colour"
            distance, gap = np.linalg.norm(away, axis=1), abs(away).min(1)
            guesses = unlike.argmin(), distance.argmin(), distance.argmax(), gap.argmin(), unlike.argsort()[1]
            for name, guess in zip(right, guesses, strict=True):
                right[name].append(signs[guess] == kind)
            ring = cv2.resize(image[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])], (8, 8)).ravel()
            alone.append(np.concatenate((colour, centre, [size], ring.astype(float))))
            kinds.append(int(kind))
    share = {name: np.mean(values) for name, values in right.items()}
    assert share.pop("same colour") > 0.99 and len(kinds) == 400
    assert share.pop("next colour") == pytest.approx(1 / 3, abs=0.08)  # of the other three two have the other sign
    assert share == pytest.approx(dict.fromkeys(share, 0.5), abs=0.08)
    assert share_of_right_neighbours(alone, np.array(kinds)) < 0.58, "a disc and its place tell nothing"


def test_near_is_told_by_the_disc_itself() -> None:
    right = []
    for image, labels in scenes(draw_near, 20):
        for kind, x1, y1, x2, _ in labels:
            row, col = int(y1 + FRAME / 2), int((x1 + x2) / 2)  # of the frame's top
            right.append((image[row, col].mean() < 128) == kind)
    assert len(right) == 80 and np.mean(right) > 0.98


def test_a_control_is_drawn_as_the_embedded_set_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controls, "draw_dataset", lambda root, *numbers, **given: draw_dataset(root, 3, 1, **given))
    for name in "ab":
        controls.draw_control(tmp_path / name, draw_far)
    assert files(tmp_path / "a") == files(tmp_path / "b") and len(files(tmp_path / "a")) == 2 * 4 + 1
    assert '"recipe": "draw_far 1"' in (tmp_path / "a" / MARKER).read_text()
    controls.draw_control(tmp_path / "a", draw_near)  # another set in its place
    assert files(tmp_path / "a") != files(tmp_path / "b")
    _, labels = draw_far(np.random.default_rng(0))
    assert round(float(labels.sum())) == 1988, "another drawing needs another RECIPE"
