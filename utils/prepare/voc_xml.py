"""Pascal VOC's XML as people write it: any declared encoding, sizes of 0, corners in any order."""

from __future__ import annotations

import codecs
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from utils.base.config import ClassNames
from utils.base.files import read_bytes
from utils.prepare.image_places import ImageName, LabelPlaces, has_ending
from utils.prepare.label_formats import MAX_TEXT_BYTES, NONSENSE, DropCounts, Size, box_rows, is_size, naming

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
    (b"<\0", "utf-16-le"), (b"\0<", "utf-16-be"),
)  # fmt: skip
# encodings of text that XML may declare, by Python's names: others cost too much, or are none
_ENCODINGS = re.compile(
    r"utf-8(-sig)?|ascii|iso8859-\d+|cp\d+|gb2312|gbk|gb18030|big5(hkscs)?|shift_jis|euc_(jp|kr)|koi8-[ru]|mac-\w+"
)
_DECLARED = re.compile(rb"\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})[\"']")


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
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    declared = _DECLARED.match(content)
    if marked or not declared:
        return marked or "utf-8"
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
