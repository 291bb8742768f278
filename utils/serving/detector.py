"""A model as the server uses it: images are prepared one by one and looked at in batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from utils.boxes.convert import placement
from utils.boxes.merging import MERGES
from utils.data.tiles import OVERLAP, Tiling
from utils.predict.pipeline import Clock, Geometry, Suppression, find_objects, prepare_image, to_network
from utils.predict.tiled import TileSearch
from utils.routes.geometry import RoutingMap
from utils.serving.uploads import Decoder


@dataclass(frozen=True, slots=True)
class Settings:
    """What a request chose: thresholds in 0..1, class numbers or None for all, the input's side in pixels; side of the
    tiles in pixels of the image, 0 for none, how far they overlap and how their detections are merged.
    """

    conf: float = 0.25
    iou: float = 0.45
    classes: tuple[int, ...] | None = None
    size: int = 640
    tile: int = 0
    tile_overlap: float = OVERLAP
    tile_merge: str = MERGES[0]

    def tiling(self, batch: int = 16) -> Tiling:
        """Return the tiles that were chosen, to be looked at so many at a time."""
        return Tiling(self.tile, self.tile_overlap, self.tile_merge, batch)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image on its way to the network: pixels (3, H, W) uint8, how the image lies in them, what was chosen; the
    image itself, (H, W, 3) uint8 RGB, where tiles of it are to be looked at, and how many.
    """

    pixels: np.ndarray
    geometry: Geometry
    settings: Settings
    original: np.ndarray | None = None
    tiles: int = 0


class Detector:
    """Detections and routes of images by a `model`.

    `model` takes (B, 3, H, W) in 0..1 and gives (B, M, 5 + C); it has `names`, `stride`, `device`, `fp16`, `shape`
    (height and width that every image must have, or None) and `input_size(size)`. `decode` makes an RGB array of
    a file's content. `record(model.model)` collects routes while its block runs; None where the model has none.
    """

    def __init__(
        self,
        model: Any,
        decode: Decoder,
        record: Callable[[Any], AbstractContextManager[list[RoutingMap]]] | None = None,
        detections: int = 1000,
        batch: int = 16,
    ) -> None:
        self.model, self.decode, self.record = model, decode, record
        self.detections, self.batch = detections, batch  # most of an image; most tiles together
        self.names: list[str] = list(model.names)
        self.dtype = torch.float16 if model.fp16 else torch.float32

    def prepare(self, data: bytes, settings: Settings, name: str = "the image") -> Prepared:
        """Decode a file's content and letterbox it as detect.py does; raises Refusal for what is no image."""
        image = self.decode(data, name)
        whole = *self._fit(settings)(image), settings
        if not settings.tile:
            return Prepared(*whole)
        tiles = settings.tiling().count(image.shape[1], image.shape[0])
        return Prepared(*whole, image if tiles else None, tiles)

    def _fit(self, settings: Settings) -> Callable[[np.ndarray], tuple[np.ndarray, Geometry]]:
        """What letterboxes an image, or a tile of it, for the network."""
        shape, stride = self.model.shape, self.model.stride
        target = shape or self.model.input_size(settings.size)
        return partial(prepare_image, shape=target, stride=stride, auto=shape is None, bgr=False)

    @torch.inference_mode()
    def work(self, key: Any, images: list[Prepared]) -> list[Any]:
        """Results for images of one shape; `key` is (what is wanted, the shape).

        For "boxes" rows like v6.1's data frames for each image, the most confident first; for "routes" what `routes`
        gives.
        """
        if key[0] == "routes":
            return [self.routes(image) for image in images]
        chosen = [image.settings for image in images]
        settings = [Suppression(one.conf, one.iou, one.classes, max_det=self.detections) for one in chosen]
        pixels = [image.pixels for image in images]
        found, _ = find_objects(self.model, pixels, settings, Clock(), self.model.device, self.dtype)
        results: list[list[dict[str, Any]]] = []
        for inside, image, one in zip(found, images, settings, strict=True):
            rows = image.geometry.to_image(inside.cpu())
            if image.original is not None:
                tiling, fit = image.settings.tiling(self.batch), self._fit(image.settings)
                search = TileSearch(tiling, self.model, fit, self.model.device, self.dtype)
                rows = search(image.original, rows, one, Clock())
            results.append([])
            for left, top, right, bottom, confidence, number in rows.tolist():
                row = {"xmin": left, "ymin": top, "xmax": right, "ymax": bottom, "confidence": confidence}
                known = int(number) < len(self.names)  # --data may name fewer classes than the weights have
                name = self.names[int(number)] if known else f"class{int(number)}"
                results[-1].append(row | {"class": int(number), "name": name})
        return results

    def routes(self, image: Prepared) -> dict[str, Any]:
        """The routes of every routing attention layer, regions in pixels of the image.

        Regions that hold nothing of the image have no size.
        """
        assert self.record is not None
        with self.record(self.model.model) as maps:
            self.model(to_network([image.pixels], self.model.device, self.dtype))
        (height, width), layers = image.geometry.image, []
        ratio, left, top = placement(image.geometry.input, image.geometry.image)
        for found in maps:
            x, y = found.edges(*image.geometry.input)
            layers.append(
                {
                    **{name: getattr(found, name) for name in ("name", "rows", "cols", "topk")},
                    "x": ((x - left) / ratio).clip(0, width).round(2).tolist(),
                    "y": ((y - top) / ratio).clip(0, height).round(2).tolist(),
                    "index": found.index.tolist(),
                    "weight": found.weight.astype(float).round(4).tolist(),
                }
            )
        return {"width": width, "height": height, "layers": layers}
