"""Finding images in folders and lists, what is passed over, and which label file belongs to which image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.data.image_files import (
    Problem,
    find_images,
    img2label_paths,
    is_image,
    label_places,
    misplaced_labels,
    search_images,
)
from utils.data.labels import check_pair
from utils.images.reading import IMG_FORMATS


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_problems_are_one_line() -> None:
    assert str(Problem("a\n.txt", 3, "odd", "mend it")) == "a\\n.txt:3: odd; mend it (image left out)"
    assert str(Problem("a.jpg", None, "odd", "look", False, 1)) == "1 image, the first a.jpg: odd; look"
    assert str(Problem("a.jpg", None, "odd", "look", False, 2)) == "2 images, the first a.jpg: odd; look"


@pytest.mark.parametrize(
    "source, reason",
    [
        ("", "no images in .*; files passed over: 2 .heic.*known: "),
        ("empty", "no images in .*empty"),
        ("nowhere", "nowhere.*no such folder"),
        ("x" * 5000, "no such folder or list of images"),
        ("l.txt", "l.txt: no list of images .it is no text.; write one path on each line"),
        (None, "an empty list of sources"),
    ],
)
def test_no_images_at_all(tmp_path: Path, source: str | None, reason: str) -> None:
    make(tmp_path, "a.heic", "b.heic")
    (tmp_path / "empty").mkdir()
    (tmp_path / "l.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    with pytest.raises(ValueError, match=reason):
        find_images([] if source is None else tmp_path / source)


def test_images_of_folders_and_lists_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "b/z.JPG", "b/é y.png", "a.webp", "notes.txt", "b/noise.gif")
    assert [path.name for path in find_images(tmp_path)] == ["a.webp", "z.JPG", "é y.png"]
    listing = tmp_path / "list.txt"
    listing.write_text("./b/z.JPG\n\n./a./odd.png\nnotes.txt\n" + str(tmp_path / "a.webp") + "\n")
    assert find_images(listing) == [tmp_path / "a./odd.png", tmp_path / "a.webp", tmp_path / "b/z.JPG"]
    listing.write_text("b/z.JPG\n")
    monkeypatch.chdir(tmp_path / "b")
    assert find_images([listing]) == [tmp_path / "b/z.JPG"]  # nothing of that name here, so beside the list
    monkeypatch.chdir(tmp_path)
    assert find_images("list.txt") == [Path("b/z.JPG")]


def test_other_files_are_counted_by_ending_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.jpg", "b.JFIF", "c.heic", "d.HEIC", "e.webm", "f", "g.3gp")
    make(tmp_path, "classes.txt", "x.json", ".DS_Store", "b.xml", "a.cache.npz", ".hidden.heic", "readme.md")
    found, (problem,) = search_images(tmp_path)
    assert [path.name for path in found] == ["a.jpg", "b.JFIF"]
    assert problem.file == str(tmp_path) and not problem.dropped
    assert problem.reason == (
        f"files passed over: 2 .heic, 1 .webm, 1 without an ending, 1 .3gp, the first {tmp_path}/c.heic"
    )
    assert "convert them to .jpg or .png" in problem.remedy and " jfif " in problem.remedy
    find_images(tmp_path)
    assert caplog.text.count("passed over") == 1


def test_odd_names_stay_on_one_line_and_hidden_copies_are_said(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.x\ny", "c\x1b[31m.z")
    assert "1 .x\\ny, 1 .z, the first" in search_images(tmp_path)[1][0].reason
    (tmp_path / "l.txt").write_bytes(b"a.jpg\nb.\xff\x0c\x1b!\n")
    assert search_images(tmp_path / "l.txt")[1][0].reason.isprintable()
    (tmp_path / "l.txt").write_text("9" * 5000)
    with pytest.raises(ValueError, match="1 without an ending, the first 9{500}; put some there"):
        search_images(tmp_path / "l.txt")
    make(tmp_path, ".set/a.jpg", ".set/._a.jpg", ".set/.ipynb_checkpoints/a-checkpoint.jpg", ".set/__MACOSX/a.jpg")
    found, (problem,) = search_images(tmp_path / ".set")
    assert found == [tmp_path / ".set/a.jpg"]
    assert f"hidden images passed over: 3, the first {tmp_path}/.set/._a.jpg; rename them" in str(problem)
    for ending in IMG_FORMATS:
        assert is_image(f"a.{ending}") and is_image(f"A.{ending.upper()}") and not is_image(f"a.{ending}x")


def test_a_list_may_have_any_names(tmp_path: Path) -> None:
    names = [b"\xff.png", b"x" * 5000 + b".png", "图\u2028😀.png".encode()]
    (tmp_path / "l.txt").write_bytes(b"\r\n".join([*names, b"./a\x85.png"]))
    found = {os.fsencode(path) for path in find_images(tmp_path / "l.txt")}
    assert found == {*names, os.fsencode(tmp_path) + b"/a\x85.png"}
    for name in found:
        assert "\n" not in str(check_pair(os.fsdecode(name), "none.txt").problem)


AS_WRITTEN = {
    "quotes": "\"images/a b.jpg\"\n'images/c.jpg'\n",
    "backslashes": "images\\a b.jpg\r\nimages\\c.jpg\r\n",
    "from here, backslashes": ".\\images\\a b.jpg\n.\\images\\c.jpg\n",
    "a drive": "D:\\work\\set\\images\\a b.jpg\nD:\\work\\set\\images\\c.jpg",
    "a server": "\\\\server\\share\\images\\a b.jpg\n\\\\server\\share\\images\\c.jpg",
    "another home": "/home/somebody/set/images/a b.jpg\n/home/somebody/set/images/c.jpg\n",
    "CVAT's": "data/images/a b.jpg\ndata/images/c.jpg\n",
    "one up": "../images/a b.jpg\n../images/c.jpg",
    "comments": "# the images\nimages/a b.jpg\n#images\n\nimages/c.jpg",
    "old Macs": "images/a b.jpg\rimages/c.jpg\r",
}


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("case", AS_WRITTEN)
def test_lists_as_other_programs_write_them(tmp_path: Path, case: str, coding: str) -> None:
    make(tmp_path, "images/a b.jpg", "images/c.jpg")
    (tmp_path / "train.txt").write_bytes(AS_WRITTEN[case].encode(coding))
    found, problems = search_images(tmp_path / "train.txt")
    assert found == [tmp_path / "images/a b.jpg", tmp_path / "images/c.jpg"]
    moved = case in ("a drive", "a server", "another home", "CVAT's", "one up")
    assert [problem.line for problem in problems] == [1] * moved, "where they are taken from is said once"
    assert all(f"its images are taken from {tmp_path}/images" in problem.reason for problem in problems)


def test_where_listed_images_are_looked_for(tmp_path: Path) -> None:
    make(tmp_path, "images\\a.jpg", "images/a.jpg", "a.jpg", "set/b.jpg")
    listing = tmp_path / "l.txt"
    listing.write_text("images\\a.jpg\n")
    assert find_images(listing) == [tmp_path / "images\\a.jpg"], "a backslash in a real name stays"
    listing.write_text("set/a.jpg\n")
    assert find_images(listing) == [tmp_path / "set/a.jpg"], "missing, rather than another of its name"
    listing.write_text("\ndata/x/c.jpg\ndata/x/d.jpg\n")
    found, (problem,) = search_images(listing)
    assert len(found) == 2 and problem.line == 2 and "correct the list" in problem.remedy
    assert all(f"{place}" in problem.reason for place in (Path("data/x").absolute(), tmp_path / "data/x", tmp_path))
    listing.write_text("a.jpg\nb.heic\na.jpg 1 2 3\n")
    _, (problem,) = search_images(listing)
    assert problem.line == 2
    assert problem.reason.startswith("lines passed over: 1 .heic, 1 without an ending, the first b.heic")


def test_label_paths(tmp_path: Path) -> None:
    """In the last folder called `images`, by its name alone; where there is none there, beside the image."""
    for image, label in (
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/images/a.b.png", "/images/labels/a.b.txt"),
        ("/images/x/images/a.png", "/images/x/labels/a.txt"),
        ("images/a.png", "labels/a.txt"),
        ("/d/my_images/a.png", "/d/my_images/a.txt"),
        ("a.png", "a.txt"),
    ):
        assert img2label_paths([image]) == [label] == [label_places(image)[0]]
    make(tmp_path, "labels/a.txt", "images/b.txt", "labels/c.txt", "images/c.txt", "images/README.txt")
    found = img2label_paths(tmp_path / f"images/{name}.jpg" for name in "abcd")
    assert found == [f"{tmp_path}/{name}.txt" for name in ("labels/a", "images/b", "labels/c", "labels/d")]


@pytest.mark.parametrize(
    "images, label, remedy",
    [
        ("Images", "Labels/train/a.txt", "rename Images to images and Labels to labels"),
        ("images", "LABELS/train/a.txt", "rename LABELS to labels"),
        ("JPEGImages", "labels/train/a.txt", "rename JPEGImages to images"),
        ("images", "labels_my-set_2024-05-01/train/a.txt", "rename labels_my-set_2024-05-01 to labels"),
        ("images", "labels/train/a.TXT", "rename it to a.txt"),
        ("images", "labels/train/a.jpg.txt", "rename it to a.txt"),
        ("images", "images/train/a.json", "convert it, see docs/own-data.md"),
        ("images", "labels/train/a.xml", "convert it, see docs/own-data.md"),
        ("images", "labels/a.txt", "move it into {}/labels/train"),
    ],
)
def test_labels_in_another_place_or_of_another_name_are_pointed_at(
    tmp_path: Path, images: str, label: str, remedy: str
) -> None:
    make(tmp_path, f"{images}/train/a.jpg", f"{images}/train/b.jpg", label)
    without, image = f"{tmp_path}/{images}/train/b.jpg", f"{tmp_path}/{images}/train/a.jpg"
    assert misplaced_labels([without, image]) == f"; {tmp_path}/{label} is there: {remedy.format(tmp_path)}"
    assert misplaced_labels([without, "nowhere/images/a.jpg"]) == "" == misplaced_labels([])
