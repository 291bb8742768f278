"""YAML that is short and stands for more than there is, or for nothing: one line with the file's name, at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from utils.base.yaml import MAX_BYTES, MAX_LEVELS, read_yaml, shortened, write_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}\n" for n in range(9))


def chain(levels: int) -> str:
    """Lists in lists, each only an alias of the one before."""
    return "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}]\n" for n in range(levels))


CASES = {
    "aliases that multiply": (LAUGHS, "more than 200,000 values"),
    "merged aliases that multiply": (MERGED, "more than 200,000 values"),
    "an alias in itself": ("a: &a [*a]", "part of itself"),
    "a mapping in itself": ("a: &a {b: *a}", "part of itself"),
    "a chain of aliases": (chain(MAX_LEVELS), "50 levels"),
    "brackets without end": ("a: " + "[" * 5000, "nested too deeply"),
    "a long number": ("a: " + "9" * 5000, "4300 digits"),
    "a long number in hexadecimal": ("a: 0x" + "f" * 5000, "more than 18 digits"),
    "a long time": ("a: " + ":".join(["59"] * 30), "more than 18 digits"),
    "no date": ("a: 2020-13-45", "month must be"),
    "no number": ("a: 0x_", "invalid literal"),
    "a tag that lies": ("a: !!bool x", "'x'"),
    "a time that is none": ("a: !!timestamp x", "NoneType"),
    "half a character": ('a: "\\ud800"', "no character"),
    "a NUL": ('a: "x\\0"', "no character"),
    "code": ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", CASES)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    text, says = CASES[case]
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match="a.yaml.*is not valid YAML") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "large.yaml").write_text("#" * (MAX_BYTES + 1))
    (tmp_path / "a.yaml").write_text("")
    with pytest.raises(ValueError, match="a.yaml: expected 'key: value' lines, not nothing"):
        read_yaml(tmp_path / "a.yaml")
    reasons = {"pipe": "it is a pipe, not a file", "large": "more than the 1,048,576 that", "none": "No such"}
    for name, says in reasons.items():
        with pytest.raises(ValueError, match=f"{name}.yaml: cannot be read .*{says}"):
            read_yaml(tmp_path / f"{name}.yaml")


def test_aliases_that_are_few_merges_and_different_keys_are_used(tmp_path: Path) -> None:
    text = "a: &a [1, 2]\nb: *a\nc: &c {d: 1, x: 1}\ne: {<<: *c, x: 2}\n'1': t\n1: n\n" + chain(MAX_LEVELS - 5)
    (tmp_path / "a.yaml").write_text(text)
    content = read_yaml(tmp_path / "a.yaml")
    assert content["a"] == content["b"] == [1, 2] and content["e"] == {"d": 1, "x": 2}
    assert (content["1"], content[1]) == ("t", "n")


numbers = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False)
names = st.text("abc", min_size=1, max_size=3)
values = st.recursive(
    numbers | st.text("aé图 \n:#'\"[-", max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=4), values, min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, content: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    write_yaml(path, content)
    assert read_yaml(path) == yaml.safe_load(path.read_text(encoding="utf-8")) == content


@pytest.mark.parametrize("text", ["train: a\nval: b\ntrain: c\n", "x: {1: a, 1: b}\n"])
def test_a_key_that_is_there_twice_is_named(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a.yaml: .* YAML \(line \d: '(train|1)' is there twice; remove one"):
        read_yaml(file)


def test_values_in_messages_are_short() -> None:
    assert shortened([1]) == "[1]" and shortened("a\n") == "'a\\n'" and len(shortened("x" * 9999)) == 80
