"""A detector for people who have images, not tensors: `AutoShape` takes nearly anything and returns `Detections`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from models.api.detections import Detections
from models.backends import DetectMultiBackend
from utils.base.devices import time_sync
from utils.base.paths import USUAL_SIZE
from utils.drawing.writers import Output, OutputNames
from utils.images.reading import read_image
from utils.predict.pipeline import Clock, Suppression, find_objects, prepare_image
from utils.predict.source_files import is_url
from utils.predict.sources import fetch_image, readable_name

CHANNELS = (1, 3, 4)  # grey, colour, colour with opacity
ImageLike = str | Path | np.ndarray | Image.Image | Tensor


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Return an (H, W), (H, W, C) or (C, H, W) array as contiguous (H, W, 3) uint8.

    Channels are first when the first dimension can be channels and the last cannot, whatever the height. Grey is
    repeated, opacity is dropped, 16-bit values keep their upper byte, fractions of one (floats) are multiplied by 255.
    """
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)
    channels = {2: 1, 3: array.shape[-1]}.get(array.ndim)
    if channels not in CHANNELS or not array.size:
        raise ValueError(f"an array of shape {array.shape} is no image; wanted (H, W), (H, W, 3) or (3, H, W)")
    array = _to_bytes(array[..., None] if array.ndim == 2 else array)
    return np.ascontiguousarray(array.repeat(3, 2) if channels == 1 else array[..., :3])


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Brightness as uint8."""
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == bool or (array.dtype.kind == "f" and array.max() <= 1):
        array = array * 255.0
    return array if array.dtype == np.uint8 else np.rint(array).clip(0, 255).astype(np.uint8)


def load_image(item: ImageLike) -> tuple[np.ndarray, str]:
    """Return (RGB image (H, W, 3) uint8, file name or '') from a path, http(s) URL, PIL image, RGB array or tensor.

    A tensor has its channels first. EXIF orientation is applied; palettes become colours. The result is writeable and
    shares its memory with nothing. Raises ValueError for anything else.
    """
    if isinstance(item, (str, Path)):
        bgr = fetch_image(str(item)) if is_url(str(item)) else read_image(item)
        return np.ascontiguousarray(bgr[..., ::-1]), str(item)
    if isinstance(item, Image.Image):
        return _from_pillow(item), getattr(item, "filename", "")
    if isinstance(item, Tensor):
        array = (item.float() if item.is_floating_point() else item).detach().cpu().numpy()
        first = array.ndim == 3 and array.shape[0] in CHANNELS
        return to_rgb(array.transpose(1, 2, 0) if first else array).copy(), ""
    if isinstance(item, np.ndarray):
        return to_rgb(item).copy(), ""
    raise ValueError(f"cannot look at a {type(item).__name__}; give a path, URL, PIL image, array or tensor")


def _from_pillow(image: Image.Image) -> np.ndarray:
    """A PIL image of any mode, upright, as RGB."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "La":  # opacity multiplied in: Pillow takes it back in one step only
        upright = upright.convert("LA")
    deep = upright.mode.startswith("I") or upright.mode == "F"
    array = np.asarray(upright) if deep else np.array(upright.convert("RGB"))
    if upright.mode.startswith("I") and array.size and array.max() > 255:  # 16-bit grey, whatever Pillow calls it
        array = array.astype(np.uint16)
    return to_rgb(array)


class AutoShape(nn.Module):
    """Wraps a model so that it takes paths, URLs, PIL images, arrays and tensors, alone or in mixed lists.

    The class attributes are the settings of suppression and may be set on an instance (`model.conf = 0.4`).
    """

    conf = 0.25
    iou = 0.45
    agnostic = False
    multi_label = False
    classes: Sequence[int] | None = None
    max_det = 1000
    amp = False
    names: Sequence[str]
    stride: Tensor | int
    shape: tuple[int, int] | None

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pt = not isinstance(model, DetectMultiBackend) or model.pt
        self.shape = None if self.pt else cast(DetectMultiBackend, model).shape  # that images must have
        for name in ("yaml", "nc", "hyp", "names", "stride", "abc"):
            for holder in (model, getattr(model, "model", None)):
                if hasattr(holder, name):
                    setattr(self, name, getattr(holder, name))
                    break
        self.trained = getattr(model, "trained", 0) or getattr(model, "imgsz", 0) or USUAL_SIZE
        self.model = model.eval()
        self.said = False  # that images of one name get others: once is enough

    def train(self, mode: bool = True) -> AutoShape:
        """The wrapped model always predicts: it stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        imgs: ImageLike | Sequence[ImageLike],
        size: int | None = None,
        augment: bool = False,
        profile: bool = False,
    ) -> Detections | Tensor | tuple[Tensor, Any]:
        """Detect in one image or a list of them, letterboxed to `size` pixels, as in training where it is None.

        A batch, a tensor (B, 3, H, W) in 0..1, goes to the network as it is and gives raw predictions. `profile` prints
        the time of each layer, where the model can. Raises ValueError for what is no image.
        """
        parameter = next(self.model.parameters(), torch.zeros(1, device=getattr(self.model, "device", None)))
        start = time_sync(parameter.device)
        network = partial(self._predict, augment=augment, profile=profile)
        if isinstance(imgs, Tensor) and imgs.ndim == 4:
            if not imgs.is_floating_point():
                raise ValueError(f"a batch goes to the network as it is, this one is {imgs.dtype}: give batch / 255")
            return network(imgs.to(parameter.device).type_as(parameter))
        items: Sequence[Any] = imgs if isinstance(imgs, (list, tuple)) else [imgs]
        if not items:
            raise ValueError("no image given; give one or a list of at least one")
        images, paths = map(list, zip(*map(load_image, items), strict=True))
        shape = self._common_shape([image.shape[:2] for image in images], size)
        pixels, places = zip(*(prepare_image(image, shape, auto=False, bgr=False) for image in images), strict=True)
        settings = Suppression(self.conf, self.iou, self.classes, self.agnostic, self.multi_label, self.max_det)
        clock = Clock(prepare=time_sync(parameter.device) - start)
        with torch.autocast(parameter.device.type, enabled=self.amp and parameter.device.type != "cpu"):
            found, _ = find_objects(network, pixels, settings, clock, parameter.device, parameter.dtype)
        boxes = [geometry.to_image(rows) for rows, geometry in zip(found, places, strict=True)]
        clock.settled()
        times = np.cumsum([start, clock.prepare, clock.network, clock.suppress]).tolist()
        return Detections(images, boxes, self._files(paths), times, self.names, (len(pixels), *pixels[0].shape))

    def _files(self, paths: Sequence[str]) -> list[str]:
        """What results are called: an image's own stem, image{i} for one without; none twice."""
        stems = [readable_name(path) or f"image{i}" for i, path in enumerate(paths)]
        outputs = OutputNames(Path(), list(map(Output, paths, stems)))
        self.said = self.said or outputs.report_changes()
        return [f"{stem}.jpg" for stem in outputs.stems]

    def _predict(self, batch: Tensor, augment: bool, profile: bool) -> Tensor | tuple[Tensor, Any]:
        if not profile or not self.pt:
            return self.model(batch, augment=augment)
        network = self.model.model if isinstance(self.model, DetectMultiBackend) else self.model
        return network(batch, augment=augment, profile=True)

    def _common_shape(self, shapes: Sequence[tuple[int, int]], size: int | None) -> tuple[int, int]:
        """Height and width that every image, its longer side scaled to `size`, fits into; whole strides."""
        size = self.trained if size is None else size
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"size is the longer side in pixels, a whole number from 1, not {size!r}")
        if self.shape is not None:
            return self.shape
        stride = int(torch.as_tensor(self.stride).max())
        scaled = np.array([[side * size / max(shape) for side in shape] for shape in shapes]).max(0)
        height, width = (max(math.ceil(side / stride - 1e-6), 1) * stride for side in scaled)
        return height, width
