"""Draw routes: the grid of regions over the image, routed regions by rank, and how often each region is routed to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.drawing.figures import GREY, INK, new_figure, save_figure, title
from utils.routes.geometry import RoutingMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOSEN, ROUTED = "#ea580c", "#1d4ed8"
LARGEST_PANEL, SMALLEST_PANEL = (7.0, 4.0), (1.6, 2.8)  # height and width in inches
PANELS_PER_ROW = 4
LONGEST_NOTE = 8  # ranks in the line below a panel
TEXT_SHARE = 0.35  # of a region's shorter side that its number is high
SMALLEST_TEXT, LARGEST_TEXT = 4.0, 12.0  # points; numbers that would have to be smaller are left out


def draw_routes(file: Path | str, image: np.ndarray, routes: RoutingMap, queries: Sequence[int]) -> Path:
    """Draw a panel for each query region, and beside them how often each region is routed to; return the file.

    `image` is the network's input, (H, W, 3) uint8 RGB; `queries` are numbers of regions. Routed regions are numbered
    by rank, and the better the darker. Those of padding alone are not drawn: a line below the panel has their ranks.
    """
    height, width = image.shape[:2]
    count = len(queries) + 1
    columns = min(count, PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    scale = min(LARGEST_PANEL[0] / height, LARGEST_PANEL[1] / width)  # inches per pixel
    panel_height, panel_width = max(scale * height, SMALLEST_PANEL[0]), max(scale * width, SMALLEST_PANEL[1])
    figure, axes = new_figure(rows, columns, (panel_width * columns + 0.8, (panel_height + 0.5) * rows + 0.4))
    size = f"{routes.cell_height:g} x {routes.cell_width:g} pixels"
    heading = f"{routes.name}: {routes.rows} x {routes.cols} regions of {size}, top-k {routes.topk}"
    figure.suptitle(heading, color=INK, fontweight="bold")
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis, query in zip(axes, queries, strict=False):
        _draw_query(axis, image, routes, query, scale)
    _draw_counts(axes[count - 1], image, routes, scale)
    return save_figure(figure, file, dpi=110)


def _draw_grid(axis: Axes, image: np.ndarray, routes: RoutingMap) -> None:
    """Draw the image, paler than it is, and the borders of the regions."""
    height, width = image.shape[:2]
    x, y = routes.edges(height, width)
    axis.imshow(image, extent=(0, width, height, 0), alpha=0.6)
    for shade, thickness in (("white", 1.4), (INK, 0.5)):  # a dark line in a light one shows on every image
        axis.vlines(x, 0, height, colors=shade, linewidths=thickness, alpha=0.6)
        axis.hlines(y, 0, width, colors=shade, linewidths=thickness, alpha=0.6)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _draw_query(axis: Axes, image: np.ndarray, routes: RoutingMap, query: int, scale: float) -> None:
    """Draw one region and those it is routed to."""
    _draw_grid(axis, image, routes)
    boxes, padding = routes.boxes(*image.shape[:2]), routes.is_padding(*image.shape[:2])
    outlines = boxes[:, [0, 2, 2, 0, 0]], boxes[:, [1, 1, 3, 3, 1]]  # x and y of closed lines
    hidden = []
    for rank, region in enumerate(routes.index[query].tolist(), 1):
        if padding[region]:
            hidden.append(str(rank))
            continue
        alpha = 0.75 - 0.5 * (rank - 1) / max(routes.topk - 1, 1)
        axis.fill(outlines[0][region], outlines[1][region], color=ROUTED, linewidth=0, alpha=alpha)
        _write(axis, boxes[region], str(rank), scale)
    for colour, thickness in (("white", 4), (CHOSEN, 2.2)):
        axis.plot(outlines[0][query], outlines[1][query], color=colour, linewidth=thickness)
    ranks = ", ".join(hidden[:LONGEST_NOTE]) + ", ..." * (len(hidden) > LONGEST_NOTE)
    note = f"rank{'s' * (len(hidden) > 1)} {ranks}: padding" if hidden else ""
    row, column = divmod(query, routes.cols)
    title(axis, f"Row {row + 1}, column {column + 1} is routed to", note)


def _draw_counts(axis: Axes, image: np.ndarray, routes: RoutingMap, scale: float) -> None:
    """Draw how often each region is routed to, by those of padding too, over a grey copy of the image."""
    height, width = image.shape[:2]
    _draw_grid(axis, image.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8), routes)
    counts, padding = np.bincount(routes.index.ravel(), minlength=len(routes.index)), routes.is_padding(height, width)
    most = max(int(counts[~padding].max()), 1)
    grid = counts.reshape(routes.rows, routes.cols)
    mesh = axis.pcolormesh(*routes.edges(height, width), grid, cmap="YlOrRd", vmin=0, vmax=most, alpha=0.65)
    ticks = np.unique(np.linspace(0, most, 6).round()).tolist()
    bar = axis.figure.colorbar(mesh, ax=axis, ticks=ticks, fraction=0.05, pad=0.02)
    bar.set_label("regions routed here", color=INK)
    bar.ax.spines[:].set_visible(False)
    bar.ax.tick_params(colors=GREY, length=0)
    for count, box, is_outside in zip(counts.tolist(), routes.boxes(height, width), padding, strict=True):
        if count and not is_outside:
            _write(axis, box, str(count), scale)
    lost = int(counts[padding].sum())
    title(axis, "Routed to how often", f"{lost} of {routes.index.size} routes end in padding" if lost else "")


def _write(axis: Axes, box: np.ndarray, text: str, scale: float) -> None:
    """Write a number in the middle of a region, where it can be read; `scale` is inches per pixel."""
    size = TEXT_SHARE * (box[2:] - box[:2]).min() * scale * 72
    if size >= SMALLEST_TEXT:
        x, y = ((box[:2] + box[2:]) / 2).tolist()
        plate = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        size = min(size, LARGEST_TEXT)
        axis.text(x, y, text, size=size, color=INK, ha="center", va="center", bbox=plate, clip_on=True)
