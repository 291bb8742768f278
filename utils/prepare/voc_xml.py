"""Pascal VOC's XML as people write it: any declared encoding, sizes of 0, corners in any order."""

from __future__ import annotations

import codecs
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

from utils.base.config import ClassNames, Names
from utils.base.files import read_bytes
from utils.prepare.image_places import has_ending
from utils.prepare.label_formats import MAX_TEXT_BYTES, NONSENSE, Size, boxed, is_size, told
from utils.prepare.tally import Tally

FORM = "a VOC annotation"
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
    """The root of one annotation. Raises ValueError, naming the file, for anything else."""
    with told(path, FORM):
        text = _text(read_bytes(path, MAX_TEXT_BYTES))
        if "<!ENTITY" in text:
            raise ValueError("annotation with XML entities, which VOC has not")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(str(error)) from error
        if root.tag.lower() != "annotation":
            raise ValueError(f"its root is {root.tag[:40]!r}, not 'annotation'; export as Pascal VOC")
        return root


def _text(content: bytes) -> str:
    """The characters of an XML file, by its mark or its declaration."""
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None:
        declared = _DECLARED.match(content)
        encoding = _known_encoding(declared[1].decode()) if declared else "utf-8"
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeError as error:
        remedy = "save it as UTF-8, or declare its encoding in its first line"
        raise ValueError(f"its text is not {encoding}; {remedy}") from error


def _known_encoding(declared: str) -> str:
    try:
        name = codecs.lookup(declared).name
    except LookupError:
        name = ""
    if name.startswith(("utf-16", "utf-32")):  # the declaration itself was read as bytes, so this is not true
        return "utf-8"
    if not _ENCODINGS.fullmatch(name):
        raise ValueError(f"it declares the encoding {declared!r}, which is not read; save it as UTF-8")
    return "gb18030" if name in ("gb2312", "gbk") else name  # which contains them


def written_name(root: ElementTree.Element) -> str:
    """The image's name by `filename`, without folders; nothing where that is none."""
    written = re.split(r"[\\/]", (root.findtext("filename") or "").strip())[-1]
    return written if has_ending(written) else ""


def image_name(root: ElementTree.Element, stem: str) -> tuple[str, bool]:
    """What the image is called, and whether that includes its ending.

    The annotation's own name without `.xml` counts; its `filename` tells the ending where the two agree.
    """
    written = written_name(root)
    if written and stem in (written, os.path.splitext(written)[0]):
        return written, True
    return stem, False


def voc_size(root: ElementTree.Element) -> Size | None:
    """(w, h) in pixels, None where the annotation does not say, or says 0."""
    try:
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
    except ValueError:
        return None
    return size if is_size(size) else None


@dataclass
class VocReader:
    """Turns annotations into rows; objects that cannot be kept are counted in `tally`.

    Objects marked difficult are left out unless `difficult` is set.
    """

    names: Names
    difficult: bool = False
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.classes = ClassNames(self.names)

    def rows(self, root: ElementTree.Element, size: Size | None, where: str) -> list[str] | None:
        """Rows of one annotation of an image of `size`; None where it has objects, but no size to divide them by.

        VOC counts pixels from 1, so corners move by one. `where` names the annotation in what is counted.
        """
        items = [(f"{where}, object {number}", item) for number, item in enumerate(root.iter("object"), start=1)]
        if size is None and items:
            reason = "of an image of unknown size (width and height are 0 or missing); write them into the XML, or put"
            self.tally.drop(f"{reason} the image where train.py looks for it", where, len(items))
            return None
        return [row for place, item in items for row in self._row(item, size, place)]

    def _row(self, item: ElementTree.Element, size: Size, place: str) -> list[str]:
        name, difficult = item.findtext("name") or "", (item.findtext("difficult") or "0").strip().lower()
        kind = self.classes.find(name)
        if kind is None:
            self.tally.drop(self.classes.unlisted(name), place)
        elif difficult in ("1", "true", "yes") and not self.difficult:
            self.tally.drop("marked difficult; convert with difficult=True to keep them", place)
        elif (box := item.find("bndbox")) is None:
            self.tally.drop("without a bndbox; export upright boxes", place)
        else:
            try:
                corners = [float(box.findtext(side)) - 1 for side in CORNERS]
            except NONSENSE:
                self.tally.drop(f"whose {', '.join(CORNERS)} are not all numbers", place)
                return []
            return boxed(self.tally, kind, corners, size, place)
        return []
