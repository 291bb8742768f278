"""Pascal VOC's XML as people write it, and what is no annotation."""

from __future__ import annotations

import codecs
from pathlib import Path
from xml.etree import ElementTree

import pytest

from utils.base.config import ClassNames
from utils.prepare.image_places import LabelPlaces
from utils.prepare.label_formats import DropCounts
from utils.prepare.own_data import CORNERS, read_voc, voc_image, voc_rows, voc_size

SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"
ROW = "0 0.200000 0.400000 0.200000 0.400000"  # corners 11 11 31 31, counted from 1


def thing(name: str = "bolt", box: tuple[object, ...] = (11, 11, 31, 31), extra: str = "") -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(CORNERS, box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def voc(*things: str, size: str = SIZE, head: str = "", filename: str = "a.jpg") -> str:
    return f"{head}<annotation><filename>{filename}</filename>{size}{''.join(things)}</annotation>"


def rows_of(text: str, names: tuple[str, ...] = ("bolt", "nut"), **options: bool) -> tuple[list[str], DropCounts]:
    root, counts = ElementTree.fromstring(text), DropCounts()
    return voc_rows(root, voc_size(root) or (100, 50), ClassNames(names), counts, "a.xml", **options), counts


def test_nothing_gives_nothing() -> None:
    for text in (voc(), "<annotation/>", voc(size="")):
        rows, counts = rows_of(text)
        assert not rows and not counts.dropped


@pytest.mark.parametrize(
    "item",
    [
        thing(), thing("Bolt "), thing("\n bolt"), thing(box=(31, 31, 11, 11)), thing(box=("31.0", " 11", "11 ", "31")),
        thing(extra="<difficult>0</difficult>"), thing(extra="<difficult/>"),
        thing(extra="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"),
    ],
)  # fmt: skip
def test_what_everybody_writes_is_read(item: str) -> None:
    rows, counts = rows_of(voc(item))
    assert rows == [ROW] and not counts.dropped


@pytest.mark.parametrize(
    "item, reason",
    [
        (thing("bolts"), "called 'bolts', which is not among the names; did you mean 'bolt'?"),
        ("<object><bndbox/></object>", "called ''"), (thing(extra="<difficult> 1 </difficult>"), "difficult=True"),
        ("<object><name>bolt</name><robndbox/></object>", "without a bndbox"),
        (thing(box=("", 1, 2, 3)), "not all numbers"), (thing(box=("nan", 1, 2, 3)), "not finite"),
        ("<object><name>bolt</name><bndbox><xmin>1</xmin></bndbox></object>", "not all numbers"),
        (thing(box=(5, 5, 5, 9)), "without width or height"), (thing(box=(500, 5, 600, 9)), "outside of its image"),
    ],
)  # fmt: skip
def test_what_is_dropped_is_counted_with_its_reason_and_example(item: str, reason: str) -> None:
    rows, counts = rows_of(voc(thing(), item, item))
    ((said, (count, example)),) = counts.dropped.items()
    assert rows == [ROW] and reason in said and (count, example) == (2, "a.xml, object 2")


def test_difficult_objects_are_kept_where_they_are_wanted() -> None:
    assert rows_of(voc(thing(extra="<difficult>1</difficult>")), difficult=True)[0] == [ROW]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>",
                                  "<size><width>x</width><height>5</height></size>"])  # fmt: skip
def test_sizes_that_are_none(size: str) -> None:
    assert voc_size(ElementTree.fromstring(voc(size=size))) is None


@pytest.mark.parametrize(
    "declared, encoding",
    [
        ("gb2312", "gb2312"), ("GBK", "gbk"), ("gb18030", "gb18030"), ("Big5", "big5"), ("Shift_JIS", "shift_jis"),
        ("EUC-KR", "euc_kr"), ("utf-8", "utf-8"), ("UTF-8", "utf-8-sig"), ("utf-16", "utf-16"), ("utf-16", "utf-16-le"),
        ("UTF-16", "utf-16-be"), ("utf-16", "utf-8"), ("utf-32", "utf-32"), ("windows-1252", "cp1252"),
        ("ISO-8859-1", "latin-1"), ("", "utf-8"),
    ],
)  # fmt: skip
def test_declared_encodings_are_read(tmp_path: Path, declared: str, encoding: str) -> None:
    native = {"big5": "螺帽", "shift_jis": "ボルト", "euc_kr": "볼트", "cp1252": "rücklicht", "latin-1": "rücklicht"}
    name = native.get(encoding, "螺栓")
    head = f"<?xml version='1.0' encoding=\"{declared}\" ?>\n" if declared else ""
    (tmp_path / "a.xml").write_bytes(voc(thing(name), head=head).encode(encoding))
    root = read_voc(tmp_path / "a.xml")
    rows = voc_rows(root, voc_size(root), ClassNames(["nut", name]), DropCounts(), "a")
    assert rows == [ROW.replace("0", "1", 1)]


@pytest.mark.parametrize("codec", ["idna", "punycode", "unicode_escape", "utf-7", "zlib", "rot13", "undefined", "x"])
def test_codecs_that_are_no_encodings_of_xml_are_refused(tmp_path: Path, codec: str) -> None:
    (tmp_path / "a.xml").write_text(voc(head=f'<?xml version="1.0" encoding="{codec}"?>'))
    with pytest.raises(ValueError, match=f"a.xml: not a VOC annotation .it declares the encoding '{codec}'"):
        read_voc(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "no element"), (b"<annotation>", "no element"), (b"no XML", "syntax error"),
        (b"<html/>", "root is 'html'"),
        (b"<annotation>\xff</annotation>", "its text is not utf-8; save it as UTF-8, or declare"),
        (codecs.BOM_UTF16_LE + b"<", "its text is not utf-16"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "XML entities"),
    ],
)  # fmt: skip
def test_files_that_are_no_annotations_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.xml").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.xml: not a VOC annotation .*{what}") as caught:
        read_voc(tmp_path / "a.xml")
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "gb2312"])
@pytest.mark.parametrize("declared", ["", "utf-16", "utf-8", "gb2312"])
def test_a_billion_laughs_are_not_laughed(tmp_path: Path, declared: str, encoding: str) -> None:
    laughs = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(10))
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    text = f"{head}<!DOCTYPE a [{laughs}]><annotation><size>&a10;</size></annotation>"
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match="a.xml.*annotation with XML entities"):
        read_voc(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "filename, stem, name",
    [
        ("a.jpg", "a", "a.jpg"), ("C:\\old\\a.JPG", "a", "a.JPG"), ("b.jpg", "a", "a, without ending"),
        ("", "a.b", "a.b, without ending"), ("photo.webp.jpg", "photo.webp", "photo.webp.jpg"),
        ("photo.webp", "photo.webp", "photo.webp"), ("photo.heic", "photo.heic", "photo.heic"),
        ("a.jpg", "photo.webp", "photo.webp, without ending"), ("a", "a", "a, without ending"),
    ],
)  # fmt: skip
def test_the_annotations_own_name_counts(tmp_path: Path, filename: str, stem: str, name: str) -> None:
    image = voc_image(ElementTree.fromstring(voc(filename=filename)), Path(f"{stem}.xml"), LabelPlaces(tmp_path))
    assert image.text + ("" if image.whole else ", without ending") == name
