"""What `names` may be, and which class a name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.base.class_names import ClassNames, class_names
from utils.base.files import folded


@pytest.mark.parametrize("names", [[], (), {}, [None], [["a"]], [1.5], {1: "a"}, {0: "a", 2: "b"}, {"a": "b"}], ids=str)
def test_what_is_no_list_of_names(names: object) -> None:
    with pytest.raises(ValueError, match="^names: "):
        class_names(names)


def test_every_form_of_names(tmp_path: Path) -> None:
    yaml = tmp_path / "bolts.yaml"
    yaml.write_text("path: nowhere\ntrain: images/train\nval: images/val\nnames: {0: bolt, 1: nut}\n")
    text = tmp_path / "classes.txt"
    text.write_bytes("\ufeffbolt\r\n\r\n nut \r\n".encode())
    forms = (["bolt", "nut"], {0: "bolt", 1: "nut"}, {"1": "nut", "0": "bolt"}, yaml, str(yaml), text, str(text))
    assert {class_names(form) for form in forms} == {("bolt", "nut")}
    assert class_names([5, "x"]) == ("5", "x")
    with pytest.raises(ValueError, match="names: bolt is no list, data YAML or text file"):
        class_names("bolt")


@pytest.mark.parametrize("name", ["Traffic Light", "traffic_light ", " TRAFFIC-LIGHT", "ｔraffic \tlight"])
def test_case_width_and_separators_do_not_matter(name: str) -> None:
    assert ClassNames(["car", "traffic light"]).find(name) == 1


def test_names_that_differ_in_nothing_else_are_told_apart() -> None:
    names = ClassNames(["a-b", "a b", "Straße", "x", "x"])
    assert (names.find("a-b"), names.find("a b"), names.find("A_B"), names.find("STRASSE")) == (0, 1, None, 2)
    assert names.find("x") == 3 and names.find("X") == 3 and folded(" A__b ") == "a b"


def test_what_is_not_listed_says_what_comes_near() -> None:
    names = ClassNames(["Bolt", "nut"])
    assert names.find("bolts") is None and names.find("") is None
    assert names.unlisted("bolts") == "called 'bolts', which is not among the names; did you mean 'Bolt'?"
    assert names.unlisted("cat") == "called 'cat', which is not among the names; add it to keep them"
    assert len(names.unlisted("x" * 10_000)) < 200
