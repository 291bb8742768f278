"""A page to look at routes in: one HTML file that needs no network and no other file."""

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

from utils.base.files import printable
from utils.routes.geometry import RoutingMap

TEMPLATE = Path(__file__).with_suffix(".html")
JPEG_QUALITY = 90
Point = tuple[float, float]


def write_routing_page(
    file: Path | str, picture: np.ndarray, maps: Sequence[RoutingMap], name: str, points: Sequence[Point] = ()
) -> Path:
    """Write the page for one picture; returns the file, whose folder is made.

    `picture` is the network's input, (H, W, 3) uint8 RGB. `name` is what people know it by. `points` (x, y) in its
    pixels are what the page offers first. ValueError without any map: there is nothing to show.
    """
    if not maps:
        raise ValueError(f"{file}: a page of routes needs the routes of at least one layer")
    height, width = picture.shape[:2]
    data = {
        "name": printable(name),
        "picture": _data_address(picture),
        "width": width,
        "height": height,
        "points": [[round(x, 1), round(y, 1)] for x, y in points],
        "layers": [_layer(routes, height, width) for routes in maps],
    }
    # Whatever is in a name, nothing in it can end the script element
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    parts = {"title": html.escape(printable(name)), "data": text}
    page = re.sub(r"\{\{(title|data)\}\}", lambda found: parts[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _layer(routes: RoutingMap, height: int, width: int) -> dict[str, Any]:
    """A layer as the page's script reads it: regions as borders in pixels, those of padding have no size."""
    x, y = routes.edges(height, width)
    return {
        "name": routes.name,
        "rows": routes.rows,
        "cols": routes.cols,
        "cell": [round(routes.cell_height, 3), round(routes.cell_width, 3)],
        "x": x.tolist(),
        "y": y.tolist(),
        "index": routes.index.tolist(),
        "weight": routes.weight.astype(float).round(4).tolist(),
    }


def _data_address(picture: np.ndarray) -> str:
    """The picture as a data: address."""
    done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, picture.shape
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode("ascii")
