"""What a source stands for, and what is said of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from utils.predict.source_files import passed_over, sources_in


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(source, folder):
    return [Path(os.path.relpath(file, folder)).as_posix() for file in sources_in(str(source))[0]]


# ---- what is passed over
def test_nothing(tmp_path):
    assert passed_over([]) == ""
    with pytest.raises(ValueError, match=r"nothing found in .*: looked for images .*\*\*/\*"):
        sources_in(str(tmp_path))


def test_a_folder_says_what_it_passed_over(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "b.HEIC", "c.heic", "d.xml", "e", ".DS_Store", "below/f.jpg", "g.webm")
    assert found(tmp_path, tmp_path) == ["a.jpg", "g.webm"]
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelname == "WARNING" and "\n" not in message
    assert "2 files to look at; passed over: 2 .heic, 1 without ending, 1 .xml (convert images to JPEG" in message
    assert "; 1 folder (end the source in '/**/*' to look into them)" in message


def test_what_nobody_takes_for_an_image_is_no_warning(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "a.txt", "b.json")
    with caplog.at_level("INFO", "yolov5"):
        sources_in(f"{tmp_path}/*")
    (record,) = caplog.records
    assert record.levelname == "INFO" and "1 file to look at; passed over: 1 .json, 1 .txt" in record.getMessage()
    caplog.clear()
    assert found(touch(tmp_path / "new", "x.png"), tmp_path) == ["new/x.png"] and not caplog.records


def test_a_folder_of_what_cannot_be_read_says_so(tmp_path):
    touch(tmp_path, *(f"{i}.heic" for i in range(3)), *(f"x.{chr(97 + i)}\x1b{chr(97 + i)}" for i in range(12)))
    with pytest.raises(ValueError, match=r"there are 3 \.heic, .*, 5 others \(convert images to JPEG") as caught:
        sources_in(str(tmp_path))
    assert "\x1b" not in str(caught.value) and r"\x1b" in str(caught.value)


# ---- globs
def test_globs_go_down_and_skip_what_is_hidden(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png", ".h/e.jpg", ".h/._e.jpg", "x/.f.jpg", "z[1]/g.jpg")
    assert found(tmp_path / ".h", tmp_path) == [".h/e.jpg"]
    assert found(f"{tmp_path}/**/*.jpg", tmp_path) == ["a.jpg", "x/b.jpg", "x/y/c.jpg", "z[1]/g.jpg"]
    assert found(f"{tmp_path}/x/**", tmp_path) == ["x/b.jpg", "x/y/c.jpg", "x/y/d.png"]
    assert found(f"{tmp_path}/**/y/*", tmp_path) == ["x/y/c.jpg", "x/y/d.png"]
    assert found(f"{tmp_path}/**/.h/e*", tmp_path) == [".h/e.jpg"]
    assert found(f"{tmp_path}/?/*.jpg", tmp_path) == ["x/b.jpg"]
    monkeypatch.chdir(tmp_path)
    assert sources_in("**/*.jpg")[0] == ["a.jpg", *(os.path.join(*parts) for parts in (
        ("x", "b.jpg"), ("x", "y", "c.jpg"), ("z[1]", "g.jpg"),
    ))]  # fmt: skip


def test_links_in_circles_do_not_multiply(tmp_path):
    touch(tmp_path, "x/a.jpg")
    for name in ("one", "two", "three"):
        (tmp_path / "x" / name).symlink_to(tmp_path / "x")
    assert found(f"{tmp_path}/**/*.jpg", tmp_path) == ["x/a.jpg"]
    with pytest.raises(ValueError, match="nothing found"):
        sources_in(f"{tmp_path}/**/*.png")


# ---- lists
def test_lists_that_name_lists_end(tmp_path, caplog):
    touch(tmp_path, "a.jpg")
    (tmp_path / "one.txt").write_text("one.txt\ntwo.txt\na.jpg\nnone.jpg\nnot.jpg\n")
    (tmp_path / "two.txt").write_text("one.txt\n")
    assert found(tmp_path / "one.txt", tmp_path) == ["a.jpg"]
    (record,) = caplog.records
    assert "4 of 5 lines are passed over" in record.getMessage() and "one.txt:1: " in record.getMessage()
    assert record.getMessage().endswith("; ...") and "not.jpg" not in record.getMessage()
    with pytest.raises(ValueError, match="names nothing that can be looked at"):
        sources_in(str(tmp_path / "two.txt"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_as_other_programs_write_them(tmp_path, encoding):
    touch(tmp_path, "x/a b.jpg", "图.png")
    lines = ['"x/a b.jpg"', "'图.png'", "x\\a b.jpg", '".\\x\\a b.jpg"', "", "# words", "rtsp://h/1", "0"]
    (tmp_path / "list.txt").write_bytes("\r\n".join(lines).encode(encoding))
    assert found(tmp_path / "list.txt", tmp_path) == ["x/a b.jpg", "图.png", "x/a b.jpg", "x/a b.jpg"]
    assert sources_in(str(tmp_path / "list.txt"))[1] == ["rtsp://h/1", "0"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_list_that_never_ends_is_not_begun(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="it is a pipe, not a file"):
        sources_in(str(tmp_path / "list.txt"))
