"""Draw how good a detector is: precision-recall and confidence curves, the confusion matrix, the size study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.drawing.figures import GREY, INK, new_figure, save_figure, series_colour, text_font, title, write_legend
from utils.drawing.fonts import drawable_names
from utils.evaluation.metrics import Curves

LEGEND_CLASSES = 20  # more classes than this are drawn as thin grey lines without names
ANNOTATED_CLASSES = 30  # the confusion matrix prints its numbers up to here
STUDY_COLUMNS = 10  # seven results and three times


def plot_curves(curves: Curves, names: Sequence[str], save_dir: Path | str) -> list[Path]:
    """Write PR_curve.png, F1_curve.png, P_curve.png and R_curve.png below `save_dir`; return their paths."""
    words, scores, folder = drawable_names(names), curves.ap[:, 0], Path(save_dir)
    labels = [words[i] if i < len(words) else f"class {i}" for i in curves.classes.tolist()]
    scored = [f"{label} {score:.3f}" for label, score in zip(labels, scores, strict=True)]
    mean = f"{scores.mean():.3f} mAP@0.5" if len(scores) else ""
    heading = "Precision and recall", "Recall", "Precision"
    paths = [_plot_curve(folder / "PR_curve.png", curves.confidence, curves.pr_precision, scored, heading, mean)]
    for word, lines in (("F1", curves.f1), ("Precision", curves.precision), ("Recall", curves.recall)):
        short = word if word == "F1" else word[0]
        heading = f"{word} by confidence threshold", "Confidence", word
        paths.append(_plot_curve(folder / f"{short}_curve.png", curves.confidence, lines, labels, heading))
    return paths


def _plot_curve(
    path: Path, x: np.ndarray, lines: np.ndarray, labels: Sequence[str], heading: tuple[str, str, str], mean: str = ""
) -> Path:
    """Draw one line for each class, named while there are few enough, and their mean, called `mean` or by its best."""
    figure, (axis,) = new_figure(1, 1, (8.5, 5.5))
    for i, line in enumerate(lines):
        style: dict[str, Any] = {"color": GREY, "linewidth": 0.6, "alpha": 0.4}
        if len(lines) <= LEGEND_CLASSES:
            label = f" {labels[i]}" if labels[i].startswith("_") else labels[i]  # matplotlib hides what begins so
            style = {"color": series_colour(i), "linewidth": 1.2, "alpha": 0.85, "label": label}
        axis.plot(x, line, **style)
    if len(lines):
        average = lines.mean(0)
        best, highest = x[average.argmax()], average.max()
        label = f"all classes {mean or f'{highest:.2f} at {best:.3f}'}"
        axis.plot(x, average, color=INK, linewidth=2.6, label=label)
        if mean:
            axis.fill_between(x, average, color=INK, alpha=0.06, linewidth=0)
        else:
            axis.plot(best, highest, "o", color=INK, markersize=6, markeredgecolor="white")
        write_legend(axis, 9, loc="upper left", bbox_to_anchor=(1.02, 1))
    title(axis, *heading)
    axis.set(xlim=(0, 1), ylim=(0, 1.01))
    return save_figure(figure, path)


def plot_confusion_matrix(matrix: np.ndarray, names: Sequence[str], path: Path | str, normalize: bool = True) -> Path:
    """Draw a confusion matrix, (nc + 1, nc + 1): rows predicted, columns true, background last.

    `normalize` divides each column by its sum, so that a column says what became of the objects of one true class.
    Cells below 0.5 % (or without a count) stay blank.
    """
    counts = np.asarray(matrix, float)
    if counts.shape != (len(names) + 1, len(names) + 1):
        raise ValueError(f"a confusion matrix for {len(names)} names has {len(names) + 1} rows, not {counts.shape}")
    sums = counts.sum(0, keepdims=True)
    shown = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0) if normalize else counts
    blank = shown < (0.005 if normalize else 0.5)
    ticks = [*drawable_names(names), "background"]
    side, has_numbers = float(np.clip(0.42 * len(ticks) + 3, 5, 18)), len(ticks) <= ANNOTATED_CLASSES
    figure, (axis,) = new_figure(1, 1, (side + 1, side))
    axis.grid(False)
    most, digits = (1, 2) if normalize else (max(1, shown.max()), 0)
    cells = axis.imshow(np.ma.masked_array(shown, blank), cmap="Blues", vmin=0, vmax=most)
    figure.colorbar(cells, fraction=0.04, pad=0.02).ax.tick_params(colors=GREY, labelsize=9)
    for row, column in np.argwhere(~blank) if has_numbers else ():
        value, size = shown[row, column], float(np.clip(130 / len(ticks), 4.5, 9))
        ink = "white" if value > most / 2 else INK
        axis.text(column, row, f"{value:.{digits}f}", size=size, color=ink, ha="center", va="center")
    title(axis, "Confusion matrix" + (", share of each true class" if normalize else ""), "True", "Predicted")
    font = text_font(ticks, float(np.clip(0.6 * 72 * side / len(ticks), 4, 9)))  # 72 points to an inch
    places = np.arange(len(ticks))
    axis.set_xticks(places, ticks, fontproperties=font, parse_math=False, rotation=90)
    axis.set_yticks(places, ticks, fontproperties=font, parse_math=False, rotation=0)
    return save_figure(figure, path, dpi=160 if has_numbers else 120)


def plot_val_study(file: Path | str = "", dir: Path | str = "", x: Sequence[int] | None = None) -> Path:
    """Draw study_*.txt tables of `val.py --task study` (one `file`, or all of folder `dir`) into study.png beside them.

    A table has one row per image size: P, R, mAP50, mAP50-95, three losses, then the milliseconds per image of
    pre-processing, inference and NMS. `x` gives the image sizes (256, 384, ... when None). Raise ValueError for a
    missing or foreign table.
    """
    folder = Path(dir) if dir else Path(file).parent
    files = [Path(file)] if file else sorted(folder.glob("study*.txt"))
    if not files:
        raise ValueError(f"no study*.txt in {folder}; run val.py --task study first")
    figure, axes = new_figure(2, 3, (13, 7.5))
    for number, table in enumerate(files):
        rows = read_study(table)
        sizes = list(x) if x is not None else [256 + 128 * i for i in range(len(rows))]
        if len(sizes) != len(rows):
            raise ValueError(f"{table} has {len(rows)} rows for {len(sizes)} image sizes")
        style: dict[str, Any] = {"color": series_colour(number), "marker": "o", "markersize": 4, "linewidth": 1.8}
        for axis, column in zip(axes, (0, 1, 2, 3, 8), strict=False):
            axis.plot(sizes, rows[:, column], label=table.stem.removeprefix("study_"), **style)
        axes[5].plot(rows[:, 7:10].sum(1), rows[:, 3], **style)
    headings = ["Precision", "Recall", "mAP@0.5", "mAP@0.5:0.95", "Inference, ms per image"]
    for axis, heading in zip(axes, headings, strict=False):
        title(axis, heading, "Image size, px")
    title(axes[5], "Accuracy against time", "Total, ms per image", "mAP@0.5:0.95")
    write_legend(axes[0], 9)
    return save_figure(figure, folder / "study.png")


def read_study(table: Path) -> np.ndarray:
    """Return the rows of one study table, (sizes, 10). Raise ValueError for another file."""
    try:
        rows = np.loadtxt(table, dtype=float, ndmin=2)
    except (OSError, ValueError) as error:
        raise ValueError(f"{table} is no study table: {error}") from error
    if rows.shape[1] != STUDY_COLUMNS:
        raise ValueError(f"{table} has {rows.shape[1]} columns, a study table has {STUDY_COLUMNS}")
    return rows
