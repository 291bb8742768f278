"""Names in COCO annotations, and what they mean."""

from __future__ import annotations

from utils.evaluation.coco_names import match_images, match_names, order


def test_nothing_matches_nothing() -> None:
    assert match_images({}, ["a.jpg"]) == match_images({1: "a.jpg"}, []) == {}
    assert match_names({}, ["a"]) == match_names({1: ""}, ["a"]) == {}


def test_names_match_as_they_stand_before_their_spellings() -> None:
    assert match_names({1: "Hex Nut", 2: "hex_nut", 3: "BOLT", 4: "other"}, ["hex nut", "hex_nut", "bolt"]) == {
        2: 1, 3: 2,
    }, "'Hex Nut' may be either"  # fmt: skip
    assert match_names({"x": "hex-nut", "y": " hex nut"}, ["hex nut"]) == {"x": 0, "y": 0}


def test_images_of_one_name_are_told_apart_by_their_folders_or_not_at_all() -> None:
    images = ["/d/a/1.jpg", "/d/b/1.jpg", "/d/c/2.jpg"]

    def ids(*names: str) -> dict[str | int, int | str]:
        return match_images(dict(enumerate(names, 1)), images)

    assert ids("b\\1.jpg", "x/a/1.jpg", "2.jpg") == {"/d/a/1.jpg": 2, "/d/b/1.jpg": 1, "/d/c/2.jpg": 3}
    assert ids("1.jpg", "2.jpg") == {"/d/c/2.jpg": 2}, "it may be either"
    assert ids("1.jpg", "a/1.jpg", "2.jpg") == {"/d/a/1.jpg": 2, "/d/b/1.jpg": 1, "/d/c/2.jpg": 3}
    assert ids("x/2.jpg", "y/2.jpg", "a/1.jpg") == {"/d/a/1.jpg": 3}


def test_exact_names_go_before_near_ones() -> None:
    assert match_images({1: "A.JPG", 2: "a.jpg", 3: "a.png"}, ["a.jpg", "a.png", "b.jpg"]) == {"a.jpg": 2, "a.png": 3}
    assert match_images({1: "ca\u0308t.tif"}, ["d/CÄT.jpg"]) == {"d/CÄT.jpg": 1}
    assert match_images({139: "000000000139.jpg", 7: "7"}, [139, 7, 8]) == {139: 139, 7: 7}
    assert match_images({5: "word.jpg"}, [5]) == {5: 5}, "a number that no name has is an id"


def test_ids_are_ordered_as_numbers_however_they_are_written() -> None:
    assert sorted([10, "9", "b", 1, "a"], key=order) == [1, "9", 10, "a", "b"]
