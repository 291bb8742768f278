"""Whole conversions, ended by what train.py reads; Pascal VOC's XML as people write it, and what is no annotation."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from utils.base.config import ClassNames
from utils.data.label_index import load_index
from utils.prepare.converters import convert_coco, convert_dota, convert_voc
from utils.prepare.image_places import LabelPlaces
from utils.prepare.label_formats import DropCounts
from utils.prepare.own_data import CORNERS, read_voc, voc_image, voc_rows, voc_size

NAMES = ["bolt", "nut"]
ROW = "0 0.200000 0.400000 0.200000 0.400000\n"  # 20 x 20 pixels around (20, 20) of 100 x 50
BOX = {"image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20]}
DOTA = "imagesource:x\ngsd:1\n10 10 30 10 30 30 10 30 bolt 0\n"


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50)).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def coco(path: Path, *names: str, notes: list[Any] | None = None, **size: Any) -> Path:
    """A file with images of these names and a bolt on each."""
    images = [
        {"id": number, "file_name": name, **({"width": 100, "height": 50} | size)}
        for number, name in enumerate(names, start=1)
    ]
    notes = [{**BOX, "image_id": entry["id"]} for entry in images] if notes is None else notes
    content = {"images": images, "categories": [{"id": 5, "name": "bolt"}], "annotations": notes}
    return write(path, json.dumps(content))


def voc(path: Path, name: str = "bolt", side: int = 100, filename: str = "x.jpg") -> Path:
    size = f"<size><width>{side}</width><height>{side // 2}</height></size>"
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>31</xmax><ymax>31</ymax></bndbox>"
    text = f"<annotation><filename>{filename}</filename>{size}<object><name>{name}</name>{box}</object></annotation>"
    return write(path, text)


def labels_below(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in sorted(folder.rglob("*.txt"))}


def boxes(source: Path) -> list[list[float]]:
    """What train.py reads for the images of a folder."""
    index = load_index(source, cache=False)
    assert index.counts.missing == 0
    return index.all_labels.tolist()


# ---- COCO ------------------------------------------------------------------------------------------------------------


def test_nothing_is_an_error_that_names_file_and_remedy(tmp_path: Path) -> None:
    empty = coco(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.json: there are no images in it"):
        convert_coco(empty, tmp_path / "labels")
    with pytest.raises(ValueError, match=r"a\.json: no boxes in it"):
        convert_coco(coco(tmp_path / "a.json", "a.jpg", notes=[]), tmp_path / "labels")
    with pytest.raises(ValueError, match=rf"{tmp_path}: is a folder, name one of its files: a\.json"):
        convert_coco(tmp_path, tmp_path / "labels")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=rf"{tmp_path}/none: is a folder, and there is no \.json file in it"):
        convert_coco(tmp_path / "none", tmp_path / "labels")
    with pytest.raises(ValueError, match=r"none\.json: cannot be read \(No such file"):
        convert_coco(tmp_path / "none.json", tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


def test_boxes_are_counted_not_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notes = [BOX, BOX, {**BOX, "bbox": [50, 10, 20, 20]}, {**BOX, "iscrowd": 1}]
    file = coco(tmp_path / "a.json", "a.jpg", "b.jpg", "c.jpg", notes=notes)
    assert convert_coco(file, tmp_path / "labels", NAMES) == 2
    assert labels_below(tmp_path / "labels") == {
        "a.txt": ROW + "0 0.600000 0.400000 0.200000 0.400000\n", "b.txt": "", "c.txt": "",
    }  # fmt: skip
    said = [record.getMessage().removeprefix(f"{file}: ") for record in caplog.records]
    assert said == [
        f"2 boxes of 3 images kept, 2 dropped; labels in {tmp_path / 'labels'}",
        "1 dropped: marked iscrowd; convert with crowds=True to keep them (first: annotation no. 3 of a.jpg)",
        "1 dropped: the same box again (first: a.txt)",
    ]
    assert convert_coco(file, tmp_path / "others", NAMES, crowds=True) == 2, "the crowd is the first box once more"


@pytest.mark.parametrize("name", ["../../x.jpg", "/x.jpg", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "\\\\h\\x.jpg"])
def test_no_name_leads_out_of_the_label_folder(tmp_path: Path, name: str) -> None:
    convert_coco(coco(tmp_path / "deep/er/a.json", name), tmp_path / "deep/er/labels", NAMES)
    assert labels_below(tmp_path) == {"deep/er/labels/x.txt": ROW}


def test_conversion_can_be_repeated_but_replaces_nothing_else(tmp_path: Path) -> None:
    file, labels = coco(tmp_path / "a.json", "a.jpg", "b.jpg"), tmp_path / "labels"
    write(labels / "b.txt", "")
    assert [convert_coco(file, labels, NAMES) for _ in range(2)] == [2, 2]
    stamp = (labels / "a.txt").stat().st_mtime_ns
    write(labels / "b.txt", "1 .5 .5 .1 .1\n")
    with pytest.raises(ValueError, match=r"1 label files are there with other content \(first: .*b\.txt.*overwrite"):
        convert_coco(file, labels, NAMES)
    assert (labels / "b.txt").read_text() == "1 .5 .5 .1 .1\n"
    assert convert_coco(file, labels, NAMES, overwrite=True) == 2 and (labels / "b.txt").read_text() == ROW
    assert (labels / "a.txt").stat().st_mtime_ns == stamp, "what is right already is not written again"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write(tmp_path / "labels", "a file")
    with pytest.raises(ValueError, match=f"{tmp_path}/labels: cannot be written .*; make room there or choose another"):
        convert_coco(coco(tmp_path / "a.json", "a.jpg"), tmp_path / "labels", NAMES)


def test_arguments_in_another_order_are_named(tmp_path: Path) -> None:
    order = "the order of arguments is annotations, labels, names$"
    with pytest.raises(ValueError, match=rf"^labels: give a path, not \['bolt', 'nut'\]; {order}"):
        convert_voc(tmp_path, NAMES, tmp_path / "labels")
    with pytest.raises(ValueError, match=f"^annotations: give a path, not None; {order}"):
        convert_coco(None, tmp_path)
    with pytest.raises(ValueError, match=f"^labels: give a path, not ''; {order}"):
        convert_voc(tmp_path, "", NAMES)
    with pytest.raises(ValueError, match="^images: give a path, .* annotations, images, labels, names$"):
        convert_dota(tmp_path, NAMES, tmp_path, tmp_path)


# ---- VOC -------------------------------------------------------------------------------------------------------------


def test_folders_without_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/none: no such folder; name the folder of the annotations"):
        convert_voc(tmp_path / "none", tmp_path / "labels", NAMES)
    with pytest.raises(ValueError, match=rf"{tmp_path}: no \.xml file in it"):
        convert_voc(tmp_path, tmp_path / "labels", NAMES)
    write(tmp_path / "a.xml", "<annotation/>")
    with pytest.raises(ValueError, match=f"{tmp_path}: no boxes in it"):
        convert_voc(tmp_path, tmp_path / "labels", NAMES)
    write(tmp_path / "b.xml", "<annotation>")
    with pytest.raises(ValueError, match=r"b\.xml: not a VOC annotation"):
        convert_voc(tmp_path, tmp_path / "labels", NAMES)
    assert not (tmp_path / "labels").exists()


def test_voc_files_of_every_spelling_and_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    xml, labels = tmp_path / "xml", tmp_path / "labels"
    voc(xml / "a.xml", "Bolt ")
    voc(xml / "B.XML")
    voc(xml / "day 1/a.xml")
    voc(xml / "photo.webp.xml")
    voc(xml / "small.xml", side=0)
    voc(xml / "other.xml", "nuts")
    for name in ("._x.xml", "__MACOSX/._x.xml", ".ipynb_checkpoints/x-checkpoint.xml"):
        write(xml / name, "what programs leave is no annotation")
    assert convert_voc(xml, labels, NAMES) == 4
    assert labels_below(labels) == {
        "B.txt": ROW, "a.txt": ROW, "day 1/a.txt": ROW, "other.txt": "", "photo.webp.txt": ROW,
    }  # fmt: skip
    assert "4 boxes of 5 images kept, 2 dropped" in caplog.text
    assert "'nuts', which is not among the names; did you mean 'nut'? (first: other.xml, object 1)" in caplog.text
    assert "unknown size (width and height are 0 or missing); write them into the XML" in caplog.text
    assert convert_voc(xml, labels, NAMES) == 4


def test_two_annotations_of_one_image_are_named(tmp_path: Path) -> None:
    voc(tmp_path / "xml/a.xml")
    voc(tmp_path / "xml/a.XML")
    with pytest.raises(ValueError, match=r"a\.xml: another annotation is of a too; remove one"):
        convert_voc(tmp_path / "xml", tmp_path / "labels", NAMES)
    (tmp_path / "xml/a.XML").unlink()
    image(tmp_path / "images/a.jpg")
    voc(tmp_path / "xml/a.jpg.xml")
    with pytest.raises(ValueError, match="a and a.jpg would share|a.jpg and a would share"):
        convert_voc(tmp_path / "xml", tmp_path / "labels", NAMES)
    assert not (tmp_path / "labels").exists()


# ---- DOTA ------------------------------------------------------------------------------------------------------------


def test_dota_folders_are_kept_and_may_be_as_they_are_unpacked(tmp_path: Path) -> None:
    for part in ("a", "b"):
        image(tmp_path / f"images/{part}/P1.png")
        write(tmp_path / f"labelTxt/{part}/P1.txt", DOTA if part == "a" else DOTA * 2 + DOTA.replace("bolt", "nut"))
    assert convert_dota(tmp_path / "labelTxt", tmp_path / "images", tmp_path / "labels", NAMES) == 3
    assert labels_below(tmp_path / "labels") == {"a/P1.txt": ROW, "b/P1.txt": ROW + ROW.replace("0", "1", 1)}
    assert len(boxes(tmp_path / "images")) == 3
    image(tmp_path / "set/train/images/P1.png")
    write(tmp_path / "set/train/labelTxt/P1.txt", DOTA)
    for _ in range(2):
        assert convert_dota(*(tmp_path / "set",) * 3, NAMES) == 1
        write(tmp_path / "set/train/labels/P1.txt", ROW)
    assert len(boxes(tmp_path / "set/train/images")) == 1


def test_dota_says_what_it_cannot_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "images/P1.png")
    for folder, what in (("none", "no such folder"), ("images", r"no \.txt file in it")):
        with pytest.raises(ValueError, match=f"{tmp_path}/{folder}: {what}"):
            convert_dota(tmp_path / folder, tmp_path / "images", tmp_path / "labels", NAMES)
    write(tmp_path / "images/P1.txt", DOTA)
    with pytest.raises(ValueError, match=r"P1\.txt: would be replaced by its own labels; convert into another folder"):
        convert_dota(tmp_path / "images", tmp_path / "images", tmp_path / "images", NAMES, overwrite=True)
    write(tmp_path / "more/P1.txt", DOTA)
    write(tmp_path / "more/P2.TXT", DOTA * 2)
    assert convert_dota(tmp_path / "more", tmp_path / "images", tmp_path / "labels", NAMES) == 1
    assert "2 dropped: of an image that is not in" in caplog.text and "(first: P2.TXT)" in caplog.text
    image(tmp_path / "images/P1.tif")
    with pytest.raises(ValueError, match=r"none of its 1 boxes can be used: 1 of an image that .* is there twice"):
        convert_dota(tmp_path / "images", tmp_path / "images", tmp_path / "labels", NAMES)
    (tmp_path / "images/P1.tif").write_bytes(b"no image")
    (tmp_path / "images/P1.png").unlink()
    with pytest.raises(ValueError, match=r"P1\.tif: its size cannot be read"):
        convert_dota(tmp_path / "images", tmp_path / "images", tmp_path / "labels", NAMES)


def test_the_image_that_voc_names_counts_where_only_that_is_there(tmp_path: Path) -> None:
    image(tmp_path / "images/图.jpg")
    voc(tmp_path / "xml/a.xml", filename="图.jpg")
    assert convert_voc(tmp_path / "xml", tmp_path / "labels", NAMES) == 1
    assert boxes(tmp_path / "images") == [pytest.approx([0, 0.2, 0.4, 0.2, 0.4])]
    image(tmp_path / "images/a.jpg")  # as after renaming: now the annotation's own name counts
    assert convert_voc(tmp_path / "xml", tmp_path / "others", NAMES) == 1
    assert list(labels_below(tmp_path / "others")) == ["a.txt"]


@pytest.mark.parametrize("line", ["big bolt 0", "big bolt", "Big_Bolt 1"])
def test_dota_names_may_have_spaces_and_files_be_from_windows(tmp_path: Path, line: str) -> None:
    image(tmp_path / "images/x.png")
    write(tmp_path / "labelTxt/x.txt", "").write_bytes(f"10 10 30 10 30 30 10 30 {line}\r\n".encode("utf-16"))
    assert convert_dota(tmp_path / "labelTxt", tmp_path / "images", tmp_path / "labels", ["big bolt"]) == 1
    assert labels_below(tmp_path / "labels") == {"x.txt": ROW}


# ---- one XML file ---------------------------------------------------------------------------------------------------

SIZE = "<size><width>100</width><height>50</height><depth>3</depth></size>"
VOC_ROW = "0 0.200000 0.400000 0.200000 0.400000"  # corners 11 11 31 31, counted from 1


def thing(name: str = "bolt", box: tuple[object, ...] = (11, 11, 31, 31), extra: str = "") -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(CORNERS, box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def xml(*things: str, size: str = SIZE, head: str = "", filename: str = "a.jpg") -> str:
    return f"{head}<annotation><filename>{filename}</filename>{size}{''.join(things)}</annotation>"


def rows_of(text: str, names: tuple[str, ...] = ("bolt", "nut"), **options: bool) -> tuple[list[str], DropCounts]:
    root, counts = ElementTree.fromstring(text), DropCounts()
    return voc_rows(root, voc_size(root) or (100, 50), ClassNames(names), counts, "a.xml", **options), counts


@pytest.mark.parametrize(
    "item",
    [
        thing(), thing("Bolt "), thing("\n bolt"), thing(box=(31, 31, 11, 11)), thing(box=("31.0", " 11", "11 ", "31")),
        thing(extra="<difficult>0</difficult>"), thing(extra="<difficult/>"),
        thing(extra="<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"),
    ],
)  # fmt: skip
def test_what_everybody_writes_is_read(item: str) -> None:
    rows, counts = rows_of(xml(item))
    assert rows == [VOC_ROW] and not counts.dropped


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
    rows, counts = rows_of(xml(thing(), item, item))
    ((said, (count, example)),) = counts.dropped.items()
    assert rows == [VOC_ROW] and reason in said and (count, example) == (2, "a.xml, object 2")


def test_difficult_objects_and_sizes_that_are_none() -> None:
    assert rows_of(xml(thing(extra="<difficult>1</difficult>")), difficult=True)[0] == [VOC_ROW]
    for size in ("", "<size/>", "<size><width>0</width><height>0</height></size>",
                 "<size><width>x</width><height>5</height></size>"):  # fmt: skip
        assert voc_size(ElementTree.fromstring(xml(size=size))) is None
        assert rows_of(xml(size=size))[0] == [] and not rows_of(xml(size=size))[1].dropped


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
    (tmp_path / "a.xml").write_bytes(xml(thing(name), head=head).encode(encoding))
    root = read_voc(tmp_path / "a.xml")
    rows = voc_rows(root, voc_size(root), ClassNames(["nut", name]), DropCounts(), "a")
    assert rows == [VOC_ROW.replace("0", "1", 1)]


@pytest.mark.parametrize("codec", ["idna", "punycode", "unicode_escape", "utf-7", "zlib", "rot13", "undefined", "x"])
def test_codecs_that_are_no_encodings_of_xml_are_refused(tmp_path: Path, codec: str) -> None:
    (tmp_path / "a.xml").write_text(xml(head=f'<?xml version="1.0" encoding="{codec}"?>'))
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
    image = voc_image(ElementTree.fromstring(xml(filename=filename)), Path(f"{stem}.xml"), LabelPlaces(tmp_path))
    assert image.text + ("" if image.whole else ", without ending") == name
