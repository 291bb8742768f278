"""Where the images lie that other people's annotations name, and where their label files therefore belong.

Annotations name images as they lay on the machine that wrote them: with folders or without, with either kind of slash,
as addresses, with the prefix of an upload. Which label file belongs to an image on disk is `image_files`' to say.
"""

from __future__ import annotations

import functools
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from utils.base.files import is_hidden, is_one_line, printable, walk_files
from utils.base.log import LOGGER
from utils.data.image_files import img2label_paths, is_image, label_places
from utils.images.reading import inspect_image

MAX_NAME = 200  # characters of an image's name, folders included
_OTHER_ENDINGS = frozenset("avif gif heic heif jfif jpe jp2 jxl pgm pnm ppm svg tga".split())  # to be converted first
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)", re.IGNORECASE | re.DOTALL)  # Label Studio's prefix

Parts = tuple[str, ...]  # folders, then the file's name


def has_ending(name: str) -> bool:
    """Whether a name ends like an image, be it one that has to be converted before it can be read."""
    return is_image(name) or name.rpartition(".")[2].lower() in _OTHER_ENDINGS


def image_size(image: Path) -> tuple[int, int]:
    """Return (w, h) of an image whose annotations are in pixels. Raises ValueError, naming it, if unreadable."""
    try:
        return inspect_image(image).size
    except Exception as error:  # a damaged file can make a decoder raise anything; the error names the file
        reason = printable(str(error)) or type(error).__name__
        raise ValueError(f"{printable(image)}: its size cannot be read ({reason}); replace or remove it") from error


@dataclass(frozen=True)
class ImageName:
    """An image as annotations name it: its `parts`, and where below the images' folder that is if nothing is found.

    `whole` is False where only the name without its ending is known.
    """

    text: str
    parts: Parts
    place: Parts
    whole: bool = True

    @classmethod
    def read(cls, text: str, whole: bool = True) -> ImageName:
        """Return the image of this name. Raises ValueError for what cannot be the name of a file."""
        path = _plain_path(text)
        absolute = re.match(r"[A-Za-z]:|[\\/]", "/" if "?d=" in text else path) is not None
        parts: list[str] = []
        for part in re.findall(r"[^\\/]+", re.sub(r"^[A-Za-z]:", "", path)):
            if part == "..":
                absolute |= not parts  # it leads out of the folder
                parts = parts[:-1]
            elif part != ".":
                parts.append(part)
        # folders from another machine mean nothing, but what is below its `images` does; `images/` itself is the root
        roots = [number for number, part in enumerate(parts[:-1], start=1) if part.lower() == "images"]
        begin = [len(parts) - 1, *roots][-1] if absolute else int(roots[-1:] == [1])
        place = tuple(parts[max(begin, 0) :])
        if not place or not place[-1].strip(" .") or sum(map(len, place)) > MAX_NAME or not is_one_line(path):
            raise ValueError(f"annotations name an image that cannot be: {text!r:.200}")
        return cls(text, tuple(parts), place, whole)


def _plain_path(text: str) -> str:
    """Return the path inside an address; other text as it is."""
    if "?d=" in text:  # Label Studio's address of a file that stays where it is
        return parse_qs(urlsplit(text).query).get("d", [""])[0] or text
    if _ADDRESS.match(text):
        return "/" + unquote(urlsplit(text).path)
    return text.partition("?")[0] if has_ending(text.partition("?")[0]) else text


class ImageFolder:
    """The images below a folder, or only those in it (`deep` off), found by what annotations call them."""

    def __init__(self, folder: str | Path, deep: bool = True) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.deep = deep

    @functools.cached_property
    def places(self) -> tuple[dict[str, list[Parts]], dict[str, list[Parts]]]:
        """Places of the images by name, and by name without ending."""
        names: dict[str, list[Parts]] = defaultdict(list)
        stems: dict[str, list[Parts]] = defaultdict(list)
        files = walk_files(self.folder) if self.deep else map(str, self.folder.glob("*"))
        for path in sorted(file for file in files if is_image(file) and not is_hidden(file, self.folder)):
            parts = Path(path).parts[len(self.folder.parts) :]
            names[parts[-1]].append(parts)
            stems[os.path.splitext(parts[-1])[0]].append(parts)
        return names, stems

    def find(self, name: ImageName) -> Path | None:
        """Return the image that is meant: by its name, else by the name without ending; None for none or several."""
        last, direct = name.parts[-1], self.folder.joinpath(*name.place)
        if name.whole and is_image(last) and direct.is_file():
            return direct
        names, stems = self.places
        same_name, same_stem = names.get(last, []), stems.get(os.path.splitext(last)[0] if name.whole else last, [])
        ranked = (same_name, same_stem) if name.whole else (same_stem, same_name)
        if found := next((parts for places in ranked if (parts := _best(places, name.parts))), None):
            return self.folder.joinpath(*found)
        if uploaded := _UPLOADED.fullmatch(last):
            return self.find(ImageName(name.text, uploaded.groups(), uploaded.groups(), name.whole))
        return None


def _best(places: Iterable[Parts], wanted: Parts) -> Parts | None:
    """Return the place that has, from its end, most folders of what is wanted; None where several do, or others."""
    best: list[Parts] = []
    most = (False, 0)
    for place in places:
        shared = min(len(place), len(wanted))
        rank = (len(place) == len(wanted), shared)
        if place[-shared:-1] == wanted[-shared:-1] and rank >= most:
            best, most = [place] if rank > most else [*best, place], rank
    return best[0] if len(best) == 1 else None


class LabelPlaces:
    """Says for each image that annotations name where its label file goes inside `labels`, and how large the image is.

    Images are looked for where train.py will look from `labels`, then in the folders `beside` the annotations; where
    `beside` is None nowhere: the annotations' names say where they are.
    """

    def __init__(self, labels: str | Path, beside: Iterable[ImageFolder] | None = ()) -> None:
        self.given, self.labels = Path(labels), Path(os.path.abspath(labels))
        home = self.labels
        for number in range(1, len(home.parts)):  # the last folder `labels` of the path stands beside `images`
            if self.labels.parts[number].lower() == "labels":
                for word in ("Images", "images"):
                    folder = Path(*self.labels.parts[:number], word, *self.labels.parts[number + 1 :])
                    expected = Path(label_places(folder / "no image.jpg")[0])
                    home = folder if folder.is_dir() and expected.is_relative_to(self.labels) else home
        self.folders = [] if beside is None else [ImageFolder(home), *beside]

    def image(self, name: ImageName) -> Path | None:
        """Return the image on disk."""
        return next((path for folder in self.folders if (path := folder.find(name))), None)

    def size(self, name: ImageName) -> tuple[int, int] | None:
        """Return width and height in pixels of the image on disk, None where it is not found or is no sound image."""
        with suppress(ValueError):
            return image_size(path) if (path := self.image(name)) else None
        return None

    def label_files(self, names: Iterable[ImageName]) -> dict[ImageName, Path]:
        """Return each image's label file. Raises ValueError, naming both, where two images would have the same."""
        owners: dict[Path, ImageName] = {}
        for name in names:
            file = name.place[-1] if name.whole and has_ending(name.place[-1]) else f"{name.place[-1]}.jpg"
            path = self.labels / label_places(os.path.join(*name.place[:-1], file))[0]
            if found := self.image(name):
                expected, home = Path(label_places(found)[0]), self.folders[0].folder
                if expected.is_relative_to(self.labels):
                    path = expected
                elif found.is_relative_to(home):
                    path = self.labels / found.relative_to(home).with_suffix(".txt")
            if (other := owners.setdefault(path, name)) is not name:
                raise ValueError(
                    f"{printable(other.text)} and {printable(name.text)} would share the label file "
                    f"{printable(path)}; rename one of the images, or give each its folder"
                )
        return {name: path for path, name in owners.items()}

    def check(self, files: Mapping[ImageName, Path]) -> None:
        """Warn of label files, now that they are written, that train.py will not find, and of images not found."""
        lost, missing = [], []
        for name, path in files.items() if self.folders else ():
            if not (found := self.image(name)):
                missing.append(printable(name.text))
            elif (expected := Path(img2label_paths([found])[0])) != path:
                lost.append(f"{printable(path)} instead of {printable(expected)}); convert into {expected.parent}")
        if lost:
            LOGGER.warning(f"{len(lost)} label files are not where train.py looks (first: {lost[0]}")
        if missing and self.folders[0].places[0]:
            where = f"not found in {printable(self.folders[0].folder)}, or there several times"
            LOGGER.warning(f"{len(missing)} images are {where} (first: {missing[0]}); put them there")
