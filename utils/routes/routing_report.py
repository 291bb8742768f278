"""What is written of a frame's routes: whose regions are shown, a drawing for each layer, and the page."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from utils.base.files import printable
from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.boxes.convert import xyxy2xywh
from utils.predict.source_files import is_url
from utils.predict.sources import Frame, readable_name
from utils.routes.geometry import RoutingMap
from utils.routes.routing_plots import draw_routes

TEMPLATE, PAGE = Path(__file__).with_name("page.html"), "routes.html"
JPEG_QUALITY = 90
SUREST = 3  # detections whose regions are shown when nobody asks for others
Point = tuple[float, float]


def parse_points(words: Sequence[Any] | None) -> list[Point]:
    """Return positions written as "x,y", or given as pairs, in pixels. Raise ValueError for what is none."""
    points = []
    for word in words or ():
        text = ",".join(map(str, word)) if isinstance(word, (tuple, list)) else str(word)
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*,\s*(\d+(?:\.\d+)?)\s*", text)
        if match is None:
            raise ValueError(f"--query {text}: give X,Y in pixels of the image, such as --query 320,240")
        points.append((float(match[1]), float(match[2])))
    return points


def choose_points(frame: Frame, wanted: Sequence[Point], detections: Tensor) -> list[Point]:
    """Return positions (x, y) in pixels of the original whose regions are shown.

    Those wanted; one outside of the image is left out with a warning. Where none is left, the centres of the surest
    `detections` (n, 6) xyxy, confidence, class, the surest first; where there are none either, the image's middle.
    """
    height, width = frame.original.shape[:2]
    inside = []
    for x, y in wanted:
        if x < width and y < height:
            inside.append((x, y))
        else:
            place = f"{printable(frame.path)} ({width} x {height} pixels)"
            LOGGER.warning(f"--query {x:g},{y:g} lies outside of {place} and is left out there")
    centres = xyxy2xywh(detections[:SUREST, :4].cpu().double())[:, :2].tolist()
    return inside or [(min(x, width - 1), min(y, height - 1)) for x, y in centres] or [(width / 2, height / 2)]


def write_routes(folder: Path, frame: Frame, maps: Sequence[RoutingMap], points: Sequence[Point]) -> Path:
    """Draw the routes of every layer into `folder` and write the page beside them; log where, return the page.

    `points` are in pixels of the original.
    """
    image = np.ascontiguousarray(frame.image.transpose(1, 2, 0))
    points = frame.geometry.to_input(points)
    for routes in maps:
        queries = list(dict.fromkeys(routes.region_at(x, y) for x, y in points))  # each region once
        draw_routes(folder / f"{routes.name}_routes.png", image, routes, queries)
    name = readable_name(frame.path) if is_url(frame.path) else Path(frame.path).name
    page = write_routing_page(folder / PAGE, image, maps, name, points)
    LOGGER.info(f"Routes of {len(maps)} layer{'s' * (len(maps) != 1)} in {shown(page)}")
    return page


def write_routing_page(
    file: Path | str, image: np.ndarray, maps: Sequence[RoutingMap], name: str, points: Sequence[Point] = ()
) -> Path:
    """Write the page for one image; return the file, whose folder is made.

    `image` is the network's input, (H, W, 3) uint8 RGB. `name` is what people know it by. `points` (x, y) in its pixels
    are what the page offers first. Raise ValueError without any map: there is nothing to show.
    """
    if not maps:
        raise ValueError(f"{file}: a page of routes needs the routes of at least one layer")
    (height, width), layers = image.shape[:2], []
    for routes in maps:  # regions as borders in pixels, those of padding have no size
        x, y = (edge.tolist() for edge in routes.edges(height, width))
        cell = [round(routes.cell_height, 3), round(routes.cell_width, 3)]
        layer = {"name": routes.name, "rows": routes.rows, "cols": routes.cols, "cell": cell, "x": x, "y": y}
        weight = routes.weight.astype(float).round(4).tolist()
        layers.append(layer | {"index": routes.index.tolist(), "weight": weight})
    done, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, image.shape
    data = {
        "name": printable(name),
        "image": "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii"),
        "width": width,
        "height": height,
        "points": [[round(x, 1), round(y, 1)] for x, y in points],
        "layers": layers,
    }
    # Whatever is in a name, nothing in it can end the script element
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": html.escape(printable(name)), "data": text}
    page = re.sub(r"\{\{(title|data)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
