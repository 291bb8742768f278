"""The figure of docs/bra.md: bi-level routing attention on an image, with the routes of trained weights.

    python -m docs.figures.bra_method --weights runs/train/exp/weights/best.pt

Everything drawn is what the layer computed: its routes, the affinities they come from, and its attention weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from models.bra.attention import BiLevelRoutingAttention
from models.bra.routing_maps import record_routes, routing_layers
from models.experimental import attempt_load
from utils.base.paths import ROOT
from utils.drawing.figures import GREY, INK, new_figure, save_figure
from utils.predict.sources import open_source
from utils.routes.geometry import RoutingMap
from utils.routes.routing_plots import CHOSEN, ROUTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 0.12  # between the blocks of the last panel, in sides of a block
SIZE, WIDTHS = (14.2, 4.5), (1.0, 1.0, 1.75)  # inches; widths of the three panels to each other


@dataclass(frozen=True)
class Levels:
    """What a layer did with one image.

    image: (H, W, 3) uint8 RGB, the network's input. tokens: height and width of a region in tokens.
    affinity: (R, R) of every region's mean query (rows) and mean key. attention: (R, T, K * L) mean over the heads.
    """

    image: np.ndarray
    routes: RoutingMap
    tokens: tuple[int, int]
    affinity: np.ndarray
    attention: np.ndarray


def look(model: nn.Module, image: np.ndarray, name: str) -> Levels:
    """Run the model on one image (3, H, W) uint8 RGB and keep what its attention layer of this name did.

    ValueError for a layer that the model does not have.
    """
    layers = routing_layers(model)
    if name not in layers:
        raise ValueError(f"no routing attention layer {name}; there is {', '.join(layers) or 'none'}")
    layer = layers[name]
    with torch.inference_mode(), record_routes(model) as maps, _inputs(layer) as seen:
        model(torch.from_numpy(image)[None].float() / 255)
    with torch.inference_mode():
        (x,), (query, key) = seen["layer"], seen["router"][:2]
        affinity = (query[0] * layer.router.scale) @ key[0].T
        attention = layer(x[:1], ret_attn_mask=True)[-1].mean(1)
    grid = layer.region_grid(*x.shape[-2:])
    routes = next(routes for routes in maps if routes.name == name)
    image = np.ascontiguousarray(image.transpose(1, 2, 0))
    return Levels(image, routes, (grid.height, grid.width), affinity.numpy(), attention.numpy())


@contextmanager
def _inputs(layer: BiLevelRoutingAttention) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Collect what the layer and its router are given while the block runs."""
    seen: dict[str, tuple[Tensor, ...]] = {}
    parts = {"layer": layer, "router": layer.router}
    handles = [
        part.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given}))
        for name, part in parts.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def draw(file: Path | str, levels: Levels, query: int) -> Path:
    """Draw the three steps for one query region, given by its number, as a PNG; returns the file."""
    figure, (regions, coarse, fine) = new_figure(1, 3, SIZE)
    regions.get_gridspec().set_width_ratios(WIDTHS)
    figure.get_layout_engine().set(wspace=0.035)
    for axis in (regions, coarse, fine):
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set(xticks=[], yticks=[])
    _draw_regions(regions, levels, query)
    _draw_affinity(coarse, levels, query)
    _draw_tokens(fine, levels, query)
    path = save_figure(figure, file, dpi=110)
    with Image.open(path) as drawn:  # 256 colours are enough, and a fraction of the bytes
        reduced = drawn.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    reduced.save(path, optimize=True)
    return path


def _head(axis: Axes, text: str, note: str) -> None:
    """What a panel shows, above it, and how it is to be read, below it."""
    axis.set_title(text, loc="left", color=INK, fontsize=12, fontweight="bold")
    axis.set_xlabel(note, color=INK, fontsize=10, loc="left", labelpad=6)


def _draw_regions(axis: Axes, levels: Levels, query: int) -> None:
    """The image, the regions' borders, one region and those it is routed to, by rank."""
    height, width = levels.image.shape[:2]
    axis.imshow(levels.image, extent=(0, width, height, 0), alpha=0.75)
    x, y = levels.routes.edges(height, width)
    axis.vlines(x, 0, height, colors="white", linewidths=1)
    axis.hlines(y, 0, width, colors="white", linewidths=1)
    boxes, padding = levels.routes.boxes(height, width), levels.routes.is_padding(height, width)
    for rank, region in enumerate(levels.routes.index[query], 1):
        if not padding[region]:
            _frame(axis, boxes[region], ROUTED)
            _tag(axis, boxes[region], str(rank), ROUTED)
    _frame(axis, boxes[query], CHOSEN)
    _tag(axis, boxes[query], "query", CHOSEN)
    axis.set(xlim=(0, width), ylim=(height, 0))
    rows, cols, (tall, wide) = levels.routes.rows, levels.routes.cols, levels.tokens
    _head(
        axis,
        f"1  The map in {rows} x {cols} regions",
        f"Each region is {tall} x {wide} tokens of the map.\nThe query region (orange) and the\n"
        f"{levels.routes.topk} regions it is routed to (blue).",
    )


def _draw_affinity(axis: Axes, levels: Levels, query: int) -> None:
    """Affinities of all regions with all regions, each row from its lowest to its highest; what each row keeps."""
    low, high = (edge(levels.affinity, axis=1, keepdims=True) for edge in (np.min, np.max))
    shades = (levels.affinity - low) / np.maximum(high - low, 1e-12)
    count = len(shades)
    axis.imshow(shades, cmap="Greys", vmin=0, vmax=1.6, extent=(0, count, count, 0), interpolation="nearest")
    for row, kept in enumerate(levels.routes.index):
        size = 26 if row == query else 5
        axis.scatter(kept + 0.5, [row + 0.5] * len(kept), s=size, color=ROUTED, linewidths=0, marker="s")
    axis.plot([0, count, count, 0, 0], [query, query, query + 1, query + 1, query], color=CHOSEN, linewidth=2)
    axis.set_ylabel("region that asks (mean query)", color=GREY, fontsize=9)
    axis.text(count, -0.6, "region asked (mean key)", color=GREY, fontsize=9, ha="right", va="bottom")
    _head(
        axis,
        "2  Coarse: regions",
        f"{count} x {count} affinities; dark: high in its row.\nEach row keeps its {levels.routes.topk} best (blue);\n"
        "the rest of the map is skipped.",
    )


def _draw_tokens(axis: Axes, levels: Levels, query: int) -> None:
    """The query region's tokens against the tokens of the routed regions, one block for each of these."""
    weights = np.split(levels.attention[query], levels.routes.topk, axis=1)
    boxes = levels.routes.boxes(*levels.image.shape[:2]).round().astype(int)
    shades = {"cmap": "Blues", "vmin": levels.attention[query].min(), "vmax": levels.attention[query].max()}
    _place(axis, _part(levels.image, boxes[query]), 0, 1, levels.tokens, CHOSEN)
    for rank, (region, block) in enumerate(zip(levels.routes.index[query], weights, strict=True), 1):
        left = rank * (1 + GAP)
        _place(axis, _part(levels.image, boxes[region]), left, 0, levels.tokens, ROUTED)
        extent = (left, left + 1, 2 + GAP, 1 + GAP)
        axis.imshow(block, extent=extent, interpolation="nearest", **shades)
        _frame(axis, np.array([left, 1 + GAP, left + 1, 2 + GAP]), GREY, 0.8)
        axis.text(left + 0.5, -0.06, str(rank), color=ROUTED, fontsize=11, fontweight="bold", ha="center", va="bottom")
    axis.text(0.5, 1 + GAP - 0.06, "query", color=CHOSEN, fontsize=11, fontweight="bold", ha="center", va="bottom")
    axis.set(xlim=(-0.05, (levels.routes.topk + 1) * (1 + GAP)), ylim=(2 + GAP + 0.05, -0.35), anchor="NW")
    tokens, keys = levels.attention.shape[1:]
    _head(
        axis,
        "3  Fine: tokens",
        f"Softmax attention of the {tokens} tokens of the query region (rows) to the {keys} tokens gathered\n"
        f"from regions 1 to {levels.routes.topk} (columns), mean over the heads. Each row adds up to 1.\n"
        "The output of a token is the sum of the values, weighted by its row.",
    )


def _part(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The image inside of a box xyxy, grey where that is padding alone."""
    left, top, right, bottom = box
    part = image[top:bottom, left:right]
    return part if part.size else np.full((1, 1, 3), 200, np.uint8)


def _place(axis: Axes, part: np.ndarray, left: float, row: int, tokens: tuple[int, int], colour: str) -> None:
    """A region's image, with its tokens as a grid, in a square of side 1."""
    top = row * (1 + GAP)
    axis.imshow(part, extent=(left, left + 1, top + 1, top))
    axis.hlines(top + np.linspace(0, 1, tokens[0] + 1), left, left + 1, colors="white", linewidths=0.6)
    axis.vlines(left + np.linspace(0, 1, tokens[1] + 1), top, top + 1, colors="white", linewidths=0.6)
    _frame(axis, np.array([left, top, left + 1, top + 1]), colour)


def _frame(axis: Axes, box: np.ndarray, colour: str, thickness: float = 2.4) -> None:
    """The outline of a box xyxy."""
    left, top, right, bottom = box.tolist()
    across, down = [left, right, right, left, left], [top, top, bottom, bottom, top]
    if thickness > 1:
        axis.plot(across, down, color="white", linewidth=thickness + 1.8, zorder=3)
    axis.plot(across, down, color=colour, linewidth=thickness, zorder=3, clip_on=False)


def _tag(axis: Axes, box: np.ndarray, text: str, colour: str) -> None:
    """A word on a plate in the upper left corner of a box."""
    plate: dict[str, Any] = {"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "white"}
    style: dict[str, Any] = {"color": "white", "fontsize": 9, "fontweight": "bold", "bbox": plate, "zorder": 4}
    axis.annotate(text, box[:2], (3, -3), textcoords="offset points", ha="left", va="top", **style)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m docs.figures.bra_method", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="a trained model with routing attention")
    parser.add_argument("--image", type=Path, default=ROOT / "data/images/clouds.jpg")
    parser.add_argument("--imgsz", type=int, default=448, help="side in pixels; 448 makes maps that need no padding")
    parser.add_argument("--layer", default="stage20")
    parser.add_argument("--query", type=float, nargs=2, default=(330, 330), metavar=("X", "Y"), help="in the input")
    parser.add_argument("--file", type=Path, default=ROOT / "docs/images/bra_method.png")
    options = parser.parse_args(arguments)
    try:
        frame = next(iter(open_source(options.image, options.imgsz, auto=False)))
        levels = look(attempt_load(options.weights), frame.image, options.layer)
    except ValueError as error:
        parser.error(str(error))
    draw(options.file, levels, levels.routes.region_at(*options.query))


if __name__ == "__main__":
    main()
