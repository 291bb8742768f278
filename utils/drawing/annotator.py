"""Boxes and text on images: the palette, how large a tag may be, and `Annotator`; the fonts are chosen in `fonts`.

Rectangles are written straight into the array and text is rendered by Pillow as a small mask, cached and blended in. So
nothing is converted back and forth per frame, and the result does not depend on the version of OpenCV's text renderer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw

from utils.drawing.fonts import BUNDLED, font_runs, load_font
from utils.drawing.fonts import find_font as find_font  # programs of outsiders ask it here

PALETTE = (
    0xFF3838, 0xFF9D97, 0xFF701F, 0xFFB21D, 0xCFD231, 0x48F90A, 0x92CC17, 0x3DDB86, 0x1A9334, 0x00D4BB,
    0x2C99A8, 0x00C2FF, 0x344593, 0x6473FF, 0x0018EC, 0x8438FF, 0x520085, 0xCB38FF, 0xFF95C8, 0xFF37C7,
)  # fmt: skip

# One rule for the tag (the label with its text) of a box, in every image and, in other words, on serving/page.html.
TAG_SHARE = 0.5  # a tag has at most this share of the area of its box
SMALLEST_TEXT = 8  # pixels; a tag that would need smaller text is left out
LINE_SHARE = 8  # a box's line is at most its shorter side divided by this

Colour = tuple[int, int, int]


class Colors:
    """The twenty class colours of YOLOv5; class i gets colour i modulo twenty."""

    palette: ClassVar[list[Colour]] = [(code >> 16, code >> 8 & 255, code & 255) for code in PALETTE]
    n = len(palette)

    def __call__(self, i: float, bgr: bool = False) -> Colour:
        """Return the colour of class `i` as (red, green, blue), or reversed for OpenCV's images."""
        red, green, blue = self.palette[int(i) % self.n]
        return (blue, green, red) if bgr else (red, green, blue)


colors = Colors()


@lru_cache(maxsize=4096)
def _text_mask(text: str, font: str, size: int) -> np.ndarray:
    """Coverage 0..1 of the text, (height, width), in `font` where it can draw it.

    The height is the font's, the same for every text, so that baselines agree.
    """
    runs = [(load_font(path, size), characters) for path, characters in font_runs(text, font)]
    ascent, descent = (max(values) for values in zip(*(face.getmetrics() for face, _ in runs), strict=True))
    spans = [face.getbbox(characters, anchor="ls")[::2] for face, characters in runs]
    widths = [max(math.ceil(right - left), 1) for left, right in spans]
    canvas = Image.new("L", (sum(widths), ascent + descent))
    pen, place = ImageDraw.Draw(canvas), 0
    for (face, characters), (left, _), width in zip(runs, spans, widths, strict=True):
        pen.text((place - left, ascent), characters, font=face, fill=255, anchor="ls")
        place += width
    return np.asarray(canvas, np.float32) / 255


class Annotator:
    """Draws boxes and labels into an image.

    `im` is an (H, W, 3) uint8 array, drawn into in place where it is writeable and contiguous (else a copy is), or a
    PIL image, which is copied. Colours are given in the channel order of the image. `line_width` and `font_size` are
    pixels, at most, and follow from the image's size when None. `font` is the font file that is tried first; '' for
    one that can draw all of `example`, so that texts look alike. Any text gets a font that can draw it. `pil` is
    accepted for callers of v6.1: text is drawn by Pillow in any case.
    """

    def __init__(
        self,
        im: np.ndarray | Image.Image,
        line_width: int | None = None,
        font_size: int | None = None,
        font: str = "",
        pil: bool = False,
        example: str = "abc",
    ) -> None:
        image = np.array(im.convert("RGB")) if isinstance(im, Image.Image) else im
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"cannot draw on {image.dtype} of shape {image.shape}; wanted uint8 of (H, W, 3)")
        usable = image.flags.writeable and image.flags.c_contiguous
        self.im = image if usable else np.array(image, order="C")
        self.lw = int(line_width or max(round(sum(image.shape) / 2 * 0.003), 2))
        self.font_size = int(font_size or max(round(sum(image.shape) / 2 * 0.017), 11))
        fonts = font_runs(str(example))
        self.font = font or (fonts[0][0] if len(fonts) == 1 else BUNDLED)

    def box_label(
        self, box: Sequence[float], label: str = "", color: Colour = (128, 128, 128), txt_color: Colour | None = None
    ) -> None:
        """Draw the box (x1, y1, x2, y2 in pixels), its label above it, or inside it at the image's upper edge.

        A tag that would have more than half of the area of its box (of the part inside the image) shrinks to that, and
        is left out where its text would be smaller than 8 pixels: no tag hides what it names. Lines are thinner around
        small boxes. Without `txt_color` text is black or white, whichever is easier to read.
        """
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        line = max(min(self.lw, round(min(x2 - x1, y2 - y1) / LINE_SHARE)), 1)
        self.rectangle((x1, y1, x2, y2), color, width=line)
        if not label:
            return
        rows, columns = self.im.shape[:2]
        area = max(min(x2, columns) - max(x1, 0), 0) * max(min(y2, rows) - max(y1, 0), 0)
        mask, margin = _text_mask(label, self.font, self.font_size), max(self.font_size // 5, 2)
        tag = (mask.shape[0] + 2) * (mask.shape[1] + 2 * margin)
        size = int(self.font_size * min(1.0, math.sqrt(TAG_SHARE * area / tag)))
        if size < min(SMALLEST_TEXT, self.font_size):
            return
        mask, margin = _text_mask(label, self.font, size), max(size // 5, 2)
        height, width = mask.shape[0] + 2, mask.shape[1] + 2 * margin
        outer = line // 2
        top = y1 - outer - height if y1 - outer >= height else y1 - outer
        left = max(min(x1 - outer, columns - width), 0)
        self._fill(left, top, left + width, top + height, color)
        is_bright = 0.2 * color[0] + 0.6 * color[1] + 0.2 * color[2] > 150
        self._blend(mask, left + margin, top + 1, txt_color or ((20, 20, 20) if is_bright else (255, 255, 255)))

    def rectangle(
        self, xy: Sequence[float], outline: Colour = (128, 128, 128), fill: Colour | None = None, width: int = 1
    ) -> None:
        """Draw a rectangle whose outline is centred on (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = (round(float(value)) for value in xy)
        if fill is not None:
            self._fill(x1, y1, x2 + 1, y2 + 1, fill)
        before = width // 2
        after = width - before
        for y in (y1, y2):
            self._fill(x1 - before, y - before, x2 + after, y + after, outline)
        for x in (x1, x2):
            self._fill(x - before, y1 - before, x + after, y2 + after, outline)

    def text(self, xy: Sequence[float], text: str, txt_color: Colour = (255, 255, 255)) -> None:
        """Write `text` with its upper left corner at `xy`."""
        if text:
            self._blend(_text_mask(text, self.font, self.font_size), round(xy[0]), round(xy[1]), txt_color)

    def result(self) -> np.ndarray:
        """Return the annotated image, (H, W, 3) uint8."""
        return self.im

    def _fill(self, x1: int, y1: int, x2: int, y2: int, colour: Colour) -> None:
        self.im[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = colour

    def _blend(self, mask: np.ndarray, left: int, top: int, colour: Colour) -> None:
        """Paint where the mask is, in proportion to it."""
        y1, x1 = max(top, 0), max(left, 0)
        patch = self.im[y1 : max(top + mask.shape[0], 0), x1 : max(left + mask.shape[1], 0)]
        cover = mask[y1 - top :, x1 - left :, None][: patch.shape[0], : patch.shape[1]]
        patch[:] = (patch * (1 - cover) + np.asarray(colour, np.float32) * cover + 0.5).astype(np.uint8)
