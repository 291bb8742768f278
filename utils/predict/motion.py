"""Where boxes will be in the next frame: a Kalman filter of constant velocity, for many boxes at once.

The four numbers of a box (centre and size in pixels) each have a value and a rate per frame. Nothing couples one number
with another, neither motion nor noise, so the filter of eight dimensions is four of two, which are written out here.
How far a number may stray is a share of the box's width or height; the shares are DeepSORT's (arXiv:1703.07402).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

POSITION_SHARE, RATE_SHARE = 1 / 20, 1 / 160  # standard deviations as shares of the box's side, a frame
START_POSITION, START_RATE = 2, 10  # how many times less is known about a box seen for the first time
LEAST_SIDE = 1.0  # pixels; below it, shares of a side say nothing


class Motion(NamedTuple):
    """What is known about n boxes: numbers cx, cy, w, h, each with its value and its rate."""

    mean: np.ndarray  # (n, 4, 2)
    covariance: np.ndarray  # (n, 4, 2, 2)

    @property
    def boxes(self) -> np.ndarray:
        """Centres and sizes (n, 4)."""
        return self.mean[..., 0]


def _sides(boxes: np.ndarray) -> np.ndarray:
    """The side that the uncertainty of each number is a share of: w, h, w, h."""
    return np.maximum(boxes[:, [2, 3, 2, 3]], LEAST_SIDE)


def begin(boxes: np.ndarray) -> Motion:
    """Motion of boxes (n, 4) cx cy w h that are seen for the first time: at rest, as far as anybody knows."""
    sides = _sides(boxes)
    covariance = np.zeros((len(boxes), 4, 2, 2))
    covariance[..., 0, 0] = (START_POSITION * POSITION_SHARE * sides) ** 2
    covariance[..., 1, 1] = (START_RATE * RATE_SHARE * sides) ** 2
    return Motion(np.stack([boxes, np.zeros_like(boxes)], axis=-1), covariance)


def predict(motion: Motion) -> Motion:
    """One frame later: the values have moved by their rates, and everything is less certain."""
    mean, covariance = motion.mean.copy(), motion.covariance.copy()
    sides = _sides(motion.boxes)
    mean[..., 0] += mean[..., 1]
    covariance[..., 0, :] += covariance[..., 1, :]
    covariance[..., :, 0] += covariance[..., :, 1]
    covariance[..., 0, 0] += (POSITION_SHARE * sides) ** 2
    covariance[..., 1, 1] += (RATE_SHARE * sides) ** 2
    return Motion(mean, covariance)


def correct(motion: Motion, boxes: np.ndarray) -> Motion:
    """What is known after boxes (n, 4) cx cy w h have been seen, where the motion had been predicted."""
    noise = (POSITION_SHARE * _sides(motion.boxes)) ** 2
    spread = motion.covariance[..., 0, 0] + noise
    gain = motion.covariance[..., :, 0] / spread[..., None]  # (n, 4, 2): how far value and rate follow what was seen
    mean = motion.mean + gain * (boxes - motion.boxes)[..., None]
    covariance = motion.covariance - gain[..., :, None] * motion.covariance[..., None, 0, :]
    return Motion(mean, covariance)
