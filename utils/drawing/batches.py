"""What training and validation look like: batch mosaics, training curves, label statistics, feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.base.log import LOGGER
from utils.boxes.convert import xywh2xyxy, xyxy2xywh
from utils.drawing.annotator import Annotator, colors
from utils.drawing.figures import (
    GREY,
    INK,
    new_figure,
    save_figure,
    series_colour,
    style_axis,
    text_font,
    title,
    write_legend,
)
from utils.drawing.fonts import drawable_names
from utils.drawing.writers import write_image

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHOWN_CONFIDENCE = 0.25  # predictions below it are left out of the mosaics
BLANK = 255  # unused tiles are white
FEATURE_TILE, TILE_GAP = 160, 4  # pixels that small feature maps are enlarged to, about, and those between them
BOX = ["x", "y", "width", "height"]
SHOWN_LAYERS = 16  # named in a legend
OUTLINED_BOXES = 1000  # as many label outlines as the eye can take
HEAT = [(0, "#ffffff"), (1 / 9, "#bfdbfe"), (4 / 9, "#3b82f6"), (1, "#1e3a8a")]  # by the root: rare cells are visible

# results.png, panel by panel, in the order of YOLOv5
RESULT_PANELS = (
    "train/box_loss", "train/obj_loss", "train/cls_loss", "metrics/precision", "metrics/recall",
    "val/box_loss", "val/obj_loss", "val/cls_loss", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------------- batch mosaics
def output_to_target(output: Sequence[Tensor]) -> np.ndarray:
    """NMS results, (n, 6) xyxy, confidence, class per image, as one (N, 7) image, class, cx, cy, w, h, confidence."""
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
    seventh column for predictions (below 0.25 they are left out). Boxes are fractions of an image when none exceeds
    1.01, else pixels. The mosaic's longer side is at most `max_size` pixels.
    """
    batch = torch.as_tensor(images[:max_subplots]).detach().float().cpu()
    if batch.ndim != 4 or not len(batch):
        raise ValueError(f"a mosaic wants a batch (B, 3, H, W) of at least one image, not {tuple(batch.shape)}")
    batch = (batch * 255 ** int(batch.max() <= 1)).round().clip(0, 255).byte()
    tiles = batch.permute(0, 2, 3, 1).contiguous().numpy()
    count, height, width, _ = tiles.shape
    side = math.ceil(math.sqrt(count))
    shrink = min(1.0, max_size / (side * max(height, width)))
    rows, columns = max(round(shrink * height), 1), max(round(shrink * width), 1)
    mosaic = np.full((side * rows, side * columns, 3), BLANK, np.uint8)
    boxes = torch.as_tensor(targets).detach().cpu().numpy().astype(float)
    are_fractions = not len(boxes) or boxes[:, 2:6].max() <= 1.01
    scale = np.array([columns, rows] * 2) / (1 if are_fractions else np.array([width, height] * 2))
    labels = None if names is None else drawable_names(names)
    for i, tile in enumerate(tiles):
        x, y = i // side * columns, i % side * rows
        part = cv2.resize(tile, (columns, rows), interpolation=cv2.INTER_AREA)
        line, text = max(round((rows + columns) / 420), 1), max(round(rows / 38), 9)
        drawing = Annotator(part, line_width=line, font_size=text, example="".join(labels or ()))
        _draw_targets(drawing, boxes[boxes[:, 0] == i] if len(boxes) else boxes, scale, labels)
        if paths is not None:  # the file's name on a dark strip, readable on any image
            drawing.font_size = max(round(rows / 34), 10)
            drawing.im[: round(drawing.font_size * 1.5)] //= 3
            drawing.text((drawing.font_size // 2, drawing.font_size // 8), Path(paths[i]).name[:40])
        mosaic[y : y + rows, x : x + columns] = drawing.result()
        mosaic[y : y + rows, x], mosaic[y, x : x + columns] = BLANK, BLANK
    return write_image(fname, mosaic[..., ::-1])


def _draw_targets(drawing: Annotator, rows: np.ndarray, scale: np.ndarray, labels: list[str] | None) -> None:
    """Draw the targets (n, 6) of one image, or its predictions (n, 7) that are sure enough; `labels` are the names."""
    for row in rows:
        confidence = row[6] if len(row) > 6 else None
        if confidence is not None and confidence <= SHOWN_CONFIDENCE:
            continue
        number = int(row[1])
        name = labels[number] if labels and number < len(labels) else f"#{number}"
        label = name if confidence is None else f"{name} {confidence:.1f}"
        drawing.box_label(xywh2xyxy(row[None, 2:6])[0] * scale, label, color=colors(number))


# --------------------------------------------------------------------------------------------------- training curves
def plot_results(file: Path | str, dir: Path | str = "") -> Path:
    """Draw results.csv (or every results*.csv of folder `dir`) into results.png beside it, two rows of panels.

    Faint lines are the values, strong ones a running mean of a tenth of the run. A residual.csv beside them has one
    more panel. Raises ValueError when there is no readable table.
    """
    files = sorted(Path(dir).glob("results*.csv")) if dir else [Path(file)]
    if not files:
        raise ValueError(f"no results*.csv in {Path(dir).resolve()}")
    tables = {path.stem: read_results(path) for path in files}
    panels = [name for name in RESULT_PANELS if name in tables[files[0].stem].columns]
    if not panels:
        raise ValueError(f"{files[0]} has none of the columns {', '.join(RESULT_PANELS)}")
    columns = math.ceil(len(panels) / 2)
    figure, axes = _lay_out(min(len(panels), 2), columns, files[0].with_name("residual.csv"))
    for place, (axis, name) in enumerate(zip(axes, panels, strict=False)):
        for number, (stem, table) in enumerate(tables.items()):
            _draw_result(axis, table, name, series_colour(number), stem)
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)  # there is no half epoch
        title(axis, name.removeprefix("metrics/"), "epoch" if place >= len(axes) - columns else "")
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if len(tables) > 1:
        write_legend(axes[0], 8)
    return save_figure(figure, files[0].parent / "results.png")


def read_results(path: Path) -> pd.DataFrame:
    """Read a results.csv, whose names may be padded, as numbers (nan for what is none), with a column `epoch`.

    Raises ValueError for what is no table.
    """
    import pandas as pd  # a third of a second that validation need not wait for

    try:
        table = pd.read_csv(path, skipinitialspace=True)
        table = table.rename(columns=lambda name: name.strip()).apply(pd.to_numeric, errors="coerce").astype(float)
    except (OSError, ValueError, OverflowError) as error:  # pandas' own errors are ValueErrors
        raise ValueError(f"{path} is no table of results: {error}") from error
    return table if "epoch" in table.columns else table.assign(epoch=np.arange(float(len(table))))


def _lay_out(rows: int, columns: int, scales: Path) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; a table of scales, where there is one, is drawn beside them."""
    if not scales.is_file():
        return new_figure(rows, columns, (2.7 * columns, 5.2))
    figure, axes = new_figure(2, columns + 1, (2.7 * (columns + 1), 5.2))
    _draw_scales(axes.pop(columns), axes.pop(), read_results(scales))
    return figure, axes


def _draw_scales(axis: Axes, key: Axes, table: pd.DataFrame) -> None:
    """Draw how far each layer that began at zero has come, and name the layers in the empty `key`, largest first."""
    largest = table.drop(columns="epoch").max().sort_values(ascending=False)
    for number, name in enumerate(largest.index):
        style: dict[str, Any] = {"color": series_colour(number), "linewidth": 2}
        axis.plot(
            table["epoch"], table[name], label=name, marker="o" if len(table) <= 30 else "", markersize=3, **style
        )
        if number < SHOWN_LAYERS:
            key.plot([], [], label=name, **style)
    axis.locator_params(axis="x", integer=True, min_n_ticks=1)
    axis.set_ylim(0)
    title(axis, "layers begun at zero", "epoch", "RMS of weights")
    key.set_axis_off()
    write_legend(key, 8, loc="upper left")


def _draw_result(axis: Axes, table: pd.DataFrame, name: str, colour: str, stem: str) -> None:
    values = table.get(name, table["epoch"] * math.nan)  # of an older version without it
    smooth = values.rolling(max(len(values) // 10, 1), center=True, min_periods=1).mean()
    few = len(values) <= 30
    axis.plot(table["epoch"], values, color=colour, alpha=0.4, linewidth=1, marker="o" if few else "", markersize=3)
    axis.plot(table["epoch"], smooth, color=colour, linewidth=2, label=stem)
    if name.startswith("metrics/"):
        axis.set_ylim(0, max(0.05, min(1.0, 1.1 * np.nanmax([0.0, *values]))))
    if len(values):
        axis.set_title(f"{values.iloc[-1]:.3g}", loc="right", fontsize=9, color=GREY)


# -------------------------------------------------------------------------------------------------- label statistics
def plot_labels(labels: np.ndarray, names: Sequence[str] | dict[int, str], save_dir: Path | str) -> list[Path]:
    """Write labels.jpg (classes, outlines, centres, sizes) and labels_correlogram.jpg; returns their paths.

    `labels` is (N, 5) class, cx, cy, w, h as fractions of the image.
    """
    import pandas as pd
    import seaborn  # costs seconds, and only this needs it
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    labels = np.asarray(labels, float).reshape(-1, 5)
    folder = Path(save_dir)
    LOGGER.info(f"Plotting labels to {folder / 'labels.jpg'}")
    figure, (classes, outlines, *densities) = new_figure(2, 2, (11, 9))
    known = drawable_names(names)
    counts = np.bincount(labels[:, 0].astype(int), minlength=len(known))
    known += [f"#{i}" for i in range(len(known), len(counts))]
    bars = classes.bar(range(len(counts)), counts, color=[np.divide(colors(i), 255) for i in range(len(counts))])
    classes.grid(False, axis="x")
    title(classes, f"{len(labels):,} labels in {len(counts)} classes", "", "labels")
    if len(counts) <= 30:
        turn = 90 * (len(counts) > 6 or max(map(len, known), default=0) * len(known) > 70)  # characters in a row
        font = text_font(known, 9)
        classes.set_xticks(range(len(known)), known, fontproperties=font, parse_math=False, rotation=turn)
        classes.bar_label(bars, fontsize=8, color=GREY, padding=2)
    # boxes around a common centre, so faint that only where many run together it becomes dark
    chosen = labels[np.linspace(0, len(labels) - 1, min(len(labels), OUTLINED_BOXES)).astype(int), 1:]
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]]) / 2
    lines = list(chosen[:, None, 2:] * corners + 0.5)
    outlines.add_collection(LineCollection(lines, colors=INK, linewidths=0.6, alpha=0.15))
    outlines.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    title(outlines, "Shapes, as shares of the image")
    heat = LinearSegmentedColormap.from_list("heat", HEAT)
    for axis, text, x, y in zip(densities, ("Centres", "Sizes"), (1, 3), (2, 4), strict=True):
        axis.hist2d(labels[:, x], labels[:, y], bins=50, range=((0, 1), (0, 1)), cmap=heat)
        axis.set_aspect("equal")
        title(axis, text, BOX[x - 1], BOX[y - 1])
    densities[0].invert_yaxis()  # as in the image: y grows downwards
    grid = seaborn.PairGrid(pd.DataFrame(labels[:, 1:], columns=BOX), corner=True, height=2.5)
    if len(labels):  # every pair of x, y, width and height as a density, each alone as a histogram
        bins = {"bins": 50, "binrange": (0, 1)}
        grid.map_diag(seaborn.histplot, **bins, color=HEAT[2][1], alpha=1, linewidth=0)
        grid.map_lower(seaborn.histplot, **bins, cmap=heat)
    grid.set(xlim=(0, 1), ylim=(0, 1))
    for axis in grid.figure.axes:
        style_axis(axis)
    correlogram = save_figure(grid.figure, folder / "labels_correlogram.jpg", 150)
    pyplot.close(grid.figure)
    return [save_figure(figure, folder / "labels.jpg"), correlogram]


# ------------------------------------------------------------------------------------------------------ feature maps
def feature_visualization(
    x: Tensor, module_type: str, stage: int, n: int = 32, save_dir: Path | str = "runs/detect/exp"
) -> Path | None:
    """Draw the first `n` channels of a layer's output (B, C, H, W), first image, eight to a row.

    Each channel goes from its lowest value to its highest. Writes stage{stage}_{type}_features.png and the whole map of
    that image as .npy. The Detect layer and maps of a single pixel have nothing to show: None is returned for them.
    """
    from torchvision.utils import make_grid

    kind = module_type.rpartition(".")[2]
    if kind == "Detect" or x.ndim != 4 or min(x.shape[2:]) <= 1:
        return None
    maps = x[0].detach().float().cpu().numpy()
    path = Path(save_dir) / f"stage{stage}_{kind}_features.png"
    shown = maps[:n]
    zoom = max(FEATURE_TILE // max(shown.shape[1:]), 1)
    low, high = shown.min((1, 2), keepdims=True), shown.max((1, 2), keepdims=True)
    shades = ((shown - low) / np.maximum(high - low, 1e-12) * 255).astype(np.uint8).repeat(zoom, 1).repeat(zoom, 2)
    tiles = np.stack([cv2.applyColorMap(shade, cv2.COLORMAP_VIRIDIS) for shade in shades]).transpose(0, 3, 1, 2)
    sheet = make_grid(torch.from_numpy(tiles), 8, TILE_GAP, pad_value=BLANK)
    write_image(path, sheet.permute(1, 2, 0).numpy())
    np.save(path.with_suffix(".npy"), maps)
    return path
