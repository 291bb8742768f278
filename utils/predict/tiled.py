"""Large images looked at in tiles as well as whole, and one list of detections of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from utils.boxes.merging import merge_views
from utils.boxes.nms import MAX_CANDIDATES
from utils.data.tiles import Tiling
from utils.predict.pipeline import Clock, Forward, Geometry, Suppression, find_objects

MAX_MERGED = 5_000  # detections of all views that `greedy` and `wbf` compare one by one, at least twice those wanted


@dataclass(frozen=True, slots=True)
class TileSearch:
    """Looks at the tiles of images, a batch at a time. `prepare` is `prepare_image` for the network's input."""

    tiling: Tiling
    forward: Forward
    prepare: Callable[[np.ndarray], tuple[np.ndarray, Geometry]]
    device: torch.device | str = "cpu"
    dtype: torch.dtype = torch.float32

    def __call__(self, image: np.ndarray, whole: Tensor, settings: Suppression, clock: Clock) -> Tensor:
        """Return detections (n, 6), float32 on the CPU, in pixels of an image (H, W, 3) uint8, the surest first.

        `whole` (m, 6) are those in the image as a whole. The time goes to `clock`, to that of this one image.
        """
        height, width = image.shape[:2]
        grid, seen = self.tiling.grid(width, height), clock.images
        if not len(grid):
            return whole.cpu()
        found, settings = [whole.cpu().double()], replace(settings, labels=())
        for start in range(0, len(grid), self.tiling.batch):
            part, began = grid[start : start + self.tiling.batch], perf_counter()
            pixels, places = zip(*(self.prepare(image[y1:y2, x1:x2]) for x1, y1, x2, y2 in part), strict=True)
            clock.prepare += perf_counter() - began
            detections, _ = find_objects(self.forward, pixels, settings, clock, self.device, self.dtype)
            for inside, place, corner in zip(detections, places, part[:, :2], strict=True):
                moved = place.to_image(inside.cpu().double())
                moved[:, :4] += torch.from_numpy(np.tile(corner, 2))
                found.append(moved)
        clock.images = seen
        origins = np.repeat(np.arange(len(found)), list(map(len, found)))
        views = np.concatenate((((0, 0, width, height),), grid))
        rows, began = torch.cat(found).numpy(), perf_counter()
        most = MAX_CANDIDATES if self.tiling.merge == "nms" else max(MAX_MERGED, 2 * settings.max_det)
        if len(rows) > most:
            surest = np.sort(np.argsort(-rows[:, 4], kind="stable")[:most])
            rows, origins = rows[surest], origins[surest]
        merged = merge_views(rows, origins, views, self.tiling.merge, settings.iou_thres, settings.agnostic)
        clock.suppress += perf_counter() - began
        order = np.argsort(-merged[:, 4], kind="stable")[: settings.max_det]
        return torch.from_numpy(merged[order]).float()
