"""What training and validation look like: batch mosaics, training curves, label statistics, feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from utils.base.log import LOGGER
from utils.boxes.convert import xywh2xyxy, xyxy2xywh
from utils.drawing.annotator import Annotator, colors
from utils.drawing.figures import (
    GREY,
    INK,
    draw_heat,
    draw_outlines,
    name_ticks,
    new_figure,
    save_figure,
    series_colour,
    title,
    write_legend,
)
from utils.drawing.fonts import drawable_names
from utils.drawing.writers import write_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHOWN_CONFIDENCE = 0.25  # predictions below it are left out of the mosaics
BLANK = 255  # unused tiles are white
FEATURE_TILE = 160  # pixels that small feature maps are enlarged to, about
OUTLINED_BOXES = 1000  # as many label outlines as the eye can take

# results.png, panel by panel, in the order of YOLOv5
RESULT_PANELS = (
    "train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- batch mosaics
def output_to_target(output: Sequence[Tensor]) -> np.ndarray:
    """NMS results, (n, 6) xyxy, confidence, class per picture, as one (N, 7) image, class, cx, cy, w, h, confidence."""
    rows = [np.zeros((0, 7))]
    for image, detections in enumerate(output):
        values = detections.detach().cpu().double()
        centred = xyxy2xywh(values[:, :4])
        number = torch.full((len(values), 1), float(image), dtype=torch.float64)
        rows.append(torch.cat([number, values[:, 5:6], centred, values[:, 4:5]], 1).numpy())
    return np.concatenate(rows)


def plot_images(
    images: Tensor | np.ndarray,
    targets: Tensor | np.ndarray,
    paths: Sequence[str | Path] | None = None,
    fname: Path | str = "images.jpg",
    names: Sequence[str] | dict[int, str] | None = None,
    max_size: int = 1920,
    max_subplots: int = 16,
) -> Path:
    """Write a mosaic of a batch with its labels or predictions, filled column by column as in v6.1.

    `images` is (B, 3, H, W) RGB, uint8 or 0..1; `targets` is (N, 6) image, class, cx, cy, w, h, with the confidence as
    seventh column for predictions (below 0.25 they are left out). Boxes are fractions of a picture when none exceeds
    1.01, else pixels. The mosaic's longer side is at most `max_size` pixels.
    """
    tiles = _tiles(images, max_subplots)
    count, height, width = tiles.shape[:3]
    side = math.ceil(math.sqrt(count))
    shrink = min(1.0, max_size / (side * max(height, width)))
    rows, columns = max(round(shrink * height), 1), max(round(shrink * width), 1)
    mosaic = np.full((side * rows, side * columns, 3), BLANK, np.uint8)
    boxes = np.asarray(targets.detach().cpu() if isinstance(targets, Tensor) else targets, float)
    scale = np.array([columns, rows] * 2) / (1 if _are_fractions(boxes) else np.array([width, height] * 2))
    labels = None if names is None else drawable_names(names)
    for i, tile in enumerate(tiles):
        x, y = i // side * columns, i % side * rows
        part = cv2.resize(tile, (columns, rows), interpolation=cv2.INTER_AREA)
        line, text = max(round((rows + columns) / 420), 1), max(round(rows / 38), 9)
        part = Annotator(part, line_width=line, font_size=text, example="".join(labels or ()))
        _draw_targets(part, boxes[boxes[:, 0] == i] if len(boxes) else boxes, scale, labels)
        if paths is not None:
            part.font_size = max(round(rows / 34), 10)
            _caption(part, Path(paths[i]).name[:40])
        mosaic[y : y + rows, x : x + columns] = part.result()
        mosaic[y : y + rows, x], mosaic[y, x : x + columns] = BLANK, BLANK
    return write_image(fname, mosaic[..., ::-1])


def _tiles(images: Tensor | np.ndarray, most: int) -> np.ndarray:
    """The first pictures as (n, H, W, 3) uint8 RGB."""
    batch = images[:most]
    batch = batch.detach().float().cpu().numpy() if isinstance(batch, Tensor) else np.asarray(batch, np.float32)
    if batch.ndim != 4 or not len(batch):
        raise ValueError(f"a mosaic wants a batch (B, 3, H, W) of at least one picture, not {batch.shape}")
    if batch.max() <= 1:
        batch = batch * 255
    return np.ascontiguousarray(batch.round().clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


def _are_fractions(targets: np.ndarray) -> bool:
    return not len(targets) or targets[:, 2:6].max() <= 1.01


def _draw_targets(part: Annotator, rows: np.ndarray, scale: np.ndarray, labels: list[str] | None) -> None:
    for row in rows:
        confidence = row[6] if len(row) > 6 else None
        if confidence is not None and confidence <= SHOWN_CONFIDENCE:
            continue
        number = int(row[1])
        word = labels[number] if labels and number < len(labels) else f"#{number}"
        label = word if confidence is None else f"{word} {confidence:.1f}"
        part.box_label(xywh2xyxy(row[None, 2:6])[0] * scale, label, color=colors(number))


def _caption(part: Annotator, text: str) -> None:
    """File name on a dark strip, readable on any picture."""
    strip = part.im[: round(part.font_size * 1.5)]
    strip[:] = strip // 3
    part.text((part.font_size // 2, part.font_size // 8), text)


# --------------------------------------------------------------------------------------------------- training curves
def plot_results(file: Path | str, dir: Path | str = "") -> Path:
    """Draw results.csv (or every results*.csv of folder `dir`) into results.png beside it, two rows of panels.

    Faint lines are the values, strong ones a running mean of a tenth of the run. Raises ValueError when there is no
    readable table.
    """
    files = sorted(Path(dir).glob("results*.csv")) if dir else [Path(file)]
    if not files:
        raise ValueError(f"no results*.csv in {Path(dir).resolve()}")
    tables = {path.stem: _read_results(path) for path in files}
    panels = [name for name in RESULT_PANELS if name in tables[files[0].stem].columns]
    if not panels:
        raise ValueError(f"{files[0]} has none of the columns {', '.join(RESULT_PANELS)}")
    columns = math.ceil(len(panels) / 2)
    figure, axes = new_figure(min(len(panels), 2), columns, (2.7 * columns, 5.2))
    for axis, name in zip(axes, panels, strict=False):
        for number, (stem, table) in enumerate(tables.items()):
            _draw_result(axis, table, name, series_colour(number), stem)
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)  # there is no half epoch
        title(axis, name.removeprefix("metrics/"), "epoch" if axis.get_subplotspec().is_last_row() else "")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if len(tables) > 1:
        write_legend(axes[0], 8)
    return save_figure(figure, files[0].parent / "results.png")


def _read_results(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, skipinitialspace=True)
        return table.rename(columns=lambda name: name.strip()).apply(pd.to_numeric, errors="coerce")
    except (OSError, ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path} is no table of results: {error}") from error


def _result_columns(table: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values of one column; no values where the table lacks it."""
    if name not in table.columns:
        return np.zeros(0), np.zeros(0)
    values = table[name].to_numpy(float)
    return table["epoch"].to_numpy(float) if "epoch" in table.columns else np.arange(len(values)), values


def _draw_result(axis: Axes, table: pd.DataFrame, name: str, colour: str, stem: str) -> None:
    x, values = _result_columns(table, name)
    smooth = pd.Series(values).rolling(max(len(values) // 10, 1), center=True, min_periods=1).mean()
    few = len(values) <= 30
    axis.plot(x, values, color=colour, alpha=0.4, linewidth=1, marker="o" if few else "", markersize=3)
    axis.plot(x, smooth, color=colour, linewidth=2, label=stem)
    if name.startswith("metrics/"):
        axis.set_ylim(0, max(0.05, min(1.0, 1.1 * np.nanmax(values, initial=0.0))))
    if len(values):
        axis.set_title(f"{values[-1]:.3g}", loc="right", fontsize=9, color=GREY)


# -------------------------------------------------------------------------------------------------- label statistics
def plot_labels(labels: np.ndarray, names: Sequence[str] | dict[int, str], save_dir: Path | str) -> list[Path]:
    """Write labels.jpg (classes, outlines, centres, sizes) and labels_correlogram.jpg; returns their paths.

    `labels` is (N, 5) class, cx, cy, w, h as fractions of the picture.
    """
    labels = np.asarray(labels, float).reshape(-1, 5)
    folder = Path(save_dir)
    LOGGER.info(f"Plotting labels to {folder / 'labels.jpg'}")
    figure, (classes, outlines, centres, sizes) = new_figure(2, 2, (11, 9))
    _class_counts(classes, labels[:, 0], drawable_names(names))
    _outlines(outlines, labels[:, 1:])
    _density(centres, labels[:, 1], labels[:, 2], ("Centres", "x", "y"))
    centres.invert_yaxis()  # as in the picture: y grows downwards
    _density(sizes, labels[:, 3], labels[:, 4], ("Sizes", "width", "height"))
    return [save_figure(figure, folder / "labels.jpg"), _correlogram(labels[:, 1:], folder / "labels_correlogram.jpg")]


def _class_counts(axis: Axes, numbers: np.ndarray, names: list[str]) -> None:
    counts = np.bincount(numbers.astype(int), minlength=len(names))
    names = [*names, *(f"#{i}" for i in range(len(names), len(counts)))]
    bars = axis.bar(range(len(counts)), counts, color=[np.divide(colors(i), 255) for i in range(len(counts))])
    axis.grid(False, axis="x")
    title(axis, f"{len(numbers):,} labels in {len(counts)} classes", "", "labels")
    if len(counts) <= 30:
        is_crowded = len(counts) > 6 or max(map(len, names), default=0) * len(names) > 70  # characters in a row
        name_ticks(axis, "x", names, 9, rotation=90 if is_crowded else 0)
        axis.bar_label(bars, fontsize=8, color=GREY, padding=2)


def _outlines(axis: Axes, boxes: np.ndarray) -> None:
    """Boxes around a common centre: their range of shapes at a glance."""
    chosen = boxes[np.linspace(0, len(boxes) - 1, min(len(boxes), OUTLINED_BOXES)).astype(int)] if len(boxes) else boxes
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2
    draw_outlines(axis, chosen[:, None, 2:] * corners + 0.5)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    title(axis, "Shapes, as shares of the picture")


def _density(axis: Axes, x: np.ndarray, y: np.ndarray, words: tuple[str, str, str]) -> None:
    """How often pairs of values occur."""
    draw_heat(axis, *np.histogram2d(x, y, bins=50, range=[[0, 1], [0, 1]]))
    axis.set_aspect("equal")
    title(axis, *words)


def _correlogram(boxes: np.ndarray, path: Path) -> Path:
    """Every pair of x, y, width and height as a density, each alone as a histogram."""
    words = ("x", "y", "width", "height")
    figure, axes = new_figure(4, 4, (10, 10))
    for cell, axis in enumerate(axes):
        row, column = divmod(cell, 4)
        if column > row:
            axis.set_visible(False)
            continue
        if row == column:
            axis.hist(boxes[:, row], bins=50, range=(0, 1), color="#3b82f6")
        else:
            _density(axis, boxes[:, column], boxes[:, row], ("", "", ""))
            axis.set_aspect("auto")
        axis.set_xlim(0, 1)
        axis.set_xlabel(words[column] if row == 3 else "", color=INK)
        axis.set_ylabel(words[row] if column == 0 and row else "", color=INK)
    return save_figure(figure, path, dpi=150)


# ------------------------------------------------------------------------------------------------------ feature maps
def feature_visualization(
    x: Tensor, module_type: str, stage: int, n: int = 32, save_dir: Path | str = "runs/detect/exp"
) -> Path | None:
    """Draw the first `n` channels of a layer's output (B, C, H, W), first picture, eight to a row.

    Writes stage{stage}_{type}_features.png and the whole map of that picture as .npy. The Detect layer and maps of a
    single pixel have nothing to show: None is returned for them.
    """
    kind = module_type.rpartition(".")[2]
    if kind == "Detect" or x.ndim != 4 or min(x.shape[2:]) <= 1:
        return None
    maps = x[0].detach().float().cpu().numpy()
    path = Path(save_dir) / f"stage{stage}_{kind}_features.png"
    write_image(path, _channel_sheet(maps[:n]))
    np.save(path.with_suffix(".npy"), maps)
    return path


def _channel_sheet(maps: np.ndarray, columns: int = 8, gap: int = 4) -> np.ndarray:
    """Channels (C, H, W) side by side as a BGR picture, each from its lowest value to its highest."""
    zoom = max(FEATURE_TILE // max(maps.shape[1:]), 1)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    shades = ((maps - low) / np.maximum(high - low, 1e-12) * 255).astype(np.uint8).repeat(zoom, 1).repeat(zoom, 2)
    rows, height, width = math.ceil(len(maps) / columns), shades.shape[1] + gap, shades.shape[2] + gap
    sheet = np.full((rows * height + gap, columns * width + gap, 3), BLANK, np.uint8)
    for i, shade in enumerate(shades):
        y, x = i // columns * height + gap, i % columns * width + gap
        sheet[y : y + height - gap, x : x + width - gap] = cv2.applyColorMap(shade, cv2.COLORMAP_VIRIDIS)
    return sheet
