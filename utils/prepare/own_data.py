"""Anybody's annotations as label files: a COCO file, a folder of Pascal VOC's XML, a folder of DOTA's text files.

VOC's XML is read as people write it: any declared encoding, sizes of 0, corners in any order. Everything is read before
the first label file is written, and what is dropped is counted and logged. All of them return how many boxes they kept,
and raise ValueError, with nothing written, where there are none.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

from utils.base.config import ClassNames, Names
from utils.base.files import is_hidden, printable, read_bytes, walk_files
from utils.data.image_files import find_images
from utils.prepare.coco_json import CocoReader
from utils.prepare.image_places import ImageFolder, ImageName, LabelPlaces, has_ending, image_size
from utils.prepare.label_formats import (
    MAX_TEXT_BYTES,
    NONSENSE,
    DropCounts,
    Size,
    box_rows,
    dota_rows,
    is_size,
    naming,
    read_annotations,
    write_rows,
)

CORNERS = ("xmin", "ymin", "xmax", "ymax")  # of a box in VOC's XML
# encodings of text that XML may declare, by Python's names: others cost too much, or are none
_ENCODINGS = re.compile(
    r"utf-8(-sig)?|ascii|iso8859-\d+|cp\d+|gb2312|gbk|gb18030|big5(hkscs)?|shift_jis|euc_(jp|kr)|koi8-[ru]|mac-\w+"
)
_DECLARED = re.compile(rb"\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})[\"']")


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
    file, _ = _paths(annotations=annotations, labels=labels)
    if file.is_dir():
        found = sorted(os.path.relpath(path, file) for path in walk_files(file) if path.lower().endswith(".json"))
        remedy = f"name one of its files: {', '.join(found[:5])}" if found else "and there is no .json file in it"
        raise ValueError(f"{printable(file)}: is a folder, {printable(remedy)}")
    siblings = (ImageFolder(folder / "images") for folder in (file.parent, file.parent.parent))
    places = LabelPlaces(labels, (ImageFolder(file.parent, deep=False), *siblings))
    classes = None if names is None else ClassNames(names)
    reader = CocoReader(classes, polygons, crowds, size_of=lambda name: places.size(ImageName.read(name)))
    rows = reader.rows(file)
    if not rows and not reader.counts.total:
        raise ValueError(f"{printable(file)}: there are no images in it; export it again with its images")
    with naming(file, "annotations of a data set"):
        named = {ImageName.read(name): lines for name, lines in rows.items()}
    return write_labels(named, places, reader.counts, file, overwrite)


def convert_voc(
    annotations: str | Path, labels: str | Path, names: Names, difficult: bool = False, overwrite: bool = False
) -> int:
    """Write the label files of a folder of Pascal VOC's .xml, folders below included; return the number of boxes.

    `names` and `overwrite` as in `convert_coco`; `difficult` keeps objects that are marked so. ValueError names a file
    that is no annotation.
    """
    folder, _ = _paths(annotations=annotations, labels=labels)
    inner = folder / "Annotations"  # of a whole VOC export
    if inner.is_dir() and not any(file.suffix.lower() == ".xml" for file in folder.iterdir()):
        folder = inner
    files = _files_below(folder, ".xml")
    siblings = (ImageFolder(folder.parent / name) for name in ("JPEGImages", "images", "Images"))
    places = LabelPlaces(labels, (ImageFolder(folder), *siblings))
    classes, counts = ClassNames(names), DropCounts()
    rows: dict[ImageName, list[str]] = {}
    for file in files:
        root, where = read_voc(file), file.relative_to(folder).as_posix()
        with naming(file, "an annotation of a data set"):
            image = voc_image(root, file.relative_to(folder), places)
        found, written = places.size(image), voc_size(root)
        if written:
            counts.check_size(written, found, where)
        if size := written or found:
            _put(rows, image, voc_rows(root, size, classes, counts, where, difficult), file)
        elif objects := sum(1 for _ in root.iter("object")):
            reason = "of an image of unknown size (width and height are 0 or missing); write them into the XML, or put"
            counts.drop(f"{reason} the image where train.py looks for it", where, objects)
        else:
            _put(rows, image, [], file)
    return write_labels(rows, places, counts, folder, overwrite)


def read_voc(path: str | Path) -> ElementTree.Element:
    """Return the root of one annotation. Raises ValueError, naming the file, for anything else."""
    with naming(path, "a VOC annotation"):
        content = read_bytes(path, MAX_TEXT_BYTES)
        encoding = _encoding(content)
        try:
            text = content.decode(encoding).lstrip("\ufeff")
        except UnicodeError as error:
            remedy = "save it as UTF-8, or declare its encoding in its first line"
            raise ValueError(f"its text is not {encoding}; {remedy}") from error
        if "<!ENTITY" in text:
            raise ValueError("annotation with XML entities, which VOC has not")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from error
        if root.tag.lower() != "annotation":
            raise ValueError(f"its root is {root.tag[:40]!r}, not 'annotation'; export as Pascal VOC")
        return root


def _encoding(content: bytes) -> str:
    """Return the encoding of an XML file, by its mark or its declaration."""
    marked, declared = json.detect_encoding(content), _DECLARED.match(content)
    if marked != "utf-8" or not declared:
        return marked
    try:
        name = codecs.lookup(declared[1].decode()).name
    except LookupError:
        name = ""
    if name.startswith(("utf-16", "utf-32")):  # the declaration itself was read as bytes, so this is not true
        return "utf-8"
    if not _ENCODINGS.fullmatch(name):
        raise ValueError(f"it declares the encoding {declared[1].decode()!r}, which is not read; save it as UTF-8")
    return "gb18030" if name in ("gb2312", "gbk") else name  # which contains them


def voc_image(root: ElementTree.Element, place: Path, places: LabelPlaces) -> ImageName:
    """Return the image of an annotation, whose path below the annotations' folder is `place`.

    It has the annotation's own name without `.xml`, with the ending that `filename` gives where the two agree; the
    image that `filename` names counts where only that is there.
    """
    written = re.split(r"[\\/]", (root.findtext("filename") or "").strip())[-1]
    written = written if has_ending(written) else ""
    if written and place.stem in (written, os.path.splitext(written)[0]):
        return ImageName.read((place.parent / written).as_posix())
    image = ImageName.read((place.parent / place.stem).as_posix(), whole=False)
    if written and not places.image(image):
        other = ImageName.read((place.parent / written).as_posix())
        return other if places.image(other) else image
    return image


def voc_size(root: ElementTree.Element) -> Size | None:
    """Return (w, h) in pixels, None where the annotation does not say, or says 0."""
    try:
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
    except ValueError:
        return None
    return size if is_size(size) else None


def voc_rows(
    root: ElementTree.Element, size: Size, classes: ClassNames, counts: DropCounts, where: str, difficult: bool = False
) -> list[str]:
    """Return the rows of one annotation of an image of `size` (w, h); what cannot be kept is counted.

    VOC counts pixels from 1, so corners move by one. Objects marked difficult are left out unless `difficult` is set.
    `where` names the annotation in what is counted.
    """
    rows = []
    for number, item in enumerate(root.iter("object"), start=1):
        place, name, box = f"{where}, object {number}", item.findtext("name") or "", item.find("bndbox")
        if (kind := classes.find(name)) is None:
            counts.drop(classes.unlisted(name), place)
        elif not difficult and (item.findtext("difficult") or "").strip().lower() in ("1", "true", "yes"):
            counts.drop("marked difficult; convert with difficult=True to keep them", place)
        elif box is None:
            counts.drop("without a bndbox; export upright boxes", place)
        else:
            try:
                corners = [float(box.findtext(side) or "") - 1 for side in CORNERS]
            except NONSENSE:
                counts.drop(f"whose {', '.join(CORNERS)} are not all numbers", place)
            else:
                rows += box_rows(counts, kind, corners, size, place)
    return rows


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
    folder = _paths(annotations=annotations, images=images, labels=labels)[0]
    known = ImageFolder(images)
    places = LabelPlaces(labels, (known,))
    files = _files_below(folder, ".txt", places.labels)
    find_images(images)  # raises where there are none
    classes, counts = ClassNames(names), DropCounts()
    rows: dict[ImageName, list[str]] = {}
    used = set()
    for file in files:
        place = file.relative_to(folder)
        where, text = place.as_posix(), read_annotations(file)
        folders = ["images" if part.lower().startswith("labeltxt") else part for part in place.parent.parts]
        image = known.find(ImageName.read(Path(*folders, place.stem).as_posix(), whole=False))
        if image is None:
            reason = f"of an image that is not in {known.folder}, or is there twice"
            counts.drop(reason, where, sum(len(line.split()) >= 9 for line in text.splitlines()))
        else:
            name = ImageName.read(image.relative_to(known.folder).as_posix())
            _put(rows, name, dota_rows(text, image_size(image), classes, counts, where, polygons), file)
            used.add(Path(os.path.abspath(file)))
    if both := sorted(used & set(places.label_files(rows).values())):
        raise ValueError(f"{printable(both[0])}: would be replaced by its own labels; convert into another folder")
    return write_labels(rows, places, counts, folder, overwrite)


def write_labels(
    rows: Mapping[ImageName, list[str]], places: LabelPlaces, counts: DropCounts, source: Path, overwrite: bool = True
) -> int:
    """Write label files, empty ones for images without objects, each whole; return the number of boxes.

    A box that is there twice is written once. What `counts` has of the annotations `source` is logged. Raises
    ValueError where no box was kept, and where files hold other labels, unless `overwrite` is set.
    """
    files, labels, unique = places.label_files(rows), printable(places.given), {}
    for name, lines in rows.items():
        unique[files[name]] = list(dict.fromkeys(lines))
        counts.drop("the same box again", files[name].name, len(lines) - len(unique[files[name]]))
    kept = sum(map(len, unique.values()))
    there = {path: path.read_text(encoding="utf-8", errors="replace") for path in unique if path.is_file()}
    changed = [path for path, lines in unique.items() if there.get(path, "no file").splitlines() != lines]
    others = [path for path in changed if there.get(path) and not overwrite]
    if others and kept:
        raise ValueError(
            f"{labels}: {len(others)} label files are there with other content (first: "
            f"{printable(others[0])}); convert with overwrite=True to replace them, or into another folder"
        )
    counts.report(source, places.given, kept, len(unique))
    try:
        for path in changed:
            write_rows(path, unique[path])
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}); make room there or choose another folder"
        raise ValueError(f"{labels}: {reason}, then convert again") from error
    places.check(files)
    return kept


def _paths(**given: object) -> list[Path]:
    """Return arguments as paths, in their order. Raises ValueError for what is none, as where the order is another."""
    for name, value in given.items():
        if not isinstance(value, (str, os.PathLike)) or not str(value):
            order = ", ".join((*given, "names"))
            raise ValueError(f"{name}: give a path, not {value!r:.80}; the order of arguments is {order}")
    return [Path(str(value)) for value in given.values()]


def _files_below(folder: Path, ending: str, labels: Path | None = None) -> list[Path]:
    """Return files of an ending (in any case), sorted, without hidden ones and those of a folder `labels` inside.

    Raises ValueError where there is no such folder, or no such file in it.
    """
    full = Path(os.path.abspath(folder))
    if not folder.is_dir():
        raise ValueError(f"{printable(full)}: no such folder; name the folder of the annotations")
    named = (path for path in walk_files(folder) if path.lower().endswith(ending))
    found = sorted(Path(path) for path in named if not is_hidden(path, folder))
    if labels and labels != full and labels.is_relative_to(full):
        found = [file for file in found if not Path(os.path.abspath(file)).is_relative_to(labels)]
    if not found:
        raise ValueError(f"{printable(full)}: no {ending} file in it; name the folder of the annotations")
    return found


def _put(rows: dict[ImageName, list[str]], image: ImageName, lines: list[str], file: Path) -> None:
    """Add the rows of an image. Raises ValueError for a second annotation of one image."""
    if image in rows:
        raise ValueError(f"{printable(file)}: another annotation is of {printable(image.text)} too; remove one")
    rows[image] = lines
