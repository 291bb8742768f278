"""Where the images of a data set are, and which label file belongs to which image. Nothing is opened but lists."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.base.files import MIB, decoded, is_hidden, printable, read_bytes, walk_files
from utils.base.log import LOGGER
from utils.images.reading import IMG_FORMATS

MAX_LIST_BYTES = 2048 * MIB  # some twenty million names
SHOWN_ENDINGS, SHOWN_NAME = 8, 500  # kinds of files; characters of a line that is no image's name
_BESIDE = frozenset(  # endings of what may lie among images and nobody takes for one
    "txt xml json csv yaml yml md html log names data cache npz npy db ini tar zip py sh cls".split()
)
_IMAGE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages", "pictures"))
_LABEL_FOLDERS = frozenset(("labels", "label", "labels_txt", "annotations", "yolo_labels", "txt"))
_DRIVE = re.compile(r"^(?:[A-Za-z]:(?=/)|/(?=/))")
_QUOTED = re.compile(r"""^(["'])(.*)\1$""", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with one file of a data set, for the person who owns it.

    With a `count` it stands for that many images, of which `file` is the first: what can be so with every image of a
    large data set is counted and said once.
    """

    file: str
    line: int | None
    reason: str
    remedy: str
    dropped: bool = True
    count: int = 0

    def __str__(self) -> str:
        where = printable(self.file) if self.line is None else f"{printable(self.file)}:{self.line}"
        if self.count:
            where = f"{self.count} image{'s' * (self.count > 1)}, the first {where}"
        return f"{where}: {self.reason}; {self.remedy}{' (image left out)' if self.dropped else ''}"


def is_image(name: str | Path) -> bool:
    """Return whether the name ends like an image we read, in any case of letters."""
    return str(name).rpartition(".")[2].lower() in IMG_FORMATS


def may_be_image(name: str) -> bool:
    """Return whether a file that is not read may be meant as an image: labels, notes and hidden files are not."""
    name = os.path.basename(name)
    return not name.startswith(".") and os.path.splitext(name)[1][1:].lower() not in _BESIDE


def passed_over(names: list[str], place: str, what: str, line: int | None = None) -> Problem:
    """Return one problem for all files that are left out by their names."""
    endings = [os.path.splitext(name)[1].lower() for name in names]
    counts = Counter(ending if 0 < len(ending) <= 9 else "without an ending" for ending in endings).most_common()
    parts = [f"{count} {printable(ending)}" for ending, count in counts[:SHOWN_ENDINGS]]
    if more := sum(count for _, count in counts[SHOWN_ENDINGS:]):
        parts.append(f"{more} of other kinds")
    reason = f"{what} passed over: {', '.join(parts)}, the first {printable(names[0])[:SHOWN_NAME]}"
    remedy = f"if they are images, convert them to .jpg or .png; read are {' '.join(IMG_FORMATS)}"
    return Problem(place, line, reason, remedy, dropped=False)


def _below(folder: str) -> tuple[list[str], list[Problem]]:
    """Return the images below a folder, and what else may be meant as one. Hidden ones are copies programs leave."""
    found: list[str] = []
    hidden: list[str] = []
    others: list[str] = []
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


def _lines(listing: Path) -> list[tuple[int, str]]:
    """Return (number from 1, path) of the lines of a list that are neither blank nor a comment, without quotes.

    Raises ValueError for a file that cannot be a list.
    """
    try:
        text = decoded(read_bytes(listing, MAX_LIST_BYTES), "surrogateescape")  # names need not be text
        if "\0" in text:
            raise ValueError("it is no text")
    except (OSError, ValueError) as error:
        raise ValueError(f"{printable(listing)}: no list of images ({error}); write one path on each line") from error
    lines = []
    for number, line in enumerate(text.split("\n" if "\n" in text else "\r"), start=1):
        line = _QUOTED.sub(r"\2", line.strip())
        if line and not (line[0] == "#" and (line[1:2] == " " or not is_image(line))):
            lines.append((number, line))
    return lines


def _folder_of(beside: Path, head: str, name: str) -> tuple[str, tuple[str, str] | None]:
    """Return where the folder `head` of a list in `beside` is, by its image `name`, and (reason, remedy) if not there.

    './' is beside the list, other relative paths are tried from here, then there; at last its last parts are tried
    below the list's own folder.
    """
    named = [str(beside / head)] if f"{head}/".startswith("./") else [head, str(beside / head)]
    for folder in named:
        if os.path.lexists(os.path.join(folder, name)):
            return folder, None
    if head and os.path.isdir(named[-1]):  # so only this image is missing
        return named[-1], None
    parts = [part for part in _DRIVE.sub("", head).split("/") if part not in ("", ".", "..")]
    tried = [str(beside.joinpath(*parts[start:])) for start in range(len(parts) + 1)]
    where = printable(head) or "this list"
    if moved := next(filter(lambda folder: os.path.lexists(os.path.join(folder, name)), tried), None):
        reason = f"{where} is not here, its images are taken from {printable(moved)}"
        return moved, (reason, "correct the list if these are others")
    looked = ", ".join(dict.fromkeys(printable(os.path.abspath(folder)) for folder in (*named, *tried)))
    reason = f"no {printable(name)} of {where}: looked in {looked}"
    return named[0], (reason, "correct the list, or put the images there")


def _listed(listing: Path) -> tuple[list[str], list[Problem]]:
    """Return the images named in a text file, and what is remarkable about the list."""
    folders: dict[str, str] = {}  # where the folders that the list names are, asked of the first image of each
    found, others, problems = [], [], []
    for number, line in _lines(listing):
        if not is_image(line):
            others.append((number, line))
            continue
        if "\\" in line and not os.path.lexists(line) and not os.path.lexists(listing.parent / line):
            line = line.replace("\\", "/")
        head, _, name = line.rpartition("/")
        head = head or "/" * line.startswith("/")
        if head not in folders:
            folders[head], note = _folder_of(listing.parent, head, name)
            problems += [Problem(str(listing), number, *note, dropped=False)] if note else []
        found.append(os.path.join(folders[head], name))
    if others:
        problems.append(passed_over([line for _, line in others], str(listing), "lines", others[0][0]))
    return found, problems


def search_images(sources: str | Path | Iterable[str | Path]) -> tuple[list[Path], list[Problem]]:
    """Return every image below folders, named in text lists or given itself, sorted; and what was passed over.

    Raises ValueError when a source does not exist or no image is found.
    """
    places = list(map(Path, [sources] if isinstance(sources, (str, Path)) else sources))
    found: list[str] = []
    problems: list[Problem] = []
    for source in places:
        if os.path.isdir(source):  # unlike Path's method, this says no to a name that is too long
            names, remarks = _below(str(source))
        elif not os.path.isfile(source):
            where = printable(source.absolute())
            raise ValueError(f"{where}: no such folder or list of images; correct the data YAML's paths")
        else:
            names, remarks = ([str(source)], []) if is_image(source) else _listed(source)
        found += names
        problems += remarks
    if not found:
        where = ", ".join(printable(source.absolute()) for source in places) or "an empty list of sources"
        passed = f"; {problems[0].reason}" if problems else ""
        known = ", ".join(IMG_FORMATS)
        raise ValueError(f"no images in {where}{passed}; put some there or correct the data YAML (known: {known})")
    return [Path(name) for name in sorted(found)], problems


def find_images(sources: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the images of `search_images`; what was passed over is a warning."""
    found, problems = search_images(sources)
    for problem in problems:
        LOGGER.warning(f"{problem}")
    return found


def label_places(image: str | Path) -> tuple[str, ...]:
    """Return where the label file of an image may be, the first place first, whether there is one or not.

    The last `images` folder becomes `labels`, the ending `.txt`; else it lies beside the image.
    """
    images, labels, path = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}", str(image)
    beside = os.path.splitext(path)[0] + ".txt"
    rooted = beside if os.path.isabs(path) else os.sep + beside  # so that a leading 'images/' counts as a folder too
    head, found, tail = rooted.rpartition(images)
    return (f"{head}{labels}{tail}"[len(rooted) - len(beside) :], beside) if found else (beside,)


def img2label_paths(img_paths: Iterable[str | Path]) -> list[str]:
    """Return the label file of each image: the first of its places where there is one, else the first of all."""
    chosen = []
    for first, *others in map(label_places, img_paths):
        there = not others or os.path.lexists(first)
        chosen.append(first if there else next(filter(os.path.isfile, others), first))
    return chosen


def misplaced_labels(images: Iterable[str]) -> str:
    """Return a hint at a label that would be found if it, or its folder, had the name looked for; mostly nothing."""
    return next((hint for image in images if (hint := _misnamed(image) or _misplaced(image))), "")


def _misnamed(image: str) -> str:
    """Return a hint at `a.TXT`, `a.jpg.txt`, `a.xml` or `a.json` instead of `a.txt`, or at `a.txt` one folder up."""
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
    """Return a hint at a label in a folder whose name is not the one looked for."""
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
