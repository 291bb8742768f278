"""Finding images in folders and lists, what is passed over, and which label file belongs to which image."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.data.image_files import find_images, img2label_paths, is_image, label_places, misplaced_labels, search_images
from utils.data.labels import check_pair
from utils.images.reading import IMG_FORMATS


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_no_pictures_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images in"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="an empty list of sources"):
        find_images([])
    with pytest.raises(ValueError, match="nowhere.*no such folder"):
        find_images(tmp_path / "nowhere")


def test_pictures_of_folders_and_lists_are_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/z.JPG", "b/é y.png", "a.webp", "notes.txt", "b/noise.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.webp", "z.JPG", "é y.png"]
    listing = tmp_path / "list.txt"
    listing.write_text("./b/z.JPG\n\n./a./odd.png\nnotes.txt\n" + str(tmp_path / "a.webp") + "\n")
    assert find_images(listing) == [tmp_path / "a./odd.png", tmp_path / "a.webp", tmp_path / "b/z.JPG"]
    listing.write_text("b/z.JPG\n")
    monkeypatch.chdir(tmp_path / "b")
    assert find_images([listing]) == [tmp_path / "b/z.JPG"]  # nothing of that name here, so beside the list
    monkeypatch.chdir(tmp_path)
    assert find_images("list.txt") == [Path("b/z.JPG")]


@pytest.mark.parametrize(
    "image, label",
    [
        ("/d/images/train/a.jpg", "/d/labels/train/a.txt"),
        ("/images/images/a.b.png", "/images/labels/a.b.txt"),
        ("/images/x/images/a.png", "/images/x/labels/a.png"[:-4] + ".txt"),
        ("images/a.png", "labels/a.txt"),
        ("/d/my_images/a.png", "/d/my_images/a.txt"),
        ("a.png", "a.txt"),
    ],
)
def test_label_paths(image: str, label: str) -> None:
    assert img2label_paths([image]) == [label]


# ---- what is passed over ---------------------------------------------------------------------------------------------


def test_other_files_are_counted_by_ending_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "a.jpg", "b.JFIF", "c.heic", "d.HEIC", "e.webm", "f", "g.3gp", "classes.txt", "x.json", ".DS_Store")
    found, (problem,) = search_images(tmp_path)
    assert [path.name for path in found] == ["a.jpg", "b.JFIF"]
    assert problem.file == str(tmp_path) and not problem.dropped
    assert problem.reason == (
        f"files passed over: 2 .heic, 1 .webm, 1 without an ending, 1 .3gp, the first {tmp_path}/c.heic"
    )
    assert "convert them to .jpg or .png" in problem.remedy and " jfif " in problem.remedy
    find_images(tmp_path)
    assert caplog.text.count("passed over") == 1


def test_odd_names_stay_on_one_line(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.x\ny", "c\x1b[31m.z")
    assert "1 .x\\ny, 1 .z, the first" in search_images(tmp_path)[1][0].reason
    (tmp_path / "l.txt").write_bytes(b"a.jpg\nb.\xff\x0c\x1b!\n")
    assert search_images(tmp_path / "l.txt")[1][0].reason.isprintable()


def test_nothing_is_said_of_labels_and_notes(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "a.txt", "b.xml", "c.json", "a.cache.npz", ".hidden.heic", "readme.md")
    assert search_images(tmp_path)[1] == []


def test_only_other_files_are_no_images(tmp_path: Path) -> None:
    make(tmp_path, "a.heic", "b.heic")
    with pytest.raises(ValueError, match="no images in .*; files passed over: 2 .heic.*known: "):
        find_images(tmp_path)


@pytest.mark.parametrize("ending", IMG_FORMATS)
def test_every_known_ending_is_an_image_in_any_case(ending: str) -> None:
    assert is_image(f"a.{ending}") and is_image(f"A.{ending.upper()}") and not is_image(f"a.{ending}x")


# ---- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"a\0b.png", b"\x89PNG\r\n\x1a\n\0\0"])
def test_a_list_that_is_no_text(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "l.txt").write_bytes(content)
    with pytest.raises(ValueError, match="l.txt: no list of images .it is no text.; write one path on each line"):
        find_images(tmp_path / "l.txt")


def test_a_list_may_have_any_names(tmp_path: Path) -> None:
    names = [b"\xff.png", b"x" * 5000 + b".png", "图\u2028😀.png".encode(), b"./a\x85.png"]
    (tmp_path / "l.txt").write_bytes(b"\r\n".join(names))
    found = {os.fsencode(path) for path in find_images(tmp_path / "l.txt")}
    assert found == {
        b"\xff.png",
        b"x" * 5000 + b".png",
        "图\u2028😀.png".encode(),
        os.fsencode(tmp_path) + b"/a\x85.png",
    }
    for name in found:
        assert "\n" not in check_pair(os.fsdecode(name), "none.txt").message


def test_names_that_are_too_long_are_only_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder or list of images"):
        find_images(tmp_path / ("x" * 5000))


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


def test_a_backslash_in_a_real_name_stays(tmp_path: Path) -> None:
    make(tmp_path, "images\\a.jpg", "images/a.jpg")
    (tmp_path / "l.txt").write_text("images\\a.jpg\n")
    assert find_images(tmp_path / "l.txt") == [tmp_path / "images\\a.jpg"]


def test_what_is_nowhere_says_where_was_looked(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("\ndata/x/a.jpg\ndata/x/b.jpg\n")
    found, (problem,) = search_images(tmp_path / "l.txt")
    assert len(found) == 2 and problem.line == 2 and "correct the list" in problem.remedy
    assert all(f"{place}" in problem.reason for place in (Path("data/x").absolute(), tmp_path / "data/x", tmp_path))


def test_a_folder_that_is_there_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "set/b.jpg")
    (tmp_path / "l.txt").write_text("set/a.jpg\n")
    assert find_images(tmp_path / "l.txt") == [tmp_path / "set/a.jpg"], "missing, rather than another of its name"


def test_lines_that_name_no_image_are_said_with_their_number(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg")
    (tmp_path / "l.txt").write_text("a.jpg\nb.heic\na.jpg 1 2 3\n")
    _, (problem,) = search_images(tmp_path / "l.txt")
    assert problem.line == 2
    assert problem.reason.startswith("lines passed over: 1 .heic, 1 without an ending, the first b.heic")


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_labels_folder_first_then_beside(tmp_path: Path) -> None:
    images = [tmp_path / f"images/{name}.jpg" for name in "abcd"]
    make(tmp_path, "labels/a.txt", "images/b.txt", "labels/c.txt", "images/c.txt", "images/README.txt")
    assert [os.path.relpath(path, tmp_path) for path in img2label_paths(images)] == [
        "labels/a.txt", "images/b.txt", "labels/c.txt", "labels/d.txt",
    ]  # fmt: skip
    assert label_places("/d/images/x.jpg") == ("/d/labels/x.txt", "/d/images/x.txt")
    assert label_places("/d/x.jpg") == ("/d/x.txt",)


@pytest.mark.parametrize(
    "images, labels, renamed",
    [
        ("Images", "Labels", "Images to images and Labels to labels"),
        ("images", "LABELS", "LABELS to labels"),
        ("JPEGImages", "labels", "JPEGImages to images"),
        ("images", "labels_my-project_2024-05-01", "labels_my-project_2024-05-01 to labels"),
    ],
)
def test_labels_in_a_folder_of_another_name_are_pointed_at(
    tmp_path: Path, images: str, labels: str, renamed: str
) -> None:
    make(tmp_path, f"{images}/train/a.jpg", f"{labels}/train/a.txt")
    hint = misplaced_labels([f"{tmp_path}/{images}/train/b.jpg", f"{tmp_path}/{images}/train/a.jpg"])
    assert hint == f"; {tmp_path}/{labels}/train/a.txt is there: rename {renamed}"
    assert misplaced_labels([f"{tmp_path}/{images}/train/b.jpg", "nowhere/images/a.jpg"]) == "" == misplaced_labels([])


def test_copies_that_programs_hide_are_passed_over_and_said(tmp_path: Path) -> None:
    make(tmp_path, ".set/a.jpg", ".set/._a.jpg", ".set/.ipynb_checkpoints/a-checkpoint.jpg", ".set/__MACOSX/a.jpg")
    found, (problem,) = search_images(tmp_path / ".set")
    assert found == [tmp_path / ".set/a.jpg"]
    assert "hidden images passed over: 3, the first" in str(problem) and "rename them" in str(problem)
    assert str(tmp_path / ".set/._a.jpg") in str(problem)


@pytest.mark.parametrize(
    "label, remedy",
    [
        ("labels/train/a.TXT", "rename it to a.txt"),
        ("labels/train/a.jpg.txt", "rename it to a.txt"),
        ("images/train/a.json", "convert it, see docs/own-data.md"),
        ("labels/train/a.xml", "convert it, see docs/own-data.md"),
        ("labels/a.txt", "move it into {}/labels/train"),
    ],
)
def test_labels_of_another_name_are_pointed_at(tmp_path: Path, label: str, remedy: str) -> None:
    make(tmp_path, "images/train/a.jpg", "images/train/b.jpg", label)
    hint = misplaced_labels([f"{tmp_path}/images/train/b.jpg", f"{tmp_path}/images/train/a.jpg"])
    assert hint == f"; {tmp_path}/{label} is there: {remedy.format(tmp_path)}"
    assert misplaced_labels([f"{tmp_path}/images/train/b.jpg"]) == ""
