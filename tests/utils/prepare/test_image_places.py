"""Where images lie that annotations name, and where their label files belong; held against what train.py reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from utils.prepare.image_places import ImageFolder, ImageName, LabelPlaces


def image(path: Path, size: tuple[int, int] = (100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


@pytest.mark.parametrize("name", ["", " ", ".", "./", "..", "a/..", "C:", "//", "a\nb.jpg", "a\0b.jpg", "\ud800.jpg",
                                  "x" * 999 + ".jpg", "http://host", "http://host/a%0Ab.jpg"])  # fmt: skip
def test_names_that_no_image_has(name: str) -> None:
    with pytest.raises(ValueError, match="annotations name an image that cannot be: "):
        ImageName.read(name)


@pytest.mark.parametrize(
    "name, place",
    [
        ("a.jpg", "a.jpg"), ("./a.jpg", "a.jpg"), ("train/a.jpg", "train/a.jpg"), ("train\\a.jpg", "train/a.jpg"),
        ("images\\\\a.jpg", "a.jpg"), ("images/train/a.jpg", "train/a.jpg"), ("Images/a.jpg", "a.jpg"),
        ("train/images/a.jpg", "train/images/a.jpg"), ("a/../b/c.jpg", "b/c.jpg"), ("../x/a.jpg", "a.jpg"),
        ("..\\..\\label-studio\\data\\media\\upload\\1\\ab-a.jpg", "ab-a.jpg"), ("a/../../x/a.jpg", "a.jpg"),
        ("/data/upload/1/abc-a.jpg", "abc-a.jpg"), ("/home/me/set/images/train/a.jpg", "train/a.jpg"),
        ("C:\\set\\a.jpg", "a.jpg"), ("C:a.jpg", "a.jpg"), ("D:/set/images/val/a.jpg", "val/a.jpg"),
        ("\\\\host\\share\\a.jpg", "a.jpg"), ("http://host:8080/data/upload/1/a%20b.jpg?token=1/2", "a b.jpg"),
        ("s3://bucket/images/train/a.jpg", "train/a.jpg"), ("file:///home/me/a.jpg", "a.jpg"),
        ("/data/local-files/?d=set/images/val/a%20b.jpg", "val/a b.jpg"), ("images", "images"),
        ("a.jpg?size=1/2", "a.jpg"), ("a?b.jpg", "a?b.jpg"), ("../../../etc/passwd", "passwd"),
    ],
)  # fmt: skip
def test_names_as_tools_write_them(name: str, place: str) -> None:
    assert "/".join(ImageName.read(name).place) == place


def names_of(labels: Path, *names: str, whole: bool = True, beside: tuple[ImageFolder, ...] = ()):
    places = LabelPlaces(labels, beside)
    files = places.label_files([ImageName.read(name, whole) for name in names])
    places.check(files)
    return [path.relative_to(labels.parent).as_posix() for path in files.values()]


def test_without_images_the_names_decide(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("a.jpg", "b.c.png", "train/a.JPG", "no ending", "v1.5", "images/d.webp", "e.HEIC")
    found = names_of(tmp_path / "labels", *names)
    assert not caplog.records and [name.removeprefix("labels/") for name in found] == [
        "a.txt", "b.c.txt", "train/a.txt", "no ending.txt", "v1.5.txt", "d.txt", "e.txt",
    ]  # fmt: skip
    assert names_of(tmp_path / "labels", "photo.webp", whole=False) == ["labels/photo.webp.txt"]
    image(tmp_path / "images/photo.webp")  # a name without its ending means the stem first
    assert names_of(tmp_path / "labels", "photo.webp", whole=False) == ["labels/photo.txt"]
    image(tmp_path / "images/photo.webp.jpg")
    assert names_of(tmp_path / "labels", "photo.webp", whole=False) == ["labels/photo.webp.txt"]
    (tmp_path / "images/a.jpg").write_bytes(b"no image")
    assert [LabelPlaces(tmp_path / "labels").size(ImageName.read(name)) for name in ("a.jpg", "b.jpg")] == [None, None]


@pytest.mark.parametrize(
    "labels, on_disk, name, label",
    [
        ("set/labels", "set/images/a.jpg", "a.jpg", "set/labels/a.txt"),
        ("set/labels", "set/images/default/a.jpg", "a.jpg", "set/labels/default/a.txt"),  # CVAT's subset
        ("set/labels/train", "set/images/train/a.jpg", "train/a.jpg", "set/labels/train/a.txt"),
        ("set/labels/train", "set/images/train/a.jpg", "images/train/a.jpg", "set/labels/train/a.txt"),
        ("set/labels", "set/images/a.jpg", "/data/upload/3/a.jpg", "set/labels/a.txt"),
        ("set/labels", "set/images/a.jpg", "0a1b2c3d-a.jpg", "set/labels/a.txt"),  # uploaded to Label Studio
        ("set/labels", "set/images/a.webp", "a.jpg", "set/labels/a.txt"),  # re-saved
        ("set/train", "set/train/a.jpg", "a.jpg", "set/train/a.txt"),  # Roboflow: flat
        ("set", "set/train/images/a.jpg", "a.jpg", "set/train/labels/a.txt"),
        ("set", "set/images/train/a.jpg", "train/a.jpg", "set/labels/train/a.txt"),
        ("set/images", "set/images/sub/a.jpg", "a.jpg", "set/images/sub/a.txt"),  # beside, though there is `images`
        ("set/labels", "set/images/photo.webp.jpg", "photo.webp.jpg", "set/labels/photo.webp.txt"),
    ],
)
def test_labels_go_where_train_looks(tmp_path: Path, labels: str, on_disk: str, name: str, label: str) -> None:
    image(tmp_path / on_disk)
    places = LabelPlaces(tmp_path / labels)
    found = places.label_files([ImageName.read(name)])
    assert list(found.values()) == [tmp_path / label]
    assert places.size(ImageName.read(name)) == (100, 50)


def test_folders_that_contradict_are_not_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "images/train/a.jpg")
    assert names_of(tmp_path / "labels", "val/a.jpg", "train/a.jpg") == ["labels/val/a.txt", "labels/train/a.txt"]
    assert f"1 images are not found in {tmp_path / 'images'}, or there several times (first: val/a.jpg)" in caplog.text
    image(tmp_path / "images/other/a.jpg")
    caplog.clear()
    assert names_of(tmp_path / "labels", "a.jpg") == ["labels/a.txt"] and "or there several times" in caplog.text
    image(tmp_path / "images/a.jpg")
    caplog.clear()
    assert names_of(tmp_path / "labels", "a.jpg") == ["labels/a.txt"] and not caplog.records


def test_labels_that_train_will_not_find_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "JPEGImages/a.jpg")
    beside = (ImageFolder(tmp_path / "JPEGImages"),)
    assert names_of(tmp_path / "labels", "a.jpg", beside=beside) == ["labels/a.txt"]
    wanted = tmp_path / "JPEGImages"
    assert caplog.messages == [
        f"1 label files are not where train.py looks (first: {tmp_path}/labels/a.txt instead of {wanted}/a.txt); "
        f"convert into {wanted}"
    ]
    caplog.clear()
    assert names_of(wanted, "a.jpg", beside=beside) == ["JPEGImages/a.txt"] and not caplog.records


@pytest.mark.parametrize("names", [("a.jpg", "a.png"), ("a.jpg", "images/a.jpg"), ("/x/a.jpg", "/y/a.jpg")])
def test_two_images_with_one_label_file_are_named(tmp_path: Path, names: tuple[str, str]) -> None:
    both = f"{names[0]} and {names[1]}"
    with pytest.raises(ValueError, match=f"{both} would share the label file {tmp_path}/labels/a.txt; rename"):
        names_of(tmp_path / "labels", *names)
