"""Where the images of a data set are, and which label file belongs to which image. Nothing is opened but lists."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from utils.base.files import MIB, decoded, is_hidden, printable, read_bytes, walk_files
from utils.base.log import LOGGER
from utils.data.problems import Problem
from utils.images.reading import IMG_FORMATS

MAX_LIST_BYTES = 2048 * MIB  # some twenty million names
SHOWN_ENDINGS = 8
_BESIDE = frozenset(  # endings of what may lie among images and nobody takes for one
    "txt xml json csv yaml yml md html log names data cache npz npy db ini tar zip py sh cls".split()
)
_IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages", "pictures"))
_LABEL_FOLDERS = frozenset(("labels", "label", "labels_txt", "annotations", "yolo_labels", "txt"))
_DRIVE = re.compile(r"[A-Za-z]:(?=/)|/(?=/)")


def is_image(name: str | Path) -> bool:
    """Whether the name ends like an image we read, in any case of letters."""
    return str(name).rpartition(".")[2].lower() in IMG_FORMATS


# ---- what is passed over ---------------------------------------------------------------------------------------------


def may_be_image(name: str) -> bool:
    """Whether a file that is not read may be meant as an image: labels, notes and hidden files are not."""
    return _ending(name)[1:] not in _BESIDE and not os.path.basename(name).startswith(".")


def _ending(name: str) -> str:
    stem, dot, ending = os.path.basename(name).rpartition(".")
    return f".{ending.lower()}" if dot and stem and len(ending) <= 8 else "without an ending"


def passed_over(names: list[str], place: str, what: str, line: int | None = None) -> Problem:
    """One problem for all files that are left out by their names."""
    counts = Counter(map(_ending, names)).most_common()
    parts = [f"{count} {printable(ending)}" for ending, count in counts[:SHOWN_ENDINGS]]
    if more := sum(count for _, count in counts[SHOWN_ENDINGS:]):
        parts.append(f"{more} of other kinds")
    reason = f"{what} passed over: {', '.join(parts)}, the first {printable(names[0])}"
    remedy = f"if they are images, convert them to .jpg or .png; read are {' '.join(IMG_FORMATS)}"
    return Problem(place, line, reason, remedy, dropped=False)


def _below(folder: str) -> tuple[list[str], list[Problem]]:
    """Images below a folder, and what else there may be meant as one. Hidden ones are copies that programs leave."""
    found, hidden, others = [], [], []
    for name in walk_files(folder):
        if is_image(name):
            (hidden if is_hidden(name, folder) else found).append(name)
        elif may_be_image(name):
            others.append(name)
    problems = [passed_over(sorted(others), folder, "files")] if others else []
    if hidden:
        reason = f"hidden images passed over: {len(hidden)}, the first {printable(min(hidden))}"
        problems.append(Problem(folder, None, reason, "rename them if they belong to the data set", dropped=False))
    return found, problems


# ---- lists -----------------------------------------------------------------------------------------------------------


def _text(content: bytes) -> str:
    """The text of a list; names need not be text, and Windows writes UTF-16. Raises ValueError."""
    text = decoded(content, "surrogateescape")
    if "\0" in text:
        raise ValueError("it is no text")
    return text


def _lines(listing: Path) -> list[tuple[int, str]]:
    """(number from 1, path) of the lines of a list that are neither blank nor a comment; quotes are taken off.

    Raises ValueError for a file that cannot be a list.
    """
    try:
        text = _text(read_bytes(listing, MAX_LIST_BYTES))
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(listing)}: no list of images ({error}); write one path on each line") from error
    lines = []
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        line = line.strip()
        if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'":
            line = line[1:-1]
        if line and not (line[0] == "#" and (line[1:2] == " " or not is_image(line))):
            lines.append((number, line))
    return lines


class _Places:
    """Where the folders that a list names are on this machine: asked of the first image of each folder."""

    def __init__(self, listing: Path) -> None:
        self.listing = listing
        self.problems: list[Problem] = []
        self._known: dict[str, str] = {}

    def path(self, number: int, line: str) -> str:
        """The image named on a line: './' is beside the list, other relative paths are tried from here, then there."""
        if "\\" in line and not os.path.lexists(line) and not os.path.lexists(self.listing.parent / line):
            line = line.replace("\\", "/")
        head, _, name = line.rpartition("/")
        head = head or "/" * line.startswith("/")
        if head not in self._known:
            self._known[head] = self._find(number, head, name)
        return os.path.join(self._known[head], name)

    def _candidates(self, head: str) -> tuple[list[str], list[str]]:
        """Where a folder is by its name; and where else it may be: its last parts below the list's own folder."""
        beside, foreign = self.listing.parent, _DRIVE.match(head)
        if head == "." or head.startswith("./"):
            named = [str(beside / head)]
        elif foreign or os.path.isabs(head):
            named = [head]
        else:
            named = [head, str(beside / head)]
        rest = head[foreign.end() :] if foreign else head
        parts = [part for part in rest.split("/") if part not in ("", ".", "..")]
        return named, [str(beside.joinpath(*parts[start:])) for start in range(len(parts) + 1)]

    def _find(self, number: int, head: str, name: str) -> str:
        named, tried = self._candidates(head)
        there = next((folder for folder in named if os.path.lexists(os.path.join(folder, name))), None)
        if there is None and head and os.path.isdir(named[-1]):  # so only this image is missing
            there = named[-1]
        if there is not None:
            return there
        where = printable(head) or "this list"
        if moved := next((folder for folder in tried if os.path.lexists(os.path.join(folder, name))), None):
            reason = f"{where} is not here, its images are taken from {printable(moved)}"
            self._note(number, reason, "correct the list if these are others")
            return moved
        looked = ", ".join(dict.fromkeys(printable(os.path.abspath(folder)) for folder in (*named, *tried)))
        reason = f"no {printable(name)} of {where}: looked in {looked}"
        self._note(number, reason, "correct the list, or put the images there")
        return named[0]

    def _note(self, number: int, reason: str, remedy: str) -> None:
        self.problems.append(Problem(str(self.listing), number, reason, remedy, dropped=False))


def _listed(listing: Path) -> tuple[list[str], list[Problem]]:
    """Images named in a text file, and what is remarkable about the list."""
    places, found, others = _Places(listing), [], []
    for number, line in _lines(listing):
        if is_image(line):
            found.append(places.path(number, line))
        else:
            others.append((number, line))
    if others:
        names = [line for _, line in others]
        places.problems.append(passed_over(names, str(listing), "lines", others[0][0]))
    return found, places.problems


# ---- images ----------------------------------------------------------------------------------------------------------


def _images_of(source: Path) -> tuple[list[str], list[Problem]]:
    if os.path.isdir(source):  # unlike Path's method, this says no to a name that is too long
        return _below(str(source))
    if not os.path.isfile(source):
        raise ValueError(
            f"{printable(source.absolute())}: no such folder or list of images; correct the data YAML's paths"
        )
    return ([str(source)], []) if is_image(source) else _listed(source)


def search_images(sources: str | Path | Iterable[str | Path]) -> tuple[list[Path], list[Problem]]:
    """Every image below folders, named in text lists, or given itself, sorted by path; and what was passed over.

    Raises ValueError when a source does not exist or no image is found.
    """
    sources = [sources] if isinstance(sources, (str, Path)) else list(sources)
    found: list[str] = []
    problems: list[Problem] = []
    for source in sources:
        names, remarks = _images_of(Path(source))
        found += names
        problems += remarks
    if not found:
        where = ", ".join(printable(Path(source).absolute()) for source in sources) or "an empty list of sources"
        passed = "".join(f"; {problem.reason}" for problem in problems[:1])
        known = ", ".join(IMG_FORMATS)
        raise ValueError(f"no images in {where}{passed}; put some there or correct the data YAML (known: {known})")
    return [Path(name) for name in sorted(found)], problems


def find_images(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """The images of `search_images`; what was passed over is a warning."""
    found, problems = search_images(sources)
    for problem in problems:
        LOGGER.warning(f"{problem}")
    return found


# ---- labels ----------------------------------------------------------------------------------------------------------


def label_places(image: str | Path) -> tuple[str, ...]:
    """Where the label file of an image may be, the first place first, whether there is one or not.

    The last `images` folder becomes `labels`, the ending `.txt`; else it lies beside the image.
    """
    images, labels, path = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}", str(image)
    beside = os.path.splitext(path)[0] + ".txt"
    rooted = beside if os.path.isabs(path) else os.sep + beside  # so that a leading 'images/' counts as a folder too
    head, found, tail = rooted.rpartition(images)
    return (f"{head}{labels}{tail}"[len(rooted) - len(beside) :], beside) if found else (beside,)


def img2label_paths(img_paths: Iterable[str | Path]) -> list[str]:
    """The label file of each image: the first of its places where there is one, else the first of all."""
    chosen = []
    for path in img_paths:
        first, *others = label_places(path)
        there = first if not others or os.path.lexists(first) else next(filter(os.path.isfile, others), first)
        chosen.append(there)
    return chosen


def misplaced_labels(images: Iterable[str]) -> str:
    """A hint at a label file that would be found if it, or its folder, had the name looked for; mostly nothing."""
    return next((hint for image in images if (hint := _misnamed(image) or _misplaced(image))), "")


def _misnamed(image: str) -> str:
    """A hint at `a.TXT`, `a.jpg.txt`, `a.xml` or `a.json` where `a.txt` is looked for, or at `a.txt` one folder up."""
    for place in label_places(image):
        folder, wanted = os.path.split(place)
        stem = os.path.join(folder, wanted[:-4])
        renamed, moved = f"rename it to {printable(wanted)}", f"move it into {printable(folder)}"
        remedies = {f"{stem}.TXT": renamed, os.path.join(folder, f"{os.path.basename(image)}.txt"): renamed}
        remedies |= dict.fromkeys((f"{stem}.xml", f"{stem}.XML", f"{stem}.json"), "convert it, see docs/own-data.md")
        remedies[os.path.join(os.path.dirname(folder), wanted)] = moved
        if there := next(filter(os.path.isfile, remedies), None):
            return f"; {printable(there)} is there: {remedies[there]}"
    return ""


def _misplaced(image: str) -> str:
    parts = Path(image).parts
    for place in range(len(parts) - 2, -1, -1):
        above = Path(*parts[:place])
        if parts[place].lower() not in _IMAGE_FOLDERS or not os.path.isdir(above):
            continue
        for folder in sorted(os.listdir(above)):
            label = (above / folder).joinpath(*parts[place + 1 :]).with_suffix(".txt")
            if (folder.lower() in _LABEL_FOLDERS or folder.lower().startswith("label")) and label.is_file():
                named = ((parts[place], "images"), (folder, "labels"))
                renamed = " and ".join(f"{printable(old)} to {new}" for old, new in named if old != new)
                return f"; {printable(label)} is there: rename {renamed}" if renamed else ""
    return ""
