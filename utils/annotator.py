"""Boxes and text on pictures: the palette, the choice of a font, and `Annotator`.

Rectangles are written straight into the array and text is rendered by Pillow as a small mask, cached and blended in. So
nothing is converted back and forth per frame, and the result does not depend on the version of OpenCV's text renderer.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.log import LOGGER

PALETTE = (
    "FF3838 FF9D97 FF701F FFB21D CFD231 48F90A 92CC17 3DDB86 1A9334 00D4BB "
    "2C99A8 00C2FF 344593 6473FF 0018EC 8438FF 520085 CB38FF FF95C8 FF37C7"
).split()

# Parts of file names of fonts that hold Chinese, Japanese and Korean glyphs, the better-looking ones first.
CJK_FONTS = (
    "notosanscjk", "notosanssc", "sourcehansans", "pingfang", "msyh", "hiragino", "wqy-microhei", "wqy-zenhei",
    "stheiti", "simhei", "simsun", "droidsansfallback", "arialuni", "arial unicode", "malgun", "uming", "unifont",
)  # fmt: skip
BUNDLED = ""  # stands for the font inside Pillow itself
UNASSIGNED = "\U0010fffe"  # no font has a glyph here: what is drawn for it is the "missing" box

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


def _font_folders() -> list[Path]:
    """Where this operating system keeps fonts."""
    home = Path.home()
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft/Windows/Fonts"
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


@cache
def _system_cjk_fonts() -> list[str]:
    """Installed fonts whose names promise CJK glyphs, in the order of `CJK_FONTS`."""
    files = [
        file
        for folder in _font_folders()
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in {".ttf", ".ttc", ".otf"}
    ]
    return [str(file) for wanted in CJK_FONTS for file in files if wanted in file.name.lower()]


def _candidate_fonts(chosen: str) -> Iterator[str]:
    """Fonts to try, in order: the user's, Pillow's own, the one inside matplotlib, the system's. Never a download."""
    if chosen:
        yield chosen
    yield BUNDLED
    if (package := importlib.util.find_spec("matplotlib")) and package.origin:
        yield str(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    yield from _system_cjk_fonts()


@lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font at `path` in `size` pixels; an empty path means the one bundled with Pillow."""
    return ImageFont.load_default(size) if path == BUNDLED else ImageFont.truetype(path, size)


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


@cache
def _opens(path: str) -> bool:
    """Whether the font file can be used; one warning when it cannot."""
    try:
        load_font(path, 16)
    except OSError as error:
        LOGGER.warning(f"font {path!r} cannot be read ({error}); using another one")
        return False
    return True


@lru_cache(maxsize=1024)
def _font_covering(characters: str, chosen: str) -> str | None:
    for path in _candidate_fonts(chosen):
        if not _opens(path):
            continue
        font = load_font(path, 16)
        missing = _glyph(font, UNASSIGNED)
        if all(_glyph(font, character) != missing for character in characters):
            return path
    return None


def find_font(text: str) -> str | None:
    """Path of a font that has a glyph for every character of `text` ('' = Pillow's own), None where there is none.

    The font file that the environment variable YOLOV5_FONT names is tried before all others.
    """
    characters = "".join(sorted({character for character in text if not character.isspace()}))
    return _font_covering(characters, os.environ.get("YOLOV5_FONT", ""))


@cache
def _warn_undrawable(names: tuple[str, ...]) -> None:
    LOGGER.warning(
        f"no installed font can draw {', '.join(map(repr, names[:3]))}{' ...' if len(names) > 3 else ''}; "
        "class numbers are drawn instead. Set YOLOV5_FONT to a .ttf, .ttc or .otf file that has these characters"
    )


def drawable_names(names: Sequence[str] | dict[int, str]) -> list[str]:
    """Class names as they can be drawn: a name no font has glyphs for becomes its class number, with one warning.

    `names` is a list, or a dict from class number to name. All names that are kept can be drawn by one font, the one
    that `find_font` chooses for all of them together.
    """
    words = [str(names[i]) for i in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    if find_font("".join(words)) is not None:
        return words
    bad = {word for word in words if find_font(word) is None}
    if not bad:  # each has a font of its own, no font has them all: plain ones stay
        bad = {word for word in words if not word.isascii()}
    _warn_undrawable(tuple(word for word in words if word in bad))
    return [str(i) if word in bad else word for i, word in enumerate(words)]


@lru_cache(maxsize=2048)
def _text_mask(text: str, path: str, size: int) -> np.ndarray:
    """Coverage 0..1 of the text, (height, width): the same height for every text, so that baselines agree."""
    font = load_font(path, size)
    ascent, descent = font.getmetrics()
    left, _, right, _ = font.getbbox(text)
    canvas = Image.new("L", (max(int(np.ceil(right - left)), 1), ascent + descent))
    ImageDraw.Draw(canvas).text((-left, 0), text, font=font, fill=255)
    return np.asarray(canvas, np.float32) / 255


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on `colour` (the channel order does not matter)."""
    first, green, last = colour
    return (20, 20, 20) if 0.2 * first + 0.6 * green + 0.2 * last > 150 else (255, 255, 255)


class Annotator:
    """Draws boxes and labels into a picture.

    `im` is an (H, W, 3) uint8 array, drawn into in place where it is writeable and contiguous (else a copy is), or a
    PIL picture, which is copied. Colours are given in the channel order of the picture. `line_width` and `font_size`
    are pixels and follow from the picture's size when None. `font` is a font file; '' chooses one that can draw
    `example`. `pil` is accepted for callers of v6.1: text is drawn by Pillow in any case.
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
        """Draw the box (x1, y1, x2, y2 in pixels), its label above it, or inside it at the picture's upper edge."""
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        self.rectangle((x1, y1, x2, y2), color, width=self.lw)
        if not label:
            return
        mask = _text_mask(label, self.font, self.font_size)
        margin = max(self.font_size // 5, 2)
        height, width = mask.shape[0] + 2, mask.shape[1] + 2 * margin
        outer = self.lw // 2
        top = y1 - outer - height if y1 - outer >= height else y1 - outer
        left = max(min(x1 - outer, self.im.shape[1] - width), 0)
        self._fill(left, top, left + width, top + height, color)
        self._blend(mask, left + margin, top + 1, txt_color or readable_on(color))

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
