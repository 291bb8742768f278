"""The embedded data set: small textured scenes full of small shapes, drawn from a seed.

Colour, size, place and light say nothing about the class; only the outline does. Unlabelled fragments of similar
outlines lie among the shapes, which overlap, are cut by the frame, squeezed, turned, shaded, blurred and noisy.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator

from utils.base.log import LOGGER
from utils.base.progress import progress
from utils.boxes.convert import xyxy2xywhn

CLASSES = ("disc", "ring", "square", "triangle", "cross", "star")
RECIPE = 1  # raise it when the drawing changes: sets of another recipe are drawn anew
MARKER = "drawn.json"  # written last; names the recipe, the numbers and the seed
JPEG_QUALITY = 92

SIDES = (12, 48)  # longer side of most shapes, pixels
LARGE_SIDES, LARGE_SHARE = (48, 110), 0.06
COUNTS = (3, 15)  # shapes in a scene of 368 x 368 pixels; more in larger ones
EMPTY_SHARE = 0.04
LEAST_VISIBLE = 0.6  # part of a shape that neighbours and the frame must leave
LEAST_CONTRAST = 60.0  # distance in BGR of a shape from what lies under it
OVERSAMPLE = 4  # outlines are filled at this multiple and averaged down


Outline = list[np.ndarray]  # (k, 2) contours about the origin, filled by the even-odd rule: a second one makes a hole
Size = tuple[int, int]  # width, height; of a data set: the shortest and the longest side
Draw = Callable[[Generator, Size], tuple[np.ndarray, np.ndarray]]  # a scene of a size -> image and labels
TURN = 2 * np.pi


def _arc(end: float, radius: float = 1, count: int = 40, start: float = 0) -> np.ndarray:
    angles = np.linspace(start, end, count)
    return radius * np.stack((np.cos(angles), np.sin(angles)), 1)


QUARTERS = [np.array(((c, s), (-s, c))) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
OUTLINES: dict[str, Callable[[Generator], Outline]] = {
    "disc": lambda rng: [_arc(TURN)],
    "ring": lambda rng: [_arc(TURN), _arc(TURN, rng.uniform(0.45, 0.68))],
    "square": lambda rng: [_arc(TURN, 1, 5)],
    "triangle": lambda rng: [_arc(TURN, 1, 4)],
    "cross": lambda rng: [
        np.concatenate(
            [((1, -arm), (1, arm), (arm, arm)) @ turn for arm in (rng.uniform(0.24, 0.4),) for turn in QUARTERS]
        )
    ],
    "star": lambda rng: [_arc(TURN, 1, 11)[:-1] * np.tile((1, rng.uniform(0.38, 0.5)), 5)[:, None]],
}
FRAGMENTS: tuple[Callable[[Generator], Outline], ...] = (
    lambda rng: [np.array(((-1, -1), (1, -1), (1, w := rng.uniform(0.35, 0.6) - 1), (w, w), (w, 1), (-1, 1)))],
    lambda rng: [
        np.concatenate((_arc(span := rng.uniform(0.9, 1.4) * np.pi, 1, 30), _arc(0, rng.uniform(0.5, 0.7), 30, span)))
    ],
    lambda rng: [_arc(np.pi)],
    lambda rng: [np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * (1, rng.uniform(0.08, 0.2))],
    lambda rng: [np.array(((-1, -0.6), (0, 0.2), (1, -0.6), (1, -0.1), (0, 0.8), (-1, -0.1)))],
)


def _pose(outline: Outline, rng: Generator) -> Outline:
    """Turn and squeeze an outline at random; its box then begins at 0, 0 and has a longer side of random length."""
    side = float(np.exp(rng.uniform(*np.log(LARGE_SIDES if rng.random() < LARGE_SHARE else SIDES))))
    turns = [np.array(((np.cos(a), -np.sin(a)), (np.sin(a), np.cos(a)))) for a in rng.uniform(0, 2 * np.pi, 2)]
    squeeze = turns[0] @ np.diag((1, rng.uniform(0.72, 1))) @ turns[1]
    outline = [contour @ squeeze.T for contour in outline]
    low, high = outline[0].min(0), outline[0].max(0)
    return [(contour - low) * side / (high - low).max() for contour in outline]


def _colour(rng: Generator, saturation: tuple[int, int], value: tuple[int, int]) -> np.ndarray:
    hsv = np.array([[[rng.integers(180), rng.integers(*saturation), rng.integers(*value)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def clouds(rng: Generator, size: Size, cells: tuple[int, int] = (3, 3), octaves: int = 5) -> np.ndarray:
    """(h, w) float32 noise of several scales, mean 0, deviation about 1; `cells` (x, y) of the coarsest."""
    total = np.zeros(size[::-1], np.float32)
    for octave in range(octaves):
        grid = rng.standard_normal((cells[1] << octave, cells[0] << octave), dtype=np.float32)
        total += cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC) * 0.62**octave
    return total / total.std()


def _tone(rng: Generator, size: Size) -> np.ndarray:
    """(h, w) brightness, about -1 to 1, of one of five patterns."""
    pattern = ("slope", "boards", "tiles", "patches", "clouds")[rng.integers(5)]
    if pattern == "slope":  # from dark to light
        slope = np.linspace(-1, 1, size[0], dtype=np.float32)[None] * rng.uniform(-1, 1)
        return slope + np.linspace(-1, 1, size[1], dtype=np.float32)[:, None] * rng.uniform(-1, 1)
    if pattern == "boards":  # long grain, a tone a board, dark joints
        width = int(rng.integers(36, 90))
        grain = clouds(rng, size, (2, 40), 3)
        board = (np.arange(size[1]) + rng.integers(width)) // width
        tone = rng.uniform(-1.2, 1.2, board.max() + 1).astype(np.float32)[board][:, None] + 0.5 * grain
        tone[np.flatnonzero(np.diff(board))] = -3
        return tone
    if pattern == "tiles":  # a chequered floor with joints
        side = int(rng.integers(24, 72))
        cols, rows = ((np.arange(length) + rng.integers(side)) for length in size)
        tone = rng.uniform(-1, 1, (rows[-1] // side + 1, cols[-1] // side + 1)).astype(np.float32)
        tone = tone[rows // side][:, cols // side]
        tone[rows % side == 0] = tone[:, cols % side == 0] = rng.choice((-2.2, 1.8))
        return tone
    if pattern == "patches":  # clouds cut into a few levels
        return np.round(clouds(rng, size, (4, 4), 3) * 1.3) / 1.3
    return clouds(rng, size)


class _Scene:
    """An image in the making; knows which pixel belongs to which shape and how much of each one still shows."""

    def __init__(self, rng: Generator, size: Size) -> None:
        self.rng, turned = rng, rng.random() < 0.5
        tone = _tone(rng, size[::-1] if turned else size)
        tone = (tone.T if turned else tone) + 0.3 * clouds(rng, size, (24, 24), 3)
        base, other = _colour(rng, (10, 100), (90, 210)), _colour(rng, (10, 110), (40, 240))
        mixed = tone[..., None] * ((other - base) * rng.uniform(0.12, 0.4)) + base
        self.image = np.clip(mixed, 0, 255, out=mixed).astype(np.uint8)  # a pattern of two colours with fine grain
        self.owner = np.full(size[::-1], -1, np.int16)
        self.areas: list[float] = []  # of whole shapes, seen or not
        self.labels: list[tuple[float, ...]] = []
        angle = rng.uniform(0, TURN)
        self.light = np.array((np.cos(angle), np.sin(angle)), np.float32)

    def stroke(self) -> None:
        """A wandering line of any colour."""
        rng, (height, width) = self.rng, self.owner.shape
        turns = rng.normal(rng.uniform(-0.15, 0.15), 0.15, rng.integers(4, 30)).cumsum() + rng.uniform(0, TURN)
        points = rng.uniform(0, (width, height)) + (6 * np.stack((np.cos(turns), np.sin(turns)), 1)).cumsum(0)
        colour, thickness = _colour(rng, (0, 256), (20, 256)).tolist(), int(rng.integers(1, 4))
        cv2.polylines(self.image, [(points * 8).astype(np.int32)], False, colour, thickness, cv2.LINE_AA, shift=3)

    def shape(self) -> None:
        """Add a labelled shape where it hides no other one too much; none if there is no such place."""
        rng, kind = self.rng, int(self.rng.integers(len(CLASSES)))
        outline = _pose(OUTLINES[CLASSES[kind]](rng), rng)
        box = outline[0].max(0)
        for _ in range(12):
            if self.labels and rng.random() < 0.35:  # beside an earlier shape
                _, x1, y1, x2, y2 = self.labels[rng.integers(len(self.labels))]
                angle, reach = rng.uniform(0, TURN), rng.uniform(0.75, 1.2)
                offset = np.array((np.cos(angle), np.sin(angle))) * (box + np.array((x2 - x1, y2 - y1))) / 2 * reach
                corner = np.array((x1 + x2, y1 + y2)) / 2 + offset - box / 2
            else:
                corner = rng.uniform(-0.25 * box, self.owner.shape[::-1] - 0.75 * box)
            alpha, at = _fill(outline, corner)
            solid, (window, inner) = alpha > 0.5, _overlap(self.owner, alpha.shape, at)
            covered = self.owner[window][solid[inner]]
            owners = (self.owner.ravel(), covered)
            showing, lost = (np.bincount(owner + 1, minlength=len(self.areas) + 1)[1:] for owner in owners)
            others_show = (showing - lost >= LEAST_VISIBLE * np.array(self.areas)).all()
            if others_show and len(covered) >= LEAST_VISIBLE * solid.sum():
                self.paint(alpha, at, len(self.areas))
                self.areas.append(float(solid.sum()))
                seen = np.clip((*corner, *(corner + box)), 0, self.owner.shape[::-1] * 2)
                self.labels.append((kind, *seen))
                return

    def paint(self, alpha: np.ndarray, at: tuple[int, int], index: int = -1) -> None:
        """Blend a filled outline in: a colour unlike the ground's, light from one side, texture, rim and shadow."""
        rng, (window, inner) = self.rng, _overlap(self.owner, alpha.shape, at)
        if not alpha[inner].any():
            return
        below, alpha = self.image[window].astype(np.float32), alpha[inner]
        shadow = cv2.GaussianBlur(alpha, (0, 0), 2.0) * rng.uniform(0, 0.5)
        below *= (1 - np.roll(shadow, (2, 2), (0, 1)))[..., None]
        ground = below[alpha > 0.5].mean(0) if (alpha > 0.5).any() else below.mean((0, 1))
        for _ in range(10):
            colour = _colour(rng, (0, 256), (30, 256))
            if np.linalg.norm(colour - ground) >= LEAST_CONTRAST:
                break
        else:
            colour = np.where(ground > 127, 30, 225).astype(np.float32)
        rows, cols = np.mgrid[-1 : 1 : alpha.shape[0] * 1j, -1 : 1 : alpha.shape[1] * 1j]
        shading = 1 + rng.uniform(0, 0.3) * (cols * self.light[0] + rows * self.light[1])
        shading += rng.uniform(0, 0.1) * rng.standard_normal(alpha.shape)
        if rng.random() < 0.4:
            rim = alpha - cv2.GaussianBlur(alpha, (0, 0), 1.3)
            shading *= 1 + rng.uniform(-1.2, 0.8) * np.maximum(rim, 0)
        face = np.clip(colour * shading[..., None], 0, 255)
        self.image[window] = below + alpha[..., None] * (face - below)
        if index >= 0:
            self.owner[window][alpha > 0.5] = index


def _fill(outline: Outline, corner: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """An outline with its box's corner at `corner` -> coverage (h, w) in 0..1 and the pixel (x, y) where it begins."""
    begin = np.floor(corner).astype(int) - 3
    size = np.ceil(outline[0].max(0)).astype(int) + 7
    contours = [np.rint((contour + corner - begin) * OVERSAMPLE * 16 - 8).astype(np.int32) for contour in outline]
    mask = np.zeros(size[::-1] * OVERSAMPLE, np.uint8)
    cv2.fillPoly(mask, contours, 255, shift=4)
    small = cv2.resize(mask, tuple(size.tolist()), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255, (int(begin[0]), int(begin[1]))


def _overlap(image: np.ndarray, shape: tuple[int, ...], at: tuple[int, int]) -> tuple[tuple, tuple]:
    """Where a patch of `shape` put at (x, y) meets an image: index into the image, index into the patch."""
    (height, width), (x, y) = shape, at
    x1, y1 = max(x, 0), max(y, 0)
    x2, y2 = max(min(x + width, image.shape[1]), x1), max(min(y + height, image.shape[0]), y1)
    return np.s_[y1:y2, x1:x2], np.s_[y1 - y : y2 - y, x1 - x : x2 - x]


def draw_scene(rng: Generator, size: Size = (368, 368)) -> tuple[np.ndarray, np.ndarray]:
    """A scene of (width, height) -> BGR image (h, w, 3) uint8, labels (n, 5) float32 class, x1, y1, x2, y2 in pixels.

    A box is that of the shape's outline, cut by the frame but not by what lies over it.
    """
    scene = _Scene(rng, size)
    for _ in range(rng.integers(4, 12)):
        scene.stroke()
    for _ in range(rng.integers(2, 8)):  # something of a shape's size and colours that is none of them
        outline = FRAGMENTS[rng.integers(len(FRAGMENTS))](rng)
        corner = rng.uniform(-SIDES[0], size)
        scene.paint(*_fill(_pose(outline, rng), corner))
    if rng.random() >= EMPTY_SHARE:
        count = rng.integers(COUNTS[0], COUNTS[1] + 1) * size[0] * size[1] / 368**2
        for _ in range(max(round(count), COUNTS[0])):
            scene.shape()
    for _ in range(rng.integers(0, 4)):
        scene.stroke()
    # the photograph: uneven light, exposure, a colour cast, defocus and noise
    light = cv2.resize(rng.uniform(0.75, 1.2, (3, 3)).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    gain = rng.choice((0.5, 0.65, 0.8, 1.0, 1.15)) * rng.uniform(0.93, 1.07, 3)
    seen = cv2.GaussianBlur(scene.image * (light[..., None] * gain.astype(np.float32)), (0, 0), rng.uniform(0.3, 1.1))
    seen += rng.uniform(1, 7) * rng.standard_normal((*size[::-1], 1), dtype=np.float32)
    return np.clip(seen, 0, 255, out=seen).astype(np.uint8), np.array(scene.labels, np.float32).reshape(-1, 5)


def _write_scene(scene: Draw | None, rng: Generator, sides: Size, image_file: Path, label_file: Path) -> None:
    """Write a scene whose sides are multiples of 16 pixels between two numbers."""
    width, height = (rng.integers(sides[0] // 16, sides[1] // 16 + 1, 2) * 16).tolist()
    image, boxes = (scene or draw_scene)(rng, (width, height))
    data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
    image_file.write_bytes(data.tobytes())
    boxes[:, 1:] = xyxy2xywhn(boxes[:, 1:], width, height)
    lines = [f"{int(kind)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n" for kind, x, y, w, h in boxes]
    label_file.write_text("".join(lines), encoding="utf-8")


def draw_dataset(
    root: Path, train: int = 256, val: int = 64, size: Size = (320, 416), seed: int = 0, scene: Draw | None = None
) -> None:
    """Draw root/images/{train,val}/*.jpg and root/labels/{train,val}/*.txt, sides between the two of `size`.

    `scene` draws one as `draw_scene` does, which it is by default; the name of another one is part of its recipe.
    A set that is there already stays; one of another recipe, number or seed is replaced. It is drawn beside `root` and
    moved there when complete, so an interrupted drawing leaves nothing half done and two processes do not disturb each
    other. Raises ValueError where `root` holds something else.
    """
    recipe = f"{scene.__name__} {RECIPE}" if scene else RECIPE
    wanted = json.dumps({"recipe": recipe, "train": train, "val": val, "size": list(size), "seed": seed})
    if (marker := root / MARKER).is_file() and marker.read_text(encoding="utf-8") == wanted:
        return
    if not marker.exists() and any(root.glob("*")):
        raise ValueError(f"{root} is not empty and not a drawn data set: move it away, or give another path")
    LOGGER.info(f"drawing {train + val} scenes into {root}")
    beside = root.with_name(f".{root.name}-{secrets.token_hex(4)}")
    try:
        for split, (part, count) in enumerate((("train", train), ("val", val))):
            images, labels = beside / "images" / part, beside / "labels" / part
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for index in progress(range(count), f"drawing {part}", unit=" scenes"):
                rng = np.random.default_rng([seed, split, index])
                _write_scene(scene, rng, size, images / f"{index:04d}.jpg", labels / f"{index:04d}.txt")
        (beside / MARKER).write_text(wanted, encoding="utf-8")
        try:
            os.replace(beside, root)  # fails where a folder with something in it is in the way
        except OSError:
            if not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:  # another process was not faster
                shutil.rmtree(root, ignore_errors=True)
                os.replace(beside, root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
