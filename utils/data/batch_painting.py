"""Batches of planned images, painted by PyTorch on any device: what `painting.paint` does one at a time by OpenCV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.data.painting import Sketch
from utils.images.letterbox import GREY

CHUNK = 16  # images painted at a time: their places and colours take some 30 MB each at 640 pixels
FAR = 4.0  # surely outside of a layer's image, which reaches from -1 to 1


class Sketches(NamedTuple):
    """A planned batch: B images of one size, made of L layers. Loader processes hand over its tensors as they are."""

    pixels: Tensor  # (n,) uint8, the layers' images (h, w, 3) BGR one after the other
    layers: Tensor  # (L, 4) int64: the painted image, where the layer's own begins, its height and width
    views: Tensor  # (L, 3, 3) float32: homogeneous places in the image, in pixels, to places on the layer's, -1 to 1
    shares: Tensor  # (L,) float32: how much of the painted image a layer is
    colours: Tensor  # (B, 3) float32: factors of hue, saturation and value; (0, 3) where none changes anything
    size: tuple[int, int]  # width and height of the images
    batch: int  # B

    @classmethod
    def pack(cls, sketches: Sequence[Sketch]) -> Sketches:
        """Gather sketches of one size, which have no `effects`: those are for OpenCV alone."""
        assert not any(sketch.effects for sketch in sketches), "the loader paints itself where there are effects"
        images, layers, views, shares, end = list[np.ndarray](), [], [], [], 0
        size = sketches[0].layers[0][1].size
        for number, sketch in enumerate(sketches):
            mirror = np.diag((*np.where(sketch.flips, -1.0, 1.0), 1.0))
            mirror[:2, 2] = np.where(sketch.flips, size, 0)
            for share, (image, warp) in zip((sketch.share, 1 - sketch.share), sketch.layers, strict=False):
                assert warp.size == size, "a batch has one size"
                high, wide = image.shape[:2]
                to_unit = np.array(((2 / wide, 0, -1), (0, 2 / high, -1), (0, 0, 1)))
                images.append(image)
                layers.append((number, end, high, wide))
                views.append(to_unit @ np.linalg.inv(warp.matrix) @ mirror)
                shares.append(share)
                end += image.size
        pixels = np.concatenate([image.ravel() for image in images])
        colours = [sketch.colours for sketch in sketches if sketch.colours is not None]
        return cls(
            torch.from_numpy(pixels), torch.tensor(layers), torch.from_numpy(np.stack(views)).float(),
            torch.tensor(shares), torch.from_numpy(np.array(colours, np.float32).reshape(-1, 3)), size, len(sketches),
        )  # fmt: skip


def paint_batch(sketches: Sketches, device: torch.device) -> Tensor:
    """Return the images (B, 3, H, W) uint8 RGB on a device, which is not waited for if `sketches` are pinned."""
    pixels, views, shares, colours = (
        part.to(device, non_blocking=True)
        for part in (sketches.pixels, sketches.views, sketches.shares, sketches.colours)
    )
    layers, (width, height) = sketches.layers.tolist(), sketches.size
    images = torch.empty((sketches.batch, 3, height, width), dtype=torch.uint8, device=device)
    for first in range(0, sketches.batch, CHUNK):
        last = min(first + CHUNK, sketches.batch)
        mine = [number for number, layer in enumerate(layers) if first <= layer[0] < last]
        levels = torch.zeros((last - first, 3, height, width), device=device)
        places = _places(views[mine[0] : mine[-1] + 1], sketches.size)
        for number, place in zip(mine, places, strict=True):
            image, start, high, wide = layers[number]
            source = pixels[start : start + 3 * high * wide].view(1, high, wide, 3).permute(0, 3, 1, 2)
            # zeros are what lies outside of it
            view = F.grid_sample(source.float() - GREY, place[None], padding_mode="zeros", align_corners=False)
            levels[image - first] += (view[0] + GREY).round_() * shares[number]
        levels.round_()
        images[first:last] = _coloured(levels, colours[first:last]) if len(colours) else levels.flip(1)
    return images


def _places(views: Tensor, size: tuple[int, int]) -> Tensor:
    """Return where each pixel of an image of (width, height) looks on those of L layers: (L, H, W, 2) in -1..1."""
    x, y = (torch.arange(side, device=views.device) + 0.5 for side in size)
    # no matrix product: it might be computed in TF32, a pixel off
    across, down, depth = (row[:, 0, None, None] * x + row[:, 1, None, None] * y[:, None] + row[:, 2, None, None]
                           for row in views.unbind(1))  # fmt: skip
    places = torch.stack((across / depth, down / depth), dim=-1)
    return places.nan_to_num_(FAR).clamp_(-FAR, FAR)  # at the horizon


def _coloured(bgr: Tensor, factors: Tensor) -> Tensor:
    """(b, 3, H, W) BGR levels -> RGB levels, hue, saturation and value multiplied by factors (b, 3), as `augment_hsv`.

    Whole numbers at each step, as OpenCV keeps them in 8 bits: hue in steps of 2 degrees, and levels cut off at the
    end, which its vectorised code does (what is left of a row is rounded).
    """
    blue, green, red = bgr.unbind(1)
    value = bgr.amax(1)
    span = value - bgr.amin(1)
    third = torch.where(value == green, 2 * span + blue - red, 4 * span + red - green)
    hue = (torch.where(value == red, green - blue, third) * 30 / span.clamp(min=1) + 0.5).floor() % 180
    saturation = (span * 255 / value.clamp(min=1) + 0.5).floor()
    by_hue, by_saturation, by_value = (factor[:, None, None] for factor in factors.unbind(1))
    hue = (hue * by_hue % 180).floor()[:, None]
    saturation = (saturation * by_saturation).clamp(max=255).floor()[:, None]
    value = (value * by_value).clamp(max=255).floor()[:, None]
    sector = (5 - torch.arange(0, 6, 2, device=bgr.device)[:, None, None] + hue / 30) % 6  # red, green, blue
    return (value * (1 - saturation / 255 * torch.minimum(sector, 4 - sector).clamp(0, 1))).floor()
