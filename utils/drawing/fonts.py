"""Fonts, chosen by what must be drawn with them: the one choice for images, mosaics and figures.

Nothing is downloaded. A text takes the first font that has all of its characters; where none has them all, each
character takes the first font that has it. What no font has is said once, with a package that would have it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

from PIL import ImageFont

from utils.base.files import printable, walk_files
from utils.base.log import LOGGER

# Parts of file names of fonts that hold Chinese, Japanese and Korean glyphs, the better-looking ones first.
CJK_FONTS = (
    "notosanscjk", "notosanssc", "sourcehansans", "pingfang", "msyh", "hiragino", "wqy-microhei", "wqy-zenhei",
    "stheiti", "simhei", "simsun", "droidsansfallback", "arialuni", "arial unicode", "malgun", "uming", "unifont",
)  # fmt: skip
CJK_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH")
EMPTY_FONTS = ("lastresort", "adobeblank", "adobenotdef")  # they claim every character and draw none
SPECIAL_CUTS = ("bold", "italic", "oblique", "black", "light", "thin", "condensed", "mono", "emoji")
BUNDLED = ""  # stands for the font inside Pillow itself
UNASSIGNED = "\U0010fffe"  # no font has a glyph here: what is drawn for it is the "missing" box
PROBE_SIZE = 16  # pixels at which glyphs are compared
LONGEST_NAME = 40  # characters of a class name that are drawn

_warned: set[str] = set()  # of what the process has been warned: undrawable text once, each unreadable font once


def _font_folders() -> list[Path]:
    """Where this operating system keeps fonts."""
    home = Path(os.path.expanduser("~"))
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")]
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft/Windows/Fonts"
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


@cache
def _system_fonts() -> list[str]:
    """Installed font files: those whose names promise CJK glyphs in the order of `CJK_FONTS`, then the others."""
    files = [Path(file) for folder in _font_folders() for file in walk_files(folder)]

    def rank(file: Path) -> tuple[int, bool, str]:
        name = file.name.lower()
        place = next((i for i, wanted in enumerate(CJK_FONTS) if wanted in name), len(CJK_FONTS))
        return place, any(cut in name for cut in SPECIAL_CUTS), str(file)

    usable = [
        file
        for file in files
        if file.suffix.lower() in {".ttf", ".ttc", ".otf"} and not file.name.lower().startswith(EMPTY_FONTS)
    ]
    return [str(file) for file in sorted(usable, key=rank)]


def _candidates(chosen: tuple[str, ...]) -> Iterator[str]:
    """Fonts to try, in order: the chosen ones, Pillow's own, the one inside matplotlib, the system's."""
    for path in chosen:
        if _probe(path):
            yield path
        else:
            _warn_once(path, f"font {printable(path)!r} cannot be read; using another one")
    yield BUNDLED
    if (package := importlib.util.find_spec("matplotlib")) and package.origin:
        yield str(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf")
    yield from _system_fonts()


@lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font at `path` in `size` pixels; an empty path means the one bundled with Pillow."""
    return ImageFont.load_default(size) if path == BUNDLED else ImageFont.truetype(path, size)


@cache
def _probe(path: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont | None:
    """A font to look for glyphs in, one by one, as no shaping joins or adds any; None for a file that is no font."""
    try:
        return load_font(path, PROBE_SIZE).font_variant(layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return None


def _glyph(path: str, character: str) -> tuple[tuple[int, int], bytes]:
    mask = _probe(path).getmask(character)
    return mask.size, bytes(mask)


@cache
def _missing_glyph(path: str) -> tuple[tuple[int, int], bytes]:
    """What the font draws for a character that it lacks."""
    return _glyph(path, UNASSIGNED)


@lru_cache(maxsize=1 << 16)
def _has(path: str, character: str) -> bool:
    """Whether the font draws something of its own for the character."""
    if _probe(path) is None:
        return False
    try:
        glyph = _glyph(path, character)
        return glyph != _missing_glyph(path) and any(glyph[1])
    except OSError:  # a font of bitmaps in other sizes
        return False


def _chosen(first: str) -> tuple[str, ...]:
    """The fonts that somebody asks for: a caller, and the environment variable YOLOV5_FONT."""
    return tuple(filter(None, (first, os.environ.get("YOLOV5_FONT", ""))))


@cache
def _owners(chosen: tuple[str, ...]) -> dict[str, str | None]:
    """The first font that has a character, None where no font has it; filled as characters are asked for."""
    return {}


def _find_owners(characters: set[str], chosen: tuple[str, ...]) -> dict[str, str | None]:
    """`_owners` with at least these characters in it; each font is looked at once for all of them."""
    known = _owners(chosen)
    open_ones = characters - known.keys()
    for path in _candidates(chosen) if open_ones else ():
        found = {character for character in open_ones if _has(path, character)}
        known.update(dict.fromkeys(found, path))
        if not (open_ones := open_ones - found):
            break
    known.update(dict.fromkeys(open_ones))
    return known


def plain(text: str) -> str:
    """The text as it is drawn: composed letters, one line, no invisible signs (joiners, marks of direction)."""
    composed = printable(unicodedata.normalize("NFC", text))
    seen = (c for c in composed if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    return "".join(" " if c.isspace() else c for c in seen)


def _characters(text: str) -> set[str]:
    return set(plain(text)) - {" "}


def find_font(text: str, first: str = "") -> str | None:
    """Path of one font that has a glyph for every character of `text` ('' = Pillow's own), None where there is none.

    The font file `first`, then the one that the environment variable YOLOV5_FONT names, are tried before all others.
    """
    characters, chosen = _characters(text), _chosen(first)
    owners = _find_owners(characters, chosen)
    useful = {owners[character] for character in characters}
    if None in useful:
        return None
    for path in _candidates(chosen):
        if path in useful or not characters:
            if all(_has(path, character) for character in characters):
                return path
            useful.remove(path)
            if not useful:
                break
    return None


@lru_cache(maxsize=4096)
def font_runs(text: str, first: str = "") -> list[tuple[str, str]]:
    """The text in pieces (font path, characters) of one font each; '?' stands for what no font has.

    One piece wherever one font has all of it. The font file `first` is tried before all others.
    """
    drawn = plain(text)
    if (whole := find_font(drawn, first)) is not None:
        return [(whole, drawn)]
    owners = _find_owners(_characters(drawn), _chosen(first))
    if bad := [character for character in drawn if owners.get(character, BUNDLED) is None]:
        _warn_undrawable("".join(bad), (text,))
        return font_runs("".join("?" if character in bad else character for character in drawn), first)
    pieces: list[tuple[str, str]] = []
    for character in drawn:
        before = pieces[-1][0] if pieces else BUNDLED
        pieces.append((before if character == " " else owners[character], character))
    return [(path, "".join(c for _, c in run)) for path, run in groupby(pieces, key=lambda piece: piece[0])]


def drawable_names(names: Sequence[str] | dict[int, str]) -> list[str]:
    """Class names as they can be drawn: one with characters that no font has becomes `#` and its class number.

    `names` is a list, or a dict from class number to name. The sign tells the number from a confidence beside it. What
    is longer than `LONGEST_NAME` characters is cut, and numbered too, so that no name takes a whole image or chart.
    """
    words = [str(names[i]) for i in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    owners = _find_owners(_characters("".join(words)), _chosen(""))
    lost = {character for character in _characters("".join(words)) if owners[character] is None}
    bad = {word for word in words if lost & _characters(word)} if lost else set()
    if bad:
        _warn_undrawable("".join(sorted(lost)), [word for word in words if word in bad])
    return [f"#{i}" if word in bad else _cut(word, i) for i, word in enumerate(words)]


def _cut(word: str, number: int) -> str:
    return word if len(word) <= LONGEST_NAME else f"{word[: LONGEST_NAME - 12]}... #{number}"


def _warn_undrawable(characters: str, texts: Sequence[str]) -> None:
    is_cjk = any(unicodedata.name(character, "").startswith(CJK_SCRIPTS) for character in characters)
    if sys.platform == "linux":
        package = (
            "fonts-noto-cjk (apt), google-noto-sans-cjk-fonts (dnf), noto-fonts-cjk (pacman) or font-noto-cjk (apk)"
            if is_cjk
            else "fonts-noto-core (apt), google-noto-sans-fonts (dnf), noto-fonts (pacman) or font-noto-all (apk)"
        )
    else:
        package = f"Noto Sans{' CJK' * is_cjk} from fonts.google.com/noto"
    shown = f"{', '.join(repr(printable(text)) for text in texts[:3])}{' ...' * (len(texts) > 3)}"
    _warn_once(
        "undrawable",
        f"no installed font can draw {shown}: class numbers such as #1 stand for names, '?' for other characters. "
        f"Install {package}, or set YOLOV5_FONT to a .ttf, .ttc or .otf file that has them",
    )


def _warn_once(about: str, words: str) -> None:
    if about not in _warned:
        _warned.add(about)
        LOGGER.warning(words)
