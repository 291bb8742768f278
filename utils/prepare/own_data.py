"""Anybody's annotations as label files: a COCO file, a folder of Pascal VOC's XML, a folder of DOTA's text files.

Everything is read before the first label file is written, and what is dropped is counted and logged. All of them return
how many boxes they kept, and raise ValueError, with nothing written, where there are none.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from utils.base.config import Names
from utils.base.files import is_hidden, printable, walk_files
from utils.data.image_files import find_images
from utils.images.reading import picture_size
from utils.prepare.coco_json import CocoReader
from utils.prepare.image_places import ImageFolder, ImageName, LabelPlaces
from utils.prepare.label_formats import DotaReader, Rows, check_size, read_annotations, told, write_rows
from utils.prepare.tally import Tally
from utils.prepare.voc_xml import VocReader, image_name, read_voc, voc_size, written_name


def convert_coco(
    annotations: str | Path,
    labels: str | Path,
    names: Names | None = None,
    polygons: bool = False,
    crowds: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the label files of a COCO JSON file's images into the folder `labels`; return the number of boxes.

    `names` are the classes in order (a list, a mapping from 0, a data YAML or a text file), by default the categories
    in the order of their ids. `polygons` writes outlines of one piece instead of boxes, `crowds` keeps what is marked
    iscrowd, `overwrite` replaces label files that say something else.
    """
    file, _ = _places(annotations=annotations, labels=labels)
    if file.is_dir():
        found = sorted(Path(path).relative_to(file).as_posix() for path in walk_files(file) if _ends(path, ".json"))
        remedy = f"name one of its files: {', '.join(found[:5])}" if found else "and there is no .json file in it"
        raise ValueError(f"{printable(file)}: is a folder, {printable(remedy)}")
    siblings = (ImageFolder(folder / "images") for folder in (file.parent, file.parent.parent))
    places = LabelPlaces(labels, (ImageFolder(file.parent, deep=False), *siblings))
    tally = Tally()
    reader = CocoReader(names, polygons, crowds, tally=tally, size_of=lambda name: places.size(ImageName.read(name)))
    rows = reader.rows(file)
    if not rows and not tally.lost:
        raise ValueError(f"{printable(file)}: there are no images in it; export it again with its images")
    with told(file, "annotations of a data set"):
        named = {ImageName.read(name): lines for name, lines in rows.items()}
        files = places.label_files(named)
    kept = write_labels({files[name]: lines for name, lines in named.items()}, tally, (file, labels), overwrite)
    places.check(files)
    return kept


def convert_voc(
    annotations: str | Path, labels: str | Path, names: Names, difficult: bool = False, overwrite: bool = False
) -> int:
    """Write the label files of a folder of Pascal VOC's .xml, folders below included; return the number of boxes.

    `names` and `overwrite` as in `convert_coco`; `difficult` keeps objects that are marked so. ValueError names a file
    that is no annotation.
    """
    folder = _annotation_folder(_places(annotations=annotations, labels=labels)[0])
    files = _files_below(folder, ".xml")
    siblings = (ImageFolder(folder.parent / name) for name in ("JPEGImages", "images", "Images"))
    places = LabelPlaces(labels, (ImageFolder(folder), *siblings))
    reader = VocReader(names, difficult)
    rows: dict[ImageName, list[str]] = {}
    for file in files:
        root = read_voc(file)
        place = file.relative_to(folder)
        with told(file, "an annotation of a data set"):
            image = _voc_image(root, place, places)
        found_size, written = places.size(image), voc_size(root)
        if written:
            check_size(reader.tally, written, found_size, place.as_posix())
        lines = reader.rows(root, written or found_size, place.as_posix())
        if lines is not None:
            _put(rows, image, lines, file)
    label_files = places.label_files(rows)
    found = {label_files[image]: lines for image, lines in rows.items()}
    kept = write_labels(found, reader.tally, (folder, labels), overwrite)
    places.check(label_files)
    return kept


def _voc_image(root: ElementTree.Element, place: Path, places: LabelPlaces) -> ImageName:
    """The image of an annotation: the one of its own name; the one that it names where only that is there."""
    name, whole = image_name(root, place.stem)
    image, written = ImageName.read((place.parent / name).as_posix(), whole), written_name(root)
    if whole or not written or places.image(image):
        return image
    other = ImageName.read((place.parent / written).as_posix())
    return other if places.image(other) else image


def convert_dota(
    annotations: str | Path,
    images: str | Path,
    labels: str | Path,
    names: Names,
    polygons: bool = False,
    overwrite: bool = False,
) -> int:
    """Write the label files of a folder of DOTA's .txt, folders below included; return the number of boxes.

    The images are below the folder `images`, and its folders are kept. `names` and `overwrite` as in `convert_coco`;
    `polygons` writes the four corners instead of upright boxes.
    """
    folder = _places(annotations=annotations, images=images, labels=labels)[0]
    known = ImageFolder(images)
    places = LabelPlaces(labels, (known,))
    files = _files_below(folder, ".txt", places.labels)
    find_images(images)  # raises where there are none
    reader = DotaReader(names, polygons)
    rows: dict[ImageName, list[str]] = {}
    used = set()
    for file in files:
        place = file.relative_to(folder)
        text = read_annotations(file)
        image = known.find(ImageName.read(_beside_images(place).as_posix(), whole=False))
        if image is None:
            reason = f"of an image that is not in {known.folder}, or is there twice"
            reader.tally.drop(reason, place.as_posix(), sum(len(line.split()) >= 9 for line in text.splitlines()))
        else:
            name = ImageName.read(image.relative_to(known.folder).as_posix())
            _put(rows, name, reader.rows(text, image_size(image), place.as_posix()), file)
            used.add(Path(os.path.abspath(file)))
    label_files = places.label_files(rows)
    found = {label_files[name]: lines for name, lines in rows.items()}
    if both := sorted(used & set(found)):
        raise ValueError(f"{printable(both[0])}: would be replaced by its own labels; convert into another folder")
    kept = write_labels(found, reader.tally, (folder, labels), overwrite)
    places.check(label_files)
    return kept


def image_size(image: Path) -> tuple[int, int]:
    """Width and height of an image whose annotations are in pixels. Raises ValueError, naming it, if unreadable."""
    try:
        return picture_size(image)
    except Exception as error:  # a damaged file can make a decoder raise anything; the error names the file
        reason = printable(str(error)) or type(error).__name__
        raise ValueError(f"{printable(image)}: its size cannot be read ({reason}); replace or remove it") from error


def named_rows(rows: Rows, labels: Path, whole: bool = True) -> dict[Path, list[str]]:
    """The label files of a data set whose annotations say where its images lie."""
    named = {ImageName.read(name, whole): lines for name, lines in rows.items()}
    files = LabelPlaces(labels, None).label_files(named)
    return {files[name]: lines for name, lines in named.items()}


def write_labels(
    rows: Mapping[Path, list[str]], tally: Tally, ends: tuple[str | Path, str | Path], overwrite: bool = True
) -> int:
    """Write label files, empty ones for images without objects, each whole; return the number of boxes.

    `ends` are where the boxes come from and the folder they go to, for the tally's report. A box that is there twice is
    written once. Raises ValueError where no box was kept, and where files hold other labels, unless `overwrite` is set.
    """
    unique = {path: list(dict.fromkeys(lines)) for path, lines in rows.items()}
    for path, lines in rows.items():
        tally.drop("the same box again", path.name, len(lines) - len(unique[path]))
    source, labels = ends
    kept = sum(map(len, unique.values()))
    changed = {path: present for path, lines in unique.items() if (present := _present(path)) != lines}
    others = [path for path, present in changed.items() if present]
    if others and kept and not overwrite:
        raise ValueError(
            f"{printable(labels)}: {len(others)} label files are there with other content (first: "
            f"{printable(others[0])}); convert with overwrite=True to replace them, or into another folder"
        )
    tally.report(source, labels, kept, len(unique))
    try:
        for path in changed:
            write_rows(path, unique[path])
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}); make room there or choose another folder"
        raise ValueError(f"{printable(labels)}: {reason}, then convert again") from error
    return kept


def _places(**given: object) -> list[Path]:
    """The arguments as paths, in order. ValueError names one that is none."""
    for name, value in given.items():
        if not isinstance(value, (str, os.PathLike)) or not str(value):
            order = ", ".join((*given, "names"))
            raise ValueError(f"{name}: give a path, not {value!r:.80}; the order of arguments is {order}")
    return [Path(value) for value in given.values()]


def _present(path: Path) -> list[str] | None:
    """Lines of a label file that is there already, None where there is none."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else None


def _ends(path: str, ending: str) -> bool:
    return path.lower().endswith(ending)


def _files_below(folder: Path, ending: str, labels: Path | None = None) -> list[Path]:
    """Files of an ending (in any case), sorted, but no hidden ones, nor those of a folder of `labels` that lies inside.

    Raises ValueError where there is no such folder, or no such file in it.
    """
    full = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise ValueError(f"{printable(full)}: no such folder; name the folder of the annotations")
    inside = labels is not None and labels != full and labels.is_relative_to(full)
    found = sorted(Path(path) for path in walk_files(folder) if _ends(path, ending) and not is_hidden(path, folder))
    files = [file for file in found if not (inside and Path(os.path.abspath(file)).is_relative_to(labels))]
    if not files:
        raise ValueError(f"{printable(full)}: no {ending} file in it; name the folder of the annotations")
    return files


def _put(rows: dict[ImageName, list[str]], image: ImageName, lines: list[str], file: Path) -> None:
    """Add the rows of an image. Raises ValueError for a second annotation of one image."""
    if image in rows:
        raise ValueError(f"{printable(file)}: another annotation is of {printable(image.text)} too; remove one")
    rows[image] = lines


def _annotation_folder(folder: Path) -> Path:
    """The folder `Annotations` of a whole VOC export, any other folder itself."""
    inner = folder / "Annotations"
    return inner if inner.is_dir() and not any(_ends(file.name, ".xml") for file in folder.iterdir()) else folder


def _beside_images(place: Path) -> Path:
    """Where the image of a DOTA annotation lies, without its ending: in `images` for `labelTxt`."""
    folders = ["images" if part.lower().startswith("labeltxt") else part for part in place.parent.parts]
    return Path(*folders, place.stem)
