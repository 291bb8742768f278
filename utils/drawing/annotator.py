"""Boxes and text on images: the palette, how large a tag may be, and `Annotator`; the fonts are chosen in `fonts`.

Rectangles are written straight into the array and text is rendered by Pillow as a small mask, cached and blended in. So
nothing is converted back and forth per frame, and the result does not depend on the version of OpenCV's text renderer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from utils.drawing.fonts import BUNDLED, drawable_names, find_font, font_runs, load_font

__all__ = ["Annotator", "Colors", "colors", "drawable_names", "find_font", "readable_on", "tag_size"]

PALETTE = (
    "FF3838 FF9D97 FF701F FFB21D CFD231 48F90A 92CC17 3DDB86 1A9334 00D4BB "
    "2C99A8 00C2FF 344593 6473FF 0018EC 8438FF 520085 CB38FF FF95C8 FF37C7"
).split()

# One rule for the tag (the label with its text) of a box, in every image and, in other words, on serving/page.html.
TAG_SHARE = 0.5  # a tag has at most this share of the area of its box
SMALLEST_TEXT = 8  # pixels; a tag that would need smaller text is left out
LINE_SHARE = 8  # a box's line is at most its shorter side divided by this

Colour = tuple[int, int, int]


class Colors:
    """The twenty class colours of YOLOv5; class i gets colour i modulo twenty."""

    def __init__(self) -> None:
        self.palette: list[Colour] = [tuple(bytes.fromhex(code)) for code in PALETTE]
        self.n = len(self.palette)

    def __call__(self, i: int, bgr: bool = False) -> Colour:
        """Colour of class `i` as (red, green, blue), or reversed for OpenCV's pictures."""
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


def tag_size(box: float, tag: float, font_size: int) -> int:
    """Height in pixels of the text in the tag of a box, 0 for no tag.

    `box` is the area of the part of the box inside the image, `tag` that of the tag at `font_size`, in pixels^2. A tag
    that would have more than half of the area of its box shrinks to that, by sqrt(0.5 * box / tag), and is left out
    where its text would be smaller than 8 pixels: the box alone remains. So no tag hides what it names, and a box that
    is large beside its tag has it in full size.
    """
    fitting = int(font_size * min(1.0, math.sqrt(TAG_SHARE * box / tag)))
    return fitting if fitting >= min(SMALLEST_TEXT, font_size) else 0


def _tag_margin(size: int) -> int:
    """Pixels to the left and right of a tag's text."""
    return max(size // 5, 2)


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on `colour` (the channel order does not matter)."""
    first, green, last = colour
    return (20, 20, 20) if 0.2 * first + 0.6 * green + 0.2 * last > 150 else (255, 255, 255)


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
        picture = np.array(im.convert("RGB")) if isinstance(im, Image.Image) else im
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"cannot draw on {picture.dtype} of shape {picture.shape}; wanted uint8 of (H, W, 3)")
        usable = picture.flags.writeable and picture.flags.c_contiguous
        self.im = picture if usable else np.array(picture, order="C")
        self.lw = int(line_width or max(round(sum(picture.shape) / 2 * 0.003), 2))
        self.font_size = int(font_size or max(round(sum(picture.shape) / 2 * 0.017), 11))
        self.font = font or find_font(str(example)) or BUNDLED
        self.pil = pil

    def box_label(
        self,
        box: Sequence[float],
        label: str = "",
        color: Colour = (128, 128, 128),
        txt_color: Colour | None = None,
    ) -> None:
        """Draw the box (x1, y1, x2, y2 in pixels), its label above it, or inside it at the image's upper edge.

        A small box gets a thinner line, and a smaller label or none, see `tag_size`.
        """
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        line = max(min(self.lw, round(min(x2 - x1, y2 - y1) / LINE_SHARE)), 1)
        self.rectangle((x1, y1, x2, y2), color, width=line)
        if not label or not (size := tag_size(self._area(x1, y1, x2, y2), self._tag_area(label), self.font_size)):
            return
        mask, margin = _text_mask(label, self.font, size), _tag_margin(size)
        height, width = mask.shape[0] + 2, mask.shape[1] + 2 * margin
        outer = line // 2
        top = y1 - outer - height if y1 - outer >= height else y1 - outer
        left = max(min(x1 - outer, self.im.shape[1] - width), 0)
        self._fill(left, top, left + width, top + height, color)
        self._blend(mask, left + margin, top + 1, txt_color or readable_on(color))

    def _area(self, x1: int, y1: int, x2: int, y2: int) -> int:
        """Pixels of the box that are in the image."""
        height, width = self.im.shape[:2]
        return max(min(x2, width) - max(x1, 0), 0) * max(min(y2, height) - max(y1, 0), 0)

    def _tag_area(self, label: str) -> int:
        """Pixels of a tag in full size."""
        height, width = _text_mask(label, self.font, self.font_size).shape
        return (height + 2) * (width + 2 * _tag_margin(self.font_size))

    def rectangle(
        self, xy: Sequence[float], outline: Colour = (128, 128, 128), fill: Colour | None = None, width: int = 1
    ) -> None:
        """Draw a rectangle whose outline is centred on (x1, y1, x2, y2)."""
        x1, y1, x2, y2 = (round(float(value)) for value in xy)
        if fill is not None:
            self._fill(x1, y1, x2 + 1, y2 + 1, fill)
        before = width // 2
        after = width - before
        self._fill(x1 - before, y1 - before, x2 + after, y1 + after, outline)
        self._fill(x1 - before, y2 - before, x2 + after, y2 + after, outline)
        self._fill(x1 - before, y1 - before, x1 + after, y2 + after, outline)
        self._fill(x2 - before, y1 - before, x2 + after, y2 + after, outline)

    def text(self, xy: Sequence[float], text: str, txt_color: Colour = (255, 255, 255)) -> None:
        """Write `text` with its upper left corner at `xy`."""
        if text:
            self._blend(_text_mask(text, self.font, self.font_size), round(xy[0]), round(xy[1]), txt_color)

    def result(self) -> np.ndarray:
        """The annotated picture, (H, W, 3) uint8."""
        return self.im

    def _fill(self, x1: int, y1: int, x2: int, y2: int, colour: Colour) -> None:
        self.im[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = colour

    def _blend(self, mask: np.ndarray, left: int, top: int, colour: Colour) -> None:
        height, width = self.im.shape[:2]
        y1, x1 = max(top, 0), max(left, 0)
        y2, x2 = min(top + mask.shape[0], height), min(left + mask.shape[1], width)
        if y1 >= y2 or x1 >= x2:
            return
        cover = mask[y1 - top : y2 - top, x1 - left : x2 - left, None]
        patch = self.im[y1:y2, x1:x2]
        patch[:] = (patch * (1 - cover) + np.asarray(colour, np.float32) * cover + 0.5).astype(np.uint8)
