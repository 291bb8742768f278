"""The picture of a search: fitness over every hyper-parameter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.base.files import replacing
from utils.drawing.figures import GREY, INK, new_figure, series_colour, title
from utils.evaluation.metrics import fitness

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROWS, COLUMNS, RESULTS = 6, 5, 7  # panels, and columns of evolve.csv before the hyper-parameters


def plot_evolve(evolve_csv: str | Path = "evolve.csv") -> Path:
    """Draw evolve.png beside an evolve.csv (YOLOv5's too) and return its path.

    A panel a hyper-parameter, with its best value as title: one dot a trial, light for early and dark for late ones,
    the best one ringed. What stayed at one value is a grey column. The last panel is the search over time.
    Raises ValueError when the file is not such a table.
    """
    import pandas as pd

    file = Path(evolve_csv)
    try:
        table = pd.read_csv(file, skipinitialspace=True).rename(columns=str.strip)
        values = table.to_numpy(dtype=float)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a table of trials ({error})") from None
    if len(values) == 0 or values.shape[1] <= RESULTS:
        raise ValueError(f"{file}: holds no trials; expected seven columns of results, then hyper-parameters")
    scores = fitness(values)
    names = list(table.columns[RESULTS:])[: ROWS * COLUMNS - 1]
    rows = -(-(len(names) + 1) // COLUMNS)
    figure, axes = new_figure(rows, COLUMNS, (16, 2.8 * rows))
    for name, column, axis in zip(names, values[:, RESULTS:].T, axes, strict=False):
        _draw_values(axis, name, column, scores)
    _draw_history(axes[len(names)], scores)
    for axis in axes[len(names) + 1 :]:
        axis.set_visible(False)
    legend = (
        f"Fitness of {len(scores)} trials over each hyper-parameter, light dots early and dark ones late, best ringed"
    )
    figure.suptitle(legend, x=0.01, ha="left", color=INK, fontsize=13)
    figure.get_layout_engine().set(h_pad=0.1, w_pad=0.08)
    return _save(figure, file.with_suffix(".png"))


def _draw_values(axis: Axes, name: str, column: np.ndarray, scores: np.ndarray) -> None:
    """Fitness over the values of one hyper-parameter."""
    best = int(np.argmax(scores))
    if len(column) > 1 and np.ptp(column) == 0:
        axis.scatter(column, scores, s=16, color=GREY, alpha=0.5, linewidths=0)
        axis.set_xticks(column[:1])
        axis.set_title("kept", loc="right", color=GREY, fontsize=9)
        title(axis, f"{name} {column[best]:.3g}")
        return
    axis.locator_params(axis="x", nbins=4)
    axis.scatter(column, scores, s=22, c=_shades(len(scores)), linewidths=0)
    axis.scatter(column[best], scores[best], s=110, facecolors="none", edgecolors=series_colour(1), linewidths=2)
    title(axis, f"{name} {column[best]:.3g}")


def _draw_history(axis: Axes, scores: np.ndarray) -> None:
    """Fitness of every trial, and the best so far."""
    numbers, best = np.arange(len(scores)), int(np.argmax(scores))
    axis.plot(numbers, np.maximum.accumulate(scores), color=INK, linewidth=1.2, drawstyle="steps-post", zorder=1)
    axis.scatter(numbers, scores, s=22, c=_shades(len(scores)), linewidths=0, zorder=2)
    axis.scatter(best, scores[best], s=110, facecolors="none", edgecolors=series_colour(1), linewidths=2, zorder=3)
    title(axis, f"fitness {scores[best]:.3g}", x="trial")


def _shades(count: int) -> np.ndarray:
    """A colour (count, 4) for each trial, from light to dark blue."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("time", ["#bfdbfe", "#3b82f6", "#1e3a8a"])(np.linspace(0, 1, count))


def _save(figure: Figure, file: Path) -> Path:
    """Two workers may finish at once: the picture is written whole, then moved to its name."""
    with replacing(file) as beside:
        figure.savefig(beside, format="png", dpi=100)
    return file
