"""A model as the server uses it: pictures are prepared one by one and looked at in batches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.boxes.convert import placement
from utils.predict.pipeline import Clock, Geometry, Suppression, find_objects, prepare_image, to_network
from utils.routes.geometry import RoutingMap
from utils.serving.settings import Settings
from utils.serving.uploaded_images import Decoder, DecodingCost

Recorder = Callable[[Any], AbstractContextManager[list[RoutingMap]]]
Row = dict[str, float | int | str]


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A picture on its way to the network.

    pixels: (3, H, W) uint8, letterboxed. geometry: how the image lies in them. settings: how to look at it.
    """

    pixels: np.ndarray
    geometry: Geometry
    settings: Settings


class Detector:
    """Detections and routes of pictures by a `model`.

    `model` takes (B, 3, H, W) in 0..1 and gives (B, M, 5 + C); it has `names`, `stride`, `device`, `fp16`, `shape`
    (height and width that every picture must have, or None) and `picture_size(size)`. `decode` makes an RGB array of
    a file's content. `record(model.model)` collects routes while its block runs; None where the model has none.
    """

    def __init__(self, model: Any, decode: Decoder, record: Recorder | None = None, detections: int = 1000) -> None:
        self.model, self.decode, self.record, self.detections = model, decode, record, detections
        self.names: list[str] = list(model.names)
        self.dtype = torch.float16 if model.fp16 else torch.float32

    def measure(self, data: bytes, name: str = "the picture") -> DecodingCost:
        """What decoding a file's content will take; raises Refusal for what is not taken."""
        return self.decode.measure(data, name)

    def prepare(self, data: bytes, settings: Settings, name: str = "the picture") -> Prepared:
        """Decode a file's content and letterbox it as detect.py does; raises Refusal for what is no picture."""
        picture = self.decode(data, name)
        shape = self.model.shape
        target = shape or self.model.picture_size(settings.size)
        return Prepared(*prepare_image(picture, target, self.model.stride, auto=shape is None, bgr=False), settings)

    def work(self, key: Hashable, pictures: list[Prepared]) -> list[Any]:
        """Results for pictures of one shape; `key` is (what is wanted, the shape)."""
        wanted = key[0] if isinstance(key, tuple) else key
        if wanted == "routes":
            return [self.routes(picture) for picture in pictures]
        return self.detect(pictures)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Prepared]) -> list[list[Row]]:
        """Rows like v6.1's data frames for each picture, all inputs of one shape: the most confident first."""
        chosen = [picture.settings for picture in pictures]
        settings = [Suppression(one.conf, one.iou, one.classes, max_det=self.detections) for one in chosen]
        pixels = [picture.pixels for picture in pictures]
        found, _ = find_objects(self.model, pixels, settings, Clock(), self.model.device, self.dtype)
        pairs = zip(found, pictures, strict=True)
        return [self._rows(picture.geometry.to_image(rows.cpu())) for rows, picture in pairs]

    @torch.inference_mode()
    def routes(self, picture: Prepared) -> dict[str, Any]:
        """The routes of every routing attention layer, regions in pixels of the original picture."""
        assert self.record is not None
        with self.record(self.model.model) as maps:
            self.model(to_network([picture.pixels], self.model.device, self.dtype))
        height, width = picture.geometry.image
        return {"width": width, "height": height, "layers": [_layer(routes, picture) for routes in maps]}

    def _rows(self, found: Tensor) -> list[Row]:
        rows: list[Row] = []
        for left, top, right, bottom, confidence, number in found.tolist():
            row = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom, "confidence": confidence}
            rows.append(row | {"class": int(number), "name": self._name(int(number))})
        return rows

    def _name(self, number: int) -> str:
        """The class's name; its number where --data names fewer classes than the weights have."""
        return self.names[number] if number < len(self.names) else f"class{number}"


def _layer(routes: RoutingMap, picture: Prepared) -> dict[str, Any]:
    """A layer's grid and choices; regions that hold nothing of the picture have no size."""
    x, y = routes.edges(*picture.pixels.shape[1:])
    height, width = picture.geometry.image
    ratio, left, top = placement(picture.geometry.input, picture.geometry.image)
    x = ((x - left) / ratio).clip(0, width)
    y = ((y - top) / ratio).clip(0, height)
    return {
        "name": routes.name,
        "rows": routes.rows,
        "cols": routes.cols,
        "topk": routes.topk,
        "x": x.round(2).tolist(),
        "y": y.round(2).tolist(),
        "index": routes.index.tolist(),
        "weight": routes.weight.astype(float).round(4).tolist(),
    }
