"""The choices of one routing attention layer on an image, as arrays and in pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class RoutingMap:
    """The routes of one layer on one image, the network's input.

    The layer's map is cut into rows x cols regions, numbered row by row from 0. A map that does not divide into regions
    is padded at the right and at the bottom: regions there reach past the image's edge or lie beyond it altogether.
    """

    name: str  # of the layer, in letters that file names may have
    rows: int
    cols: int
    cell_height: float  # pixels of the image that a region covers
    cell_width: float
    index: np.ndarray  # (R, K) numbers of the regions that each region is routed to, best first
    weight: np.ndarray  # (R, K) shares of these in the routing, each row summing to 1

    @property
    def topk(self) -> int:
        """Regions that each region is routed to."""
        return self.index.shape[1]

    def edges(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the borders between regions, x (cols + 1) and y (rows + 1), none past the image's own edge.

        Rounded to a thousandth of a pixel: what is all padding then has no size, whatever its stride is.
        """
        x = np.minimum(np.arange(self.cols + 1) * self.cell_width, width)
        y = np.minimum(np.arange(self.rows + 1) * self.cell_height, height)
        return x.round(3), y.round(3)

    def boxes(self, height: int, width: int) -> np.ndarray:
        """Return the regions as boxes (R, 4) xyxy in pixels, cut at the edge of a height x width image."""
        x, y = self.edges(height, width)
        left, top = np.meshgrid(x[:-1], y[:-1])
        right, bottom = np.meshgrid(x[1:], y[1:])
        return np.stack([left, top, right, bottom], -1).reshape(-1, 4)

    def is_padding(self, height: int, width: int) -> np.ndarray:
        """Return (R,) True for regions with no pixel of a height x width image in them."""
        boxes = self.boxes(height, width)
        return np.any(boxes[:, 2:] <= boxes[:, :2], axis=1)

    def region_at(self, x: float, y: float) -> int:
        """Return the number of the region around a pixel of the image."""
        row = min(int(y // self.cell_height), self.rows - 1)
        return row * self.cols + min(int(x // self.cell_width), self.cols - 1)
