"""Pictures of how good a detector is: precision-recall and confidence curves, the confusion matrix, the size study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.drawing.figures import GREY, INK, name_ticks, new_figure, save_figure, series_colour, title, write_legend
from utils.drawing.fonts import drawable_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from utils.evaluation.metrics import Curves

LEGEND_CLASSES = 20  # more classes than this are drawn as thin grey lines without names
ANNOTATED_CLASSES = 30  # the confusion matrix prints its numbers up to here
STUDY_COLUMNS = 10  # seven results and three times


def plot_curves(curves: Curves, names: Sequence[str], save_dir: Path | str) -> list[Path]:
    """Write PR_curve.png, F1_curve.png, P_curve.png and R_curve.png below `save_dir`; returns their paths."""
    folder = Path(save_dir)
    labels = _labels_of(curves.classes, names)
    against_confidence = {"F1": curves.f1, "P": curves.precision, "R": curves.recall}
    words = {"F1": "F1", "P": "Precision", "R": "Recall"}
    paths = [_plot_precision_recall(curves, labels, folder / "PR_curve.png")]
    for short, lines in against_confidence.items():
        path = folder / f"{short}_curve.png"
        paths.append(_plot_against_confidence(curves.confidence, np.asarray(lines), labels, words[short], path))
    return paths


def _labels_of(classes: np.ndarray, names: Sequence[str]) -> list[str]:
    """The names of the classes that the rows of the curves belong to: those with labels, not simply the first ones."""
    words = drawable_names(names)
    shown = [words[int(i)] if int(i) < len(words) else f"class {int(i)}" for i in classes]
    return [f" {word}" if word.startswith("_") else word for word in shown]  # matplotlib hides lines called _something


def _class_lines(axis: Axes, x: np.ndarray, lines: np.ndarray, labels: list[str], values: np.ndarray | None) -> None:
    """One thin line for each class, named in the legend while there are few enough."""
    named = len(labels) <= LEGEND_CLASSES
    for i, line in enumerate(lines):
        label = (labels[i] if values is None else f"{labels[i]} {values[i]:.3f}") if named else None
        style = {"color": series_colour(i), "linewidth": 1.2} if named else {"color": GREY, "linewidth": 0.6}
        axis.plot(x, line, label=label, alpha=0.85 if named else 0.4, **style)


def _finish_curve(axis: Axes, labels: list[str], heading: tuple[str, str, str]) -> None:
    title(axis, *heading)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.01)
    if labels:
        write_legend(axis, 9, loc="upper left", bbox_to_anchor=(1.02, 1))


def _plot_precision_recall(curves: Curves, labels: list[str], path: Path) -> Path:
    figure, (axis,) = new_figure(1, 1, (8.5, 5.5))
    lines, scores = np.asarray(curves.pr_precision), np.asarray(curves.ap50)
    _class_lines(axis, curves.pr_recall, lines, labels, scores)
    if len(lines):
        mean = lines.mean(0)
        axis.plot(curves.pr_recall, mean, color=INK, linewidth=2.6, label=f"all classes {scores.mean():.3f} mAP@0.5")
        axis.fill_between(curves.pr_recall, mean, color=INK, alpha=0.06, linewidth=0)
    _finish_curve(axis, labels, ("Precision and recall", "Recall", "Precision"))
    return save_figure(figure, path)


def _plot_against_confidence(x: np.ndarray, lines: np.ndarray, labels: list[str], word: str, path: Path) -> Path:
    figure, (axis,) = new_figure(1, 1, (8.5, 5.5))
    _class_lines(axis, x, lines, labels, None)
    if len(lines):
        mean = lines.mean(0)
        best = int(mean.argmax())
        axis.plot(x, mean, color=INK, linewidth=2.6, label=f"all classes {mean[best]:.2f} at {x[best]:.3f}")
        axis.plot(x[best], mean[best], "o", color=INK, markersize=6, markeredgecolor="white")
    _finish_curve(axis, labels, (f"{word} by confidence threshold", "Confidence", word))
    return save_figure(figure, path)


def plot_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: Path | str, normalize: bool = True) -> Path:
    """Draw a confusion matrix, (nc + 1, nc + 1): rows predicted, columns true, background last.

    `normalize` divides each column by its sum, so that a column says what became of the objects of one true class.
    Cells below 0.5 % (or without a count) stay blank.
    """
    counts = np.asarray(matrix, float)
    if counts.ndim != 2 or counts.shape != (len(names) + 1, len(names) + 1):
        raise ValueError(f"a confusion matrix for {len(names)} names has {len(names) + 1} rows, not {counts.shape}")
    sums = counts.sum(0, keepdims=True)
    shown = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0) if normalize else counts
    shown = np.where(shown < (0.005 if normalize else 0.5), np.nan, shown)
    ticks = [*drawable_names(names), "background"]
    side = float(np.clip(0.42 * len(ticks) + 3, 5, 18))
    figure, (axis,) = new_figure(1, 1, (side + 1, side))
    axis.grid(False)
    picture = axis.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalize else None, aspect="equal")
    bar = figure.colorbar(picture, ax=axis, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=GREY, labelsize=9)
    title(axis, "Confusion matrix" + (", share of each true class" if normalize else ""), "True", "Predicted")
    size = float(np.clip(0.6 * 72 * side / len(ticks), 4, 9))  # 72 points to an inch
    name_ticks(axis, "x", ticks, size, rotation=90)
    name_ticks(axis, "y", ticks, size)
    if len(ticks) <= ANNOTATED_CLASSES:
        _write_cells(axis, shown, normalize)
    return save_figure(figure, path, dpi=160 if len(ticks) <= ANNOTATED_CLASSES else 120)


def _write_cells(axis: Axes, shown: np.ndarray, normalize: bool) -> None:
    largest = np.nanmax(shown) if np.isfinite(shown).any() else 1.0
    threshold = 0.55 * (1.0 if normalize else largest)
    size = float(np.clip(130 / len(shown), 4.5, 9))
    for row, column in np.argwhere(np.isfinite(shown)):
        value = shown[row, column]
        text = f"{value:.2f}" if normalize else f"{value:.0f}"
        axis.text(
            column, row, text, ha="center", va="center", fontsize=size, color="white" if value > threshold else INK
        )


def plot_val_study(file: Path | str = "", dir: Path | str = "", x: Sequence[int] | None = None) -> Path:
    """Draw study_*.txt tables of `val.py --task study` (one `file`, or all of folder `dir`) into study.png beside them.

    A table has one row per image size: P, R, mAP50, mAP50-95, three losses, then the milliseconds per image of
    pre-processing, inference and NMS. `x` gives the image sizes (256, 384, ... when None). Raises ValueError for a
    missing or foreign table.
    """
    folder = Path(dir) if dir else Path(file).parent
    files = [Path(file)] if file else sorted(folder.glob("study*.txt"))
    if not files:
        raise ValueError(f"no study*.txt in {folder}; run val.py --task study first")
    figure, axes = new_figure(2, 3, (13, 7.5))
    headings = ["Precision", "Recall", "mAP@0.5", "mAP@0.5:0.95", "Inference, ms per image"]
    for number, table in enumerate(files):
        rows = _read_study(table)
        sizes = list(x) if x is not None else [256 + 128 * i for i in range(len(rows))]
        if len(sizes) != len(rows):
            raise ValueError(f"{table} has {len(rows)} rows for {len(sizes)} image sizes")
        look = {"color": series_colour(number), "marker": "o", "markersize": 4, "linewidth": 1.8}
        for axis, column in zip(axes, (0, 1, 2, 3, 8), strict=False):
            axis.plot(sizes, rows[:, column], label=table.stem.removeprefix("study_"), **look)
        axes[5].plot(rows[:, 7:10].sum(1), rows[:, 3], **look)
    for axis, heading in zip(axes, headings, strict=False):
        title(axis, heading, "Image size, px")
    title(axes[5], "Accuracy against time", "Total, ms per image", "mAP@0.5:0.95")
    write_legend(axes[0], 9)
    return save_figure(figure, folder / "study.png")


def _read_study(table: Path) -> np.ndarray:
    """The rows of one study table, (sizes, 10)."""
    try:
        rows = np.loadtxt(table, dtype=float, ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f"{table} is no study table: {error}") from error
    if rows.shape[1] != STUDY_COLUMNS:
        raise ValueError(f"{table} has {rows.shape[1]} columns, a study table has {STUDY_COLUMNS}")
    return rows
