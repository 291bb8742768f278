"""Only files are read, only so much of them, and every name stays on its line."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.base.files import (
    LONGEST_NAME,
    check_size,
    decoded,
    file_size,
    file_stem,
    folder_name,
    is_hidden,
    is_one_line,
    printable,
    read_bytes,
    replacing,
    walk_files,
    write_whole,
)


def test_names_stay_on_one_line() -> None:
    for name in ("a\nb", "a\x1b[31m", "\u2028", os.fsdecode(b"\xff"), "\x00"):
        assert printable(name) == printable(Path(name)) == ascii(name).strip("'") and not is_one_line(name)
    for name in ("a\u202egpj.exe", "a\u200bb\ufeff", "\u2066x\U000e0041", "\u00ad"):  # unseen, or turns the line
        assert printable(name) == ascii(name).strip("'") and is_one_line(name)
    for kept in ("a b.jpg", "图 é 👩‍🔬 \u202f.jpg", "می\u200cخواهم", "שלום\u200f!", "👩\u200d🔬"):
        assert printable(kept) == printable(Path(kept)) == kept and is_one_line(kept)


NAMES = [
    ("bus (1)", "bus (1)", "bus (1)"), ("图 é.v2", "图 é.v2", "图 é.v2"), ("a/b\\c", "a_b\\c", "a_b_c"),
    ("2024-01-01T12:00", "2024-01-01T12:00", "2024-01-01T12_00"), ("end. .", "end. .", "end___"),
    ("\x1b]0;own\x07\0\n", "_]0;own___", "_]0;own___"), ("a\u202eb\udcff", "a_b_", "a_b_"),
    ("", "", "_"), (".", ".", "_"), ("..", "..", "__"), ("../../x", ".._.._x", ".._.._x"), ("CON", "CON", "_CON"),
    ("nul.txt", "nul.txt", "_nul.txt"), ("com1", "com1", "_com1"), ("LPT9 .x", "LPT9 .x", "_LPT9 .x"),
    ("console", "console", "console"),
]  # fmt: skip


@pytest.mark.parametrize("name, stem, folder", NAMES)
def test_names_made_of_anything(name: str, stem: str, folder: str) -> None:
    assert (file_stem(name), folder_name(name)) == (stem, folder)


def test_long_names_stay_different_and_fit() -> None:
    for letter in ("x", "é", "图", "👩"):
        names = [letter * 300 + end for end in ("a", "b")]
        for make in (file_stem, folder_name):
            made = [make(name) for name in names]
            assert len(set(made)) == 2 and all(len(name.encode()) <= LONGEST_NAME for name in made)
            assert all(name.startswith(letter * 50) for name in made)
    assert file_stem("x" * LONGEST_NAME) == "x" * LONGEST_NAME


@given(st.text())
def test_folders_and_lines_can_be_made_of_any_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    once = printable(text)
    assert is_one_line(once) and printable(once) == once and len(once.splitlines()) <= 1
    once.encode()
    place = tmp_path_factory.getbasetemp() / "any"
    made = place / folder_name(text)
    made.mkdir(parents=True, exist_ok=True)
    assert made.resolve().parent == place.resolve() and folder_name(made.name) == made.name


def test_what_is_no_file_is_named_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as plug:
        monkeypatch.chdir(tmp_path)  # the path of a socket may only be short
        plug.bind("plug")
        cases = {"pipe": "a pipe", "plug": "a socket", ".": "a folder", "/dev/zero": "a device", "a\0b": "NUL"}
        for name, kind in cases.items():
            with pytest.raises(ValueError, match=kind):
                read_bytes(tmp_path / name if "\0" not in name else name, 10)
    for name in ("loop", "none"):
        with pytest.raises(OSError):
            file_size(tmp_path / name, 10)


def test_no_more_than_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345" and file_size(tmp_path / "a", 5) == 5
    with pytest.raises(ValueError, match="its 5 bytes are more than the 4 that are read"):
        read_bytes(tmp_path / "a", 4)
    check_size(5, 5)
    (tmp_path / "empty").touch()
    assert read_bytes(tmp_path / "empty", 0) == b""
    tracemalloc.start()
    assert read_bytes(tmp_path / "a", 1 << 40) == b"12345" and tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than"):
        read_bytes(tmp_path / "huge", 1 << 20)
    if Path("/proc/version").exists():  # Linux has files whose size is 0 and means nothing
        assert read_bytes("/proc/version", 1000) == Path("/proc/version").read_bytes()
        with pytest.raises(ValueError, match="more than the 9 that"):
            read_bytes("/proc/version", 9)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    for name in ("a/x", "a/b/y", "far/z"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "a/here").symlink_to(".")
    (tmp_path / "a/far").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(tmp_path / "a")
    (tmp_path / "a/once more").symlink_to(tmp_path / "far")
    (tmp_path / "a/loop").symlink_to("loop")
    found = sorted(os.path.relpath(name, tmp_path / "a") for name in walk_files(tmp_path / "a"))
    assert found == ["b/y", "far/z", "loop", "once more/z", "x"] and list(walk_files(tmp_path / "none")) == []


def test_folders_linked_to_each_other_do_not_multiply_without_end(tmp_path: Path) -> None:
    """Twelve folders with links to all others make 12! paths."""
    for name in range(12):
        (tmp_path / str(name)).mkdir()
        (tmp_path / str(name) / "file").touch()
        for other in range(12):
            (tmp_path / str(name) / f"to {other}").symlink_to(tmp_path / str(other))
    assert 12 <= len(list(walk_files(tmp_path))) <= 12 * 64


def test_text_as_windows_writes_it_and_of_another_coding() -> None:
    for coding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-be"):
        mark = "\ufeff" if coding == "utf-16-be" else ""
        assert decoded((mark + "螺栓 1\r\n").encode(coding)) == "螺栓 1\r\n"
    assert decoded(b"") == printable("") == "" and is_one_line("")
    with pytest.raises(UnicodeError, match="^it is not text in UTF-8; save it as UTF-8$"):
        decoded("螺栓".encode("gbk"))


def test_hidden_is_what_lies_hidden_below_the_folder() -> None:
    assert not any(is_hidden(f".cache/set/{path}", ".cache/set") for path in ("a.jpg", "b..c/d.jpg"))
    hidden = ("._a.jpg", ".ipynb_checkpoints/a.jpg", "__MACOSX/a.jpg")
    assert all(is_hidden(f".cache/set/{path}", ".cache/set") for path in hidden)


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    file = tmp_path / "a.txt"
    with replacing(file, durable) as beside:
        beside.write_text("one")
        assert not file.exists() and beside.parent == tmp_path and is_hidden(str(beside), tmp_path)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(file, durable) as beside:
            raise error(beside.write_text("half of tw"))
    with pytest.raises(OSError), replacing(file, durable):
        pass  # nothing was written
    assert file.read_text() == "one" and list(tmp_path.iterdir()) == [file]
    write_whole(file, "ä\n")
    assert file.read_bytes() == "ä\n".encode() and file.stat().st_mode & 0o077 == 0o077 & ~_umask() & 0o666
    with pytest.raises(OSError):
        write_whole(tmp_path / "no" / "a.txt", "x")


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask
