"""Figures without pyplot: a white sheet, quiet axes, one palette. Nothing here changes matplotlib's settings.

matplotlib is imported by the functions that need it: importing it writes a list of fonts to the user's cache, and
whoever draws nothing need not wait for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.drawing.fonts import BUNDLED, font_runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

INK, GREY, GRID = "#22303c", "#7b8794", "#e4e8ec"
# Lines that must look different, by hue and by lightness; more of them than this take colours from a map.
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
    """Font properties that can draw all `texts`: matplotlib's own fonts, then for other scripts those of `fonts`."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    paths = {path: None for text in texts for path, _ in font_runs(text)}
    others = [_family(path) for path in paths if path != BUNDLED]  # matplotlib's own has all that Pillow's has
    return FontProperties(family=[*rcParams["font.family"], *others], size=size)


@cache
def _family(path: str) -> str:
    """The name of the family of a font file, by which matplotlib finds it from now on."""
    from matplotlib.font_manager import FontProperties, fontManager

    fontManager.addfont(path)
    return FontProperties(fname=path).get_name()


def write_legend(axis: Axes, size: float, **place: Any) -> None:
    """A legend without a frame, in fonts that have its letters; a `$` in a name is a `$`."""
    entries = axis.get_legend_handles_labels()[1]
    legend = axis.legend(frameon=False, prop=text_font(entries, size), labelcolor=INK, **place)
    for text in legend.get_texts():
        text.set_parse_math(False)


def series_colour(index: int) -> str:
    """Colour of the line with this number."""
    return SERIES[index % len(SERIES)]


def save_figure(figure: Figure, file: Path | str, dpi: int = 160) -> Path:
    """Write the figure to `file` (its folder is made) and return the path."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"pil_kwargs": {"quality": 92}} if path.suffix.lower() in {".jpg", ".jpeg"} else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # said once by `fonts`
        figure.savefig(path, dpi=dpi, **options)
    return path
