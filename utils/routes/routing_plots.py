"""Pictures of where the regions look: the regions grid over the picture, routed regions by rank, and a heat map."""

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


def draw_routes(file: Path | str, picture: np.ndarray, routes: RoutingMap, queries: Sequence[int]) -> Path:
    """Draw a panel for each query region, and beside them how often each region is routed to; returns the file.

    `picture` is the network's input, (H, W, 3) uint8 RGB; `queries` are numbers of regions. Routed regions are numbered
    by rank, and the better the darker. Regions are cut at the picture's edge; those of padding alone are not drawn, but
    a line below the panel says which ranks they have.
    """
    height, width = picture.shape[:2]
    count = len(queries) + 1
    columns = min(count, PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    scale = _inches_per_pixel(height, width)
    panel_height, panel_width = max(scale * height, SMALLEST_PANEL[0]), max(scale * width, SMALLEST_PANEL[1])
    figure, axes = new_figure(rows, columns, (panel_width * columns + 0.8, (panel_height + 0.5) * rows + 0.4))
    size = f"{routes.cell_height:g} x {routes.cell_width:g} pixels"
    heading = f"{routes.name}: {routes.rows} x {routes.cols} regions of {size}, top-k {routes.topk}"
    figure.suptitle(heading, color=INK, fontweight="bold")
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis, query in zip(axes, queries, strict=False):
        _draw_grid(axis, picture, routes)
        _draw_query(axis, routes, query, (height, width))
    _draw_in_degree(axes[count - 1], picture, routes)
    return save_figure(figure, file, dpi=110)


def _draw_grid(axis: Axes, picture: np.ndarray, routes: RoutingMap) -> None:
    """The picture, paler than it is, and the borders of the regions."""
    height, width = picture.shape[:2]
    x, y = routes.edges(height, width)
    axis.imshow(picture, extent=(0, width, height, 0), alpha=0.6)
    for shade, thickness in (("white", 1.4), (INK, 0.5)):  # a dark line in a light one shows on every picture
        axis.vlines(x, 0, height, colors=shade, linewidths=thickness, alpha=0.6)
        axis.hlines(y, 0, width, colors=shade, linewidths=thickness, alpha=0.6)
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _draw_query(axis: Axes, routes: RoutingMap, query: int, shape: tuple[int, int]) -> None:
    """One region and those it is routed to."""
    boxes, padding = routes.boxes(*shape), routes.is_padding(*shape)
    unseen = []
    for rank, region in enumerate(routes.index[query], 1):
        if padding[region]:
            unseen.append(rank)
            continue
        corners = _corners(boxes[region])
        axis.fill(*corners, color=ROUTED, linewidth=0, alpha=0.75 - 0.5 * (rank - 1) / max(routes.topk - 1, 1))
        _write(axis, boxes[region], str(rank), shape)
    axis.plot(*_corners(boxes[query]), color="white", linewidth=4)
    axis.plot(*_corners(boxes[query]), color=CHOSEN, linewidth=2.2)
    row, column = divmod(query, routes.cols)
    title(axis, f"Row {row + 1}, column {column + 1} looks at", _note(unseen, routes.topk))


def _draw_in_degree(axis: Axes, picture: np.ndarray, routes: RoutingMap) -> None:
    """How often each region is routed to, over a grey copy of the picture."""
    height, width = picture.shape[:2]
    grey = picture.mean(2, keepdims=True).repeat(3, 2).astype(np.uint8)
    _draw_grid(axis, grey, routes)
    counts, padding = routes.in_degree(), routes.is_padding(height, width)
    most = max(int(counts.ravel()[~padding].max()), 1)
    mesh = axis.pcolormesh(*routes.edges(height, width), counts, cmap="YlOrRd", vmin=0, vmax=most, alpha=0.65)
    ticks = np.unique(np.linspace(0, most, 6).round())
    bar = axis.figure.colorbar(mesh, ax=axis, ticks=ticks, fraction=0.05, pad=0.02)
    bar.set_label("regions that look here", color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, length=0)
    for count, box, outside in zip(counts.flat, routes.boxes(height, width), padding, strict=True):
        if count and not outside:
            _write(axis, box, str(count), (height, width))
    lost = int(counts.ravel()[padding].sum())
    title(axis, "Looked at how often", f"{lost} of {routes.index.size} routes end in padding" if lost else "")


def _note(ranks: Sequence[int], topk: int) -> str:
    """What is said of routed regions that cannot be drawn: which ranks they have, how many there are in a long list."""
    if not ranks:
        return ""
    if len(ranks) > LONGEST_NOTE:
        return f"{len(ranks)} of {topk} regions are padding"
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: padding"


def _corners(box: np.ndarray) -> tuple[list[float], list[float]]:
    """The closed outline of a box: x and y."""
    left, top, right, bottom = box.tolist()
    return [left, right, right, left, left], [top, top, bottom, bottom, top]


def _inches_per_pixel(height: int, width: int) -> float:
    """How large the picture is drawn: as large as the largest panel allows."""
    return min(LARGEST_PANEL[0] / height, LARGEST_PANEL[1] / width)


def _write(axis: Axes, box: np.ndarray, text: str, shape: tuple[int, int]) -> None:
    """A number in the middle of a region, where it can be read; `shape` is the whole picture's."""
    size = TEXT_SHARE * (box[2:] - box[:2]).min() * _inches_per_pixel(*shape) * 72
    if size >= SMALLEST_TEXT:
        x, y = (box[:2] + box[2:]) / 2
        plate = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
        size = min(size, LARGEST_TEXT)
        axis.text(x, y, text, size=size, color=INK, ha="center", va="center", bbox=plate, clip_on=True)
