"""A page that shows routes: one HTML file that needs no network and no other file."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.base.files import printable
from utils.routes.geometry import RoutingMap

TEMPLATE = Path(__file__).with_suffix(".html")
JPEG_QUALITY = 90
Point = tuple[float, float]


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
        "picture": "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii"),
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
