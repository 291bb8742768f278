"""Archives: what is in them comes out, and nothing they do leaves the folder or fills the disk or the memory."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tests.packed import tarred, zipped
from utils.prepare import archives
from utils.prepare.archives import ArchiveLimits, extract

both = pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])


def packed(path: Path, files: dict[str, bytes]) -> Path:
    return (zipped if path.suffix == ".zip" else tarred)(path, files)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def refused(archive: Path, match: str, *given, **named) -> None:
    """One line says why, with the archive's name, and no file appears."""
    before = files_in(archive.parent)
    with pytest.raises(ValueError, match=f"{archive.name}: cannot be unpacked safely: .*{match}") as caught:
        extract(archive, archive.parent / "out", *given, **named)
    assert str(caught.value).isprintable() and files_in(archive.parent) == before


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_archives_are_unpacked(tmp_path: Path, suffix: str) -> None:
    files = {"a.txt": b"one", "d/e/b.txt": b"", "./c ä.txt": b"three", "图 1.jpg": b"4", "a\xa0b.jpg": b"5"}
    assert not extract(packed(tmp_path / f"none{suffix}", {}), tmp_path / "none").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a\xa0b.jpg").symlink_to(tmp_path / "out/none")
    (tmp_path / "out/a.txt.unpacking").write_text("mine")
    out = extract(path := packed(tmp_path / f"x{suffix}", files), tmp_path / "out")
    wanted = {"a.txt", "d/e/b.txt", "c ä.txt", "图 1.jpg", "a.txt.unpacking"}
    assert files_in(out) == wanted, "a link that leads nowhere is in the way"
    assert (out / "a.txt").stat().st_mode & 0o777 == 0o644 and (out / "a.txt.unpacking").read_text() == "mine"
    (out / "a.txt").write_text("mine")
    extract(path, out)
    assert (out / "a.txt").read_text() == "mine", "files that are there stay"


@both
@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:/out.txt"])
def test_nothing_leaves_the_folder(tmp_path: Path, name: str, suffix: str) -> None:
    refused(packed(tmp_path / f"x{suffix}", {name: b"harm"}), "leads out")


def test_links_are_refused(tmp_path: Path) -> None:
    refused(tarred(tmp_path / "a.tar", {}, link=("l", "/etc")), "'l' is a link")
    info = zipfile.ZipInfo("l")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    refused(tmp_path / "a.zip", "'l' is a link")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/there").symlink_to(tmp_path)
    refused(zipped(tmp_path / "b.zip", {"there/x": b"1"}), "leads out")


@both
def test_bombs_are_stopped(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNRATED", 1000)
    path = packed(tmp_path / f"x{suffix}", {"a": bytes(3_000_000)})
    assert path.stat().st_size < 10_000
    refused(path, "far more than its size")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    for suffix in (".zip", ".tar", ".tar.gz"):
        path = packed(tmp_path / f"x{suffix}", {"a": os.urandom(20_000)})
        path.write_bytes(path.read_bytes()[:9000])
        refused(path, "")
    with pytest.raises(ValueError, match="not an archive"):
        extract(tmp_path / "a.rar", tmp_path)


@both
@pytest.mark.parametrize("names", [("a", "a/b"), ("a", "a/"), ("x" * 300,), ("d/" * 2000 + "a",)])
def test_names_that_cannot_be(tmp_path: Path, names: tuple[str, ...], suffix: str) -> None:
    if names == ("a", "a/") and suffix != ".zip":
        pytest.skip("a tar does not tell a folder by its name")
    with pytest.raises(ValueError, match=f"x{suffix}: cannot be unpacked safely") as caught:
        extract(packed(tmp_path / f"x{suffix}", dict.fromkeys(names, b"1")), tmp_path / "out")
    assert "\n" not in str(caught.value)


@both
@pytest.mark.parametrize("name", ["a\x1b[31mb.jpg", "a/\x1b]0;b\x07", "a\nb", "a\x9bb"])
def test_control_characters_reach_no_path(tmp_path: Path, suffix: str, name: str) -> None:
    refused(packed(tmp_path / f"x{suffix}", {name: b"1"}), "has control characters")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("offset, value", [(6, 1), (8, 99)], ids=["encrypted", "unknown method"])
def test_zips_that_need_more_than_we_have(tmp_path: Path, offset: int, value: int) -> None:
    path = zipped(tmp_path / "x.zip", {"a": b"1"})
    whole = bytearray(path.read_bytes())
    struct.pack_into("<H", whole, offset, value)
    struct.pack_into("<H", whole, whole.index(b"PK\x01\x02") + offset + 2, value)
    path.write_bytes(whole)
    refused(path, "")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_of_compressing_that_unpack_without_a_measure(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a", bytes(1 << 20))
    refused(tmp_path / "x.zip", "another way than by deflate")


@pytest.mark.parametrize("kind", [b"L", b"x", b"g"])
def test_a_tar_cannot_ask_for_all_memory(tmp_path: Path, kind: bytes) -> None:
    """A name of 400 MB in an archive of 400 KB: long names are read at once."""
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 400 << 20
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        file.write(info.tobuf() + bytes(20 << 20))
    tracemalloc.start()
    refused(tmp_path / "x.tar.gz", "header of 419,430,400 bytes")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_a_tar_cannot_lead_back_nor_have_holes(tmp_path: Path) -> None:
    """A negative size once made Python read the same header for ever."""
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:136] = b"\xff" * 8 + struct.pack(">i", -512)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) * 3)
    refused(tmp_path / "x.tar", "")
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(tmp_path / "x.tar", "")


def test_a_tar_may_be_compressed_whatever_its_name(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar.gz", {"a": b"1"}).rename(tmp_path / "x.tar")
    assert (extract(path, tmp_path / "out") / "a").read_bytes() == b"1"
    (tmp_path / "y.tar").write_bytes(bz2.compress(b"1"))
    refused(tmp_path / "y.tar", "")


@both
def test_limits(tmp_path: Path, suffix: str) -> None:
    path = packed(tmp_path / f"x{suffix}", {f"d/{n}": b"1234" for n in range(5)})
    assert len(files_in(extract(path, tmp_path / "whole", ArchiveLimits(1 << 20, 5)))) == 5
    with pytest.raises(ValueError, match="more than 4 files and folders"):
        extract(path, tmp_path / "few", ArchiveLimits(1 << 20, 4))
    with pytest.raises(ValueError, match="far more than its size"):
        extract(path, tmp_path / "small", ArchiveLimits(19, 5))


def test_a_directory_of_millions_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python builds an object for each entry before anything can be counted."""
    path = zipped(tmp_path / "x.zip", {f"{n:0200}": b"" for n in range(50)})
    monkeypatch.setattr(archives, "MIN_DIRECTORY", 10_000)
    extract(path, tmp_path / "whole", ArchiveLimits(1, 50))
    refused(path, "its directory of .* bytes names too many files", ArchiveLimits(1, 25))


@both
def test_without_the_folder_on_top(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    files = {"coco/a": b"1", "./coco/d/b": b"2", ".bashrc": b"3", "cocoa/c": b"4"}
    out = extract(packed(tmp_path / f"x{suffix}", files), tmp_path / "out", top="coco")
    assert files_in(out) == {"a", "d/b"} and "2 files that are not in coco/ were left out" in caplog.text
    refused(zipped(tmp_path / "y.zip", {"coco/../../x": b"1"}), "leads out", top="coco")
