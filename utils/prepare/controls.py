"""Two embedded data sets that tell whether a network looks things up: `far` needs it, `near` does not.

A scene has discs on one side and square tags on the other, across a gap. A disc's colour, drawn anew for every disc of
every image, is that of exactly one tag, and a light or dark frame is the sign that tells the class: in `near` around
the disc itself, in `far` around its tag only. Which tag has a disc's colour is drawn independently of all places, and
each scene has both classes and both signs equally often, so neither the disc, nor what is next to it, nor how many
there are of anything helps: without comparing colours across the image the classes of `far` are a coin's toss.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.random import Generator

from utils.prepare.synthetic import Draw, Size, clouds, draw_dataset

SIGNS = {"light": 235.0, "dark": 20.0}  # the classes, and how bright their frames are
SIZE, GREY = 192, 128.0  # of an image, pixels; of what says nothing
PAIRS = 4  # discs in a scene, and tags
SIDES, FRAME = (26, 34), 4  # of a disc or tag with its frame; of the frame; pixels
GAP = 40  # pixels at least between discs and tags
LEAST_DIFFERENCE = 70.0  # distance in BGR between the colours of two discs, and from grey


def _colours(rng: Generator) -> np.ndarray:
    """(PAIRS, 3) colours that differ clearly, neither as light nor as dark as a frame."""
    while True:
        colours = rng.uniform(45, 210, (PAIRS, 3))
        both = np.concatenate((colours, np.full((1, 3), GREY)))
        if np.linalg.norm(both[:, None] - both, axis=-1)[np.triu_indices(PAIRS + 1, 1)].min() >= LEAST_DIFFERENCE:
            return colours


def _column(rng: Generator, first: float, last: float, height: int) -> np.ndarray:
    """(PAIRS, 3) centres and sides, one below the other between x = first and x = last."""
    sides, row = rng.integers(SIDES[0], SIDES[1] + 1, PAIRS), height / PAIRS
    x, y = rng.uniform(first + sides / 2, last - sides / 2), rng.uniform(sides / 2, row - sides / 2)
    return np.stack((x, y + row * np.arange(PAIRS), sides), 1)


def _draw_one(image: np.ndarray, place: np.ndarray, colour: np.ndarray, frame: float, is_disc: bool) -> None:
    """Draw a disc or a tag with its frame into an image (h, w, 3), its edges smooth."""
    x, y, side = place
    left, top = (max(int(centre - side), 0) for centre in (x, y))
    part = image[top : int(y + side), left : int(x + side)]
    rows, cols = np.ogrid[top + 0.5 : top + len(part), left + 0.5 : left + part.shape[1]]
    away = np.hypot(cols - x, rows - y) if is_disc else np.maximum(abs(cols - x), abs(rows - y))
    for radius, value in ((side / 2, frame), (side / 2 - FRAME, colour)):
        part += np.clip(radius - away + 0.5, 0, 1)[..., None] * (value - part)


def _draw_scene(rng: Generator, size: Size, discs_show_it: bool) -> tuple[np.ndarray, np.ndarray]:
    turned, mirrored = rng.random(2) < 0.5
    width, height = size[::-1] if turned else size
    image = GREY + rng.uniform(4, 12) * clouds(rng, (width, height))[..., None].repeat(3, axis=2)
    colours, classes = _colours(rng), rng.permutation(np.arange(PAIRS) % len(SIGNS))
    frames, neutral = np.array([*SIGNS.values()])[classes], np.full(PAIRS, GREY)
    half, order = (width - GAP) / 2, rng.permutation(PAIRS)  # of the tags
    discs, tags = _column(rng, 0, half, height), _column(rng, half + GAP, width, height)
    for place, colour, frame in zip(discs, colours, frames if discs_show_it else neutral, strict=True):
        _draw_one(image, place, colour, frame, is_disc=True)
    for place, colour, frame in zip(tags, colours[order], frames[order], strict=True):
        _draw_one(image, place, colour, frame, is_disc=False)
    image += 3 * rng.standard_normal(image.shape, dtype=np.float32)
    boxes = np.concatenate((discs[:, :2] - discs[:, 2:] / 2, discs[:, :2] + discs[:, 2:] / 2), 1)
    if mirrored:
        image, boxes = image[:, ::-1], np.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), 1)
    if turned:
        image, boxes = image.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    labels = np.concatenate((classes[:, None], boxes), 1).astype(np.float32)
    return np.ascontiguousarray(np.clip(image, 0, 255).astype(np.uint8)), labels


def draw_far(rng: Generator, size: Size = (SIZE, SIZE)) -> tuple[np.ndarray, np.ndarray]:
    """A scene whose classes are found by comparing colours across the gap; arguments and result as of `draw_scene`."""
    return _draw_scene(rng, size, discs_show_it=False)


def draw_near(rng: Generator, size: Size = (SIZE, SIZE)) -> tuple[np.ndarray, np.ndarray]:
    """A scene whose discs wear the signs of their tags; arguments and result as of `draw_scene`."""
    return _draw_scene(rng, size, discs_show_it=True)


def draw_control(root: Path, scene: Draw) -> None:
    """Draw 1,024 scenes for training and 256 for validation, as `draw_dataset` does."""
    draw_dataset(root, 1024, 256, (SIZE, SIZE), scene=scene)
