"""Figures without pyplot: a white sheet, quiet axes, one palette. Nothing here touches matplotlib's global state.

matplotlib is imported by the functions that need it, here and nowhere else: importing it writes a list of fonts to the
user's cache, and whoever draws nothing need not wait for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.annotator import BUNDLED, find_font

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

INK, GREY, GRID = "#22303c", "#7b8794", "#e4e8ec"
# Lines that must be told apart, by hue and by lightness; more of them than this take colours from a map.
SERIES = (
    "#2563eb", "#ea580c", "#16a34a", "#db2777", "#7c3aed", "#0891b2", "#ca8a04", "#dc2626", "#4d7c0f", "#475569",
)  # fmt: skip


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of `size` inches with rows x columns styled axes, given row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        style_axis(axis)
    return figure, axes


def style_axis(axis: Axes) -> None:
    """Light grid, no frame at the top and right, small grey ticks."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(GREY)
    axis.tick_params(colors=GREY, labelsize=9, length=3)
    axis.grid(True, color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)


def title(axis: Axes, text: str, x: str = "", y: str = "") -> None:
    """Title on the left, axis names below it and beside it."""
    axis.set_title(text, loc="left", color=INK, fontsize=11, fontweight="bold")
    axis.set_xlabel(x, color=INK, fontsize=10)
    axis.set_ylabel(y, color=INK, fontsize=10)


def text_font(texts: Iterable[str], size: float) -> FontProperties:
    """Font properties that can draw all `texts`: matplotlib's own font, or for other scripts one of the system's."""
    from matplotlib.font_manager import FontProperties

    joined = "".join(texts)
    path = BUNDLED if joined.isascii() else find_font(joined)
    return FontProperties(fname=path, size=size) if path else FontProperties(size=size)


def draw_heat(axis: Axes, counts: np.ndarray, x_edges: np.ndarray, y_edges: np.ndarray) -> None:
    """A table of counts, (x cells, y cells), from white to dark; their root is shown: rare cells stay visible."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("heat", ["#ffffff", "#bfdbfe", "#3b82f6", "#1e3a8a"])
    axis.pcolormesh(x_edges, y_edges, np.sqrt(counts.T), cmap=shades, rasterized=True)


def draw_outlines(axis: Axes, lines: np.ndarray) -> None:
    """Many thin lines at once: (n, points, 2), so faint that only where many run together it becomes dark."""
    from matplotlib.collections import LineCollection

    axis.add_collection(LineCollection(list(lines), colors=INK, linewidths=0.6, alpha=0.15))


def series_colour(index: int) -> str:
    """Colour of the line with this number."""
    return SERIES[index % len(SERIES)]


def save_figure(figure: Figure, file: Path | str, dpi: int = 160) -> Path:
    """Write the figure to `file` (its folder is made) and return the path."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"pil_kwargs": {"quality": 92}} if path.suffix.lower() in {".jpg", ".jpeg"} else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # said once by drawable_names
        figure.savefig(path, dpi=dpi, **options)
    return path
