"""Fonts, chosen by what must be drawn with them: the one choice for images, mosaics and figures.

Nothing is downloaded. A text takes the first font that has all of its characters; where none has them all, each
character takes the first font that has it. What no font has is said once, with a package that would have it.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from io import BytesIO
from itertools import groupby
from pathlib import Path

from PIL import ImageFont

from utils.base.files import printable
from utils.base.log import LOGGER

# Parts of file names of fonts that hold Chinese, Japanese and Korean glyphs, the better-looking ones first.
CJK_FONTS = (
    "notosanscjk", "notosanssc", "sourcehansans", "pingfang", "msyh", "hiragino", "wqy-microhei", "wqy-zenhei",
    "stheiti", "simhei", "simsun", "droidsansfallback", "arialuni", "arial unicode", "malgun", "uming", "unifont",
)  # fmt: skip
CJK_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH")
# They have many characters and draw none, or none in one colour
EMPTY_FONTS = ("lastresort", "adobeblank", "adobenotdef", "notocoloremoji", "apple color emoji")
SPECIAL_CUTS = ("bold", "italic", "oblique", "black", "light", "thin", "condensed", "mono", "emoji")
BUNDLED = ""  # stands for the font inside Pillow itself
LONGEST_NAME = 40  # characters of a class name that are drawn

_warned: set[str] = set()  # of what the process has been warned: undrawable text once, each unreadable font once


@lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Return the font at `path` in `size` pixels; an empty path means the one bundled with Pillow."""
    font = ImageFont.load_default(size) if path == BUNDLED else ImageFont.truetype(path, size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return font


@cache
def _characters_in(path: str) -> frozenset[int]:
    """Code points that a font has glyphs for; none for a file that is no font which can be drawn in any size."""
    from matplotlib.ft2font import FT2Font  # costs a fifth of a second that ASCII alone need not take

    try:
        font = load_font(path, 16)
        return frozenset(FT2Font(BytesIO(font.font_bytes) if path == BUNDLED else path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def _system_fonts() -> list[str]:
    """Installed font files: those whose names promise CJK glyphs in the order of `CJK_FONTS`, then the others."""
    from matplotlib.font_manager import findSystemFonts

    def rank(file: str) -> tuple[int, bool, str]:
        name = Path(file).name.lower()
        place = next((i for i, wanted in enumerate(CJK_FONTS) if wanted in name), len(CJK_FONTS))
        return place, any(cut in name for cut in SPECIAL_CUTS), file

    return sorted((file for file in findSystemFonts() if not Path(file).name.lower().startswith(EMPTY_FONTS)), key=rank)


def _candidates(chosen: Sequence[str]) -> Iterator[str]:
    """Fonts to try, in order: the chosen ones, Pillow's own, the one inside matplotlib, the system's."""
    for path in chosen:
        if _characters_in(path):
            yield path
        elif path not in _warned:
            _warned.add(path)
            LOGGER.warning(f"font {printable(path)!r} cannot be read; using another one")
    yield BUNDLED
    import matplotlib

    yield os.path.join(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    yield from _system_fonts()


def _owners(text: str, first: str = "") -> dict[str, str]:
    """The font of each character of a plain text: one for all where one has them, else the first that has it.

    The font file `first`, then the one that YOLOV5_FONT names, come before all others. Once every character has a font
    no more are read: a large one takes megabytes. What none has is left out.
    """
    characters, owners = set(text) - {" "}, dict[str, str]()
    for path in _candidates([path for path in (first, os.environ.get("YOLOV5_FONT", "")) if path]):
        if path == BUNDLED and all(map(str.isascii, characters)):
            return dict.fromkeys(characters, BUNDLED)
        found = {character for character in characters if ord(character) in _characters_in(path)}
        if found == characters:
            return dict.fromkeys(characters, path)
        owners = dict.fromkeys(found, path) | owners
        if len(owners) == len(characters):
            break
    return owners


def find_font(text: str) -> str | None:
    """Return the font file that draws all of a text ("" is Pillow's own), or None where no single one does."""
    drawn = plain(text)
    owners = _owners(drawn)
    fonts = {owners.get(character) for character in drawn if character != " "} or {BUNDLED}
    return fonts.pop() if len(fonts) == 1 else None


def plain(text: str) -> str:
    """Return the text as it is drawn: composed letters, one line, no invisible signs (joiners, marks of direction)."""
    composed = printable(unicodedata.normalize("NFC", text))
    seen = (c for c in composed if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return "".join(" " if c.isspace() else c for c in seen)


@lru_cache(maxsize=4096)
def font_runs(text: str, first: str = "") -> list[tuple[str, str]]:
    """Return the text in pieces (font path, characters) of one font each; '?' stands for what no font has.

    One piece wherever one font has all of it. The font file `first` is tried before all others.
    """
    drawn = plain(text)
    owners = _owners(drawn, first)
    if bad := set(drawn) - {" "} - owners.keys():
        _warn_undrawable(bad, [text])
        return font_runs("".join("?" if character in bad else character for character in drawn), first)
    place = next(iter(owners.values()), BUNDLED) if len(set(owners.values())) == 1 else BUNDLED
    places = [place := owners.get(character, place) for character in drawn]  # a space is drawn as what is before it
    pairs = groupby(zip(places, drawn, strict=True), key=lambda pair: pair[0])
    return [(path, "".join(character for _, character in run)) for path, run in pairs] or [(BUNDLED, "")]


def drawable_names(names: Sequence[str] | dict[int, str]) -> list[str]:
    """Return class names as they can be drawn: of one with characters that no font has `#` and its class number.

    `names` is a list, or a dict from class number to name. The sign tells the number from a confidence beside it. What
    is longer than `LONGEST_NAME` characters is cut, and numbered too, so that no name takes a whole image or chart.
    """
    ordered = [names[i] for i in sorted(names)] if isinstance(names, dict) else names
    words = list(map(str, ordered))
    every = plain("".join(words))
    lost = set(every) - {" "} - _owners(every).keys()
    bad = {word for word in words if lost & set(plain(word))}
    if bad:
        _warn_undrawable(lost, [word for word in words if word in bad])
    shorts = [w if len(w) <= LONGEST_NAME else f"{w[: LONGEST_NAME - 12]}... #{i}" for i, w in enumerate(words)]
    return [f"#{i}" if word in bad else short for i, (word, short) in enumerate(zip(words, shorts, strict=True))]


def _warn_undrawable(characters: set[str], texts: Sequence[str]) -> None:
    if "undrawable" in _warned:
        return
    _warned.add("undrawable")
    is_cjk = any(unicodedata.name(character, "").startswith(CJK_SCRIPTS) for character in characters)
    packages = {
        True: "fonts-noto-cjk (apt), google-noto-sans-cjk-fonts (dnf), noto-fonts-cjk (pacman) or font-noto-cjk (apk)",
        False: "fonts-noto-core (apt), google-noto-sans-fonts (dnf), noto-fonts (pacman) or font-noto-all (apk)",
    }
    anywhere = f"Noto Sans{' CJK' * is_cjk} from fonts.google.com/noto"
    package = packages[is_cjk] if sys.platform == "linux" else anywhere
    few = f"{', '.join(repr(printable(text)) for text in texts[:3])}{' ...' * (len(texts) > 3)}"
    LOGGER.warning(
        f"no installed font can draw {few}: class numbers such as #1 stand for names, '?' for other characters. "
        f"Install {package}, or set YOLOV5_FONT to a .ttf, .ttc or .otf file that has them"
    )
