"""Pascal VOC annotations as people write them; all values by hand."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.prepare.voc_xml import CORNERS, VocReader, image_name, read_voc, voc_size

SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"
ROW = "0 0.200000 0.400000 0.200000 0.400000"  # corners 11 11 31 31, counted from 1


def thing(name: str = "bolt", box: tuple[object, ...] = (11, 11, 31, 31), extra: str = "") -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(CORNERS, box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def voc(*things: str, size: str = SIZE, head: str = "", filename: str = "a.jpg") -> str:
    return f"{head}<annotation><filename>{filename}</filename>{size}{''.join(things)}</annotation>"


@pytest.fixture
def read(tmp_path: Path):
    """Rows of an annotation and the reader, for this text."""

    def rows(text: str, **options: object) -> tuple[list[str] | None, VocReader]:
        (tmp_path / "a.xml").write_text(text, encoding="utf-8")
        root = read_voc(tmp_path / "a.xml")
        reader = VocReader(["bolt", "nut"], **options)
        return reader.rows(root, voc_size(root), "a.xml"), reader

    return rows


def test_nothing_gives_nothing(read) -> None:
    for text in (voc(), "<annotation/>", voc(size="")):
        rows, reader = read(text)
        assert not rows and not reader.tally.dropped


@pytest.mark.parametrize(
    "item",
    [
        thing(),
        thing("Bolt "),
        thing("\n bolt"),
        thing(box=(31, 31, 11, 11)),
        thing(box=("31.0", " 11", "11 ", "31")),
        thing(extra="<difficult>0</difficult>"),
        thing(extra="<difficult/>"),
        thing(extra="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"),
    ],
)
def test_what_everybody_writes_is_read(read, item: str) -> None:
    rows, reader = read(voc(item))
    assert rows == [ROW] and not reader.tally.dropped


@pytest.mark.parametrize(
    "item, reason",
    [
        (thing("bolts"), "called 'bolts', which is not among the names; did you mean 'bolt'?"),
        ("<object><bndbox/></object>", "called ''"),
        (thing(extra="<difficult> 1 </difficult>"), "difficult=True"),
        ("<object><name>bolt</name><robndbox/></object>", "without a bndbox"),
        (thing(box=("", 1, 2, 3)), "not all numbers"),
        (thing(box=("nan", 1, 2, 3)), "not finite"),
        ("<object><name>bolt</name><bndbox><xmin>1</xmin></bndbox></object>", "not all numbers"),
        (thing(box=(5, 5, 5, 9)), "without width or height"),
        (thing(box=(500, 5, 600, 9)), "outside of its image"),
    ],
)
def test_what_is_dropped_is_counted_with_its_reason_and_example(read, item: str, reason: str) -> None:
    rows, reader = read(voc(thing(), item, item))
    ((said, (count, example)),) = reader.tally.dropped.items()
    assert rows == [ROW] and reason in said and (count, example) == (2, "a.xml, object 2")


def test_difficult_objects_are_kept_where_they_are_wanted(read) -> None:
    assert read(voc(thing(extra="<difficult>1</difficult>")), difficult=True)[0] == [ROW]


@pytest.mark.parametrize("size", ["", "<size/>", "<size><width>0</width><height>0</height></size>",
                                  "<size><width>x</width><height>5</height></size>"])  # fmt: skip
def test_without_a_size_there_are_no_rows_and_no_empty_ones(read, tmp_path: Path, size: str) -> None:
    rows, reader = read(voc(thing(), thing(), size=size))
    ((reason, (count, _)),) = reader.tally.dropped.items()
    assert rows is None and count == 2 and "write them into the XML, or put the image" in reason
    assert reader.rows(read_voc(tmp_path / "a.xml"), (100, 50), "a.xml") == [ROW, ROW]


@given(st.lists(st.integers(1, 50), min_size=4, max_size=4))
def test_any_two_opposite_corners_will_do(corners: list[int]) -> None:
    x1, y1, x2, y2 = corners
    found = []
    for box in ((x1, y1, x2, y2), (x2, y1, x1, y2), (x1, y2, x2, y1), (x2, y2, x1, y1)):
        reader = VocReader(["bolt"])
        root = read_text(voc(thing(box=box)))
        found.append((reader.rows(root, (100, 50), "a"), reader.tally.lost))
    assert found == [found[0]] * 4 and (found[0][1] == 0) == (x1 != x2 and y1 != y2)


def read_text(text: str):
    from xml.etree import ElementTree

    return ElementTree.fromstring(text)


@pytest.mark.parametrize(
    "declared, encoding",
    [
        ("gb2312", "gb2312"),
        ("GBK", "gbk"),
        ("gb18030", "gb18030"),
        ("Big5", "big5"),
        ("Shift_JIS", "shift_jis"),
        ("EUC-KR", "euc_kr"),
        ("utf-8", "utf-8"),
        ("UTF-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("utf-16", "utf-16-le"),
        ("UTF-16", "utf-16-be"),
        ("utf-16", "utf-8"),
        ("utf-32", "utf-32"),
    ],
)
def test_declared_encodings_are_read(tmp_path: Path, declared: str, encoding: str) -> None:
    name = {"big5": "螺帽", "shift_jis": "ボルト", "euc_kr": "볼트"}.get(encoding, "螺栓")
    text = voc(thing(name), head=f'<?xml version="1.0" encoding="{declared}"?>\n')
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    reader = VocReader(["nut", name])
    root = read_voc(tmp_path / "a.xml")
    assert reader.rows(root, voc_size(root), "a") == [ROW.replace("0", "1", 1)]


@pytest.mark.parametrize("declared", ["windows-1252", "ISO-8859-1", "utf-8", ""])
def test_western_names(tmp_path: Path, declared: str) -> None:
    encoding = declared or "utf-8"
    head = f"<?xml version='1.0' encoding='{declared}' ?>" if declared else ""
    (tmp_path / "a.xml").write_bytes(voc(thing("Rücklicht"), head=head).encode(encoding))
    root = read_voc(tmp_path / "a.xml")
    assert VocReader(["rücklicht"]).rows(root, voc_size(root), "a") == [ROW]


@pytest.mark.parametrize("codec", ["idna", "punycode", "unicode_escape", "utf-7", "zlib", "rot13", "undefined", "x"])
def test_codecs_that_are_no_encodings_of_xml_are_refused(tmp_path: Path, codec: str) -> None:
    (tmp_path / "a.xml").write_text(voc(head=f'<?xml version="1.0" encoding="{codec}"?>'))
    with pytest.raises(ValueError, match=f"a.xml: not a VOC annotation .it declares the encoding '{codec}'"):
        read_voc(tmp_path / "a.xml")


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "no element"),
        (b"<annotation>", "no element"),
        (b"no XML", "syntax error"),
        (b"<html/>", "root is 'html'"),
        (b"<annotation>\xff</annotation>", "its text is not utf-8; save it as UTF-8, or declare"),
        (codecs.BOM_UTF16_LE + b"<", "its text is not utf-16"),
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "XML entities"),
    ],
)
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
        ("a.jpg", "a", ("a.jpg", True)),
        ("C:\\old\\a.JPG", "a", ("a.JPG", True)),
        ("b.jpg", "a", ("a", False)),
        ("", "a.b", ("a.b", False)),
        ("photo.webp.jpg", "photo.webp", ("photo.webp.jpg", True)),
        ("photo.webp", "photo.webp", ("photo.webp", True)),
        ("photo.heic", "photo.heic", ("photo.heic", True)),
        ("a.jpg", "photo.webp", ("photo.webp", False)),
        ("a", "a", ("a", False)),
    ],
)
def test_the_annotations_own_name_counts(filename: str, stem: str, name: tuple[str, bool]) -> None:
    assert image_name(read_text(voc(filename=filename)), stem) == name
