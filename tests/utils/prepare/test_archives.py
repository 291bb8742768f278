"""Archives: what is in them comes out, and nothing they do leaves the folder or fills the disk or the memory."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packed import tarred, zipped
from utils.prepare import archives
from utils.prepare.archives import ArchiveLimits, extract


def packed(path: Path, files: dict[str, bytes]) -> Path:
    return (zipped if path.suffix == ".zip" else tarred)(path, files)


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz"])
def test_archives_are_unpacked(tmp_path: Path, suffix: str) -> None:
    files = {"a.txt": b"one", "d/e/b.txt": b"", "./c ä.txt": b"three", "图 1.jpg": b"4", "a\xa0b.jpg": b"5"}
    assert not extract(packed(tmp_path / f"none{suffix}", {}), tmp_path / "none").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a\xa0b.jpg").symlink_to(tmp_path / "out/none")
    out = extract(path := packed(tmp_path / f"x{suffix}", files), tmp_path / "out")
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {"a.txt", "d/e/b.txt", "c ä.txt", "图 1.jpg"}, "a link that leads nowhere is in the way"
    (out / "a.txt").write_text("mine")
    extract(path, out)
    assert (out / "a.txt").read_text() == "mine", "files that are there stay"


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:/out.txt"])
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_nothing_leaves_the_folder(tmp_path: Path, name: str, suffix: str) -> None:
    path = packed(tmp_path / f"x{suffix}", {name: b"harm"})
    with pytest.raises(ValueError, match="unpacked safely.*leads out"):
        extract(path, tmp_path / "out")
    assert not list(tmp_path.rglob("out.txt"))


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'l' is a link"):
        extract(tarred(tmp_path / "a.tar", {"a": b"1"}, link=("l", "/etc")), tmp_path / "out")
    info = zipfile.ZipInfo("l")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(ValueError, match="'l' is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "out/there").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        extract(zipped(tmp_path / "b.zip", {"there/x": b"1"}), tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_bombs_are_stopped(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_UNRATED", 1000)
    path = packed(tmp_path / f"x{suffix}", {"a": bytes(3_000_000)})
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="far more than its size"):
        extract(path, tmp_path / "out")
    assert not any(file.is_file() for file in (tmp_path / "out").rglob("*"))


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    for suffix in (".zip", ".tar", ".tar.gz"):
        path = packed(tmp_path / f"x{suffix}", {"a": os.urandom(20_000)})
        path.write_bytes(path.read_bytes()[:9000])
        with pytest.raises(ValueError, match=f"x{suffix}: cannot be unpacked"):
            extract(path, tmp_path / "out")
    with pytest.raises(ValueError, match="not an archive"):
        extract(tmp_path / "a.rar", tmp_path)


def test_a_file_that_looks_half_unpacked_is_not_ours_to_remove(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.unpacking").write_text("mine")
    extract(zipped(tmp_path / "x.zip", {"a": b"1"}), tmp_path / "out")
    assert (tmp_path / "out/a.unpacking").read_text() == "mine" and (tmp_path / "out/a").read_bytes() == b"1"
    assert (tmp_path / "out/a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("names", [("a", "a/b"), ("a", "a/"), ("x" * 300,), ("d/" * 2000 + "a",)])
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_names_that_cannot_be(tmp_path: Path, names: tuple[str, ...], suffix: str) -> None:
    path = packed(tmp_path / f"x{suffix}", dict.fromkeys(names, b"1"))
    if names == ("a", "a/") and suffix != ".zip":
        pytest.skip("a tar does not tell a folder by its name")
    with pytest.raises(ValueError, match=f"x{suffix}: cannot be unpacked safely") as caught:
        extract(path, tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offset, value", [(6, 1), (8, 99)], ids=["encrypted", "unknown method"])
def test_zips_that_need_more_than_we_have(tmp_path: Path, offset: int, value: int) -> None:
    path = zipped(tmp_path / "x.zip", {"a": b"1"})
    whole = bytearray(path.read_bytes())
    central = whole.index(b"PK\x01\x02")
    struct.pack_into("<H", whole, offset, value)
    struct.pack_into("<H", whole, central + offset + 2, value)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="x.zip: cannot be unpacked safely"):
        extract(path, tmp_path / "out")


@pytest.mark.parametrize("kind", [b"L", b"x", b"g"])
def test_a_tar_cannot_ask_for_all_memory(tmp_path: Path, kind: bytes) -> None:
    """A name of 400 MB in an archive of 400 KB: long names are read at once."""
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, 400 << 20
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        file.write(info.tobuf())
        for _ in range(20):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="header of 419,430,400 bytes"):
        extract(tmp_path / "x.tar.gz", tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 32 << 20
    tracemalloc.stop()


def test_a_tar_cannot_lead_back(tmp_path: Path) -> None:
    """A negative size once made Python read the same header for ever."""
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[124:136] = b"\xff" * 8 + struct.pack(">i", -512)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "x.tar").write_bytes(bytes(header) * 3)
    with pytest.raises(ValueError, match="x.tar: cannot be unpacked safely"):
        extract(tmp_path / "x.tar", tmp_path / "out")
    assert not list(tmp_path.rglob("a"))


def test_holes_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a")
    info.type = tarfile.GNUTYPE_SPARSE
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match="cannot be unpacked safely"):
        extract(tmp_path / "x.tar", tmp_path / "out")


def test_a_tar_may_be_compressed_whatever_its_name(tmp_path: Path) -> None:
    path = tarred(tmp_path / "x.tar.gz", {"a": b"1"}).rename(tmp_path / "x.tar")
    assert (extract(path, tmp_path / "out") / "a").read_bytes() == b"1"
    (tmp_path / "y.tar").write_bytes(bz2.compress(b"1"))
    with pytest.raises(ValueError, match="y.tar: cannot be unpacked"):
        extract(tmp_path / "y.tar", tmp_path / "out")


# ---- limits
@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_limits(tmp_path: Path, suffix: str) -> None:
    path = packed(tmp_path / f"x{suffix}", {f"d/{n}": b"1234" for n in range(5)})
    extract(path, tmp_path / "out", ArchiveLimits(1 << 20, 5))
    with pytest.raises(ValueError, match="more than 4 files and folders"):
        extract(path, tmp_path / "few", ArchiveLimits(1 << 20, 4))
    with pytest.raises(ValueError, match="far more than its size"):
        extract(path, tmp_path / "small", ArchiveLimits(19, 5))
    assert len(list((tmp_path / "out/d").iterdir())) == 5


def test_a_directory_of_millions_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python builds an object for each entry before anything can be counted."""
    path = zipped(tmp_path / "x.zip", {f"{n:0200}": b"" for n in range(50)})
    monkeypatch.setattr(archives, "MIN_DIRECTORY", 10_000)
    extract(path, tmp_path / "out", ArchiveLimits(1, 50))
    with pytest.raises(ValueError, match="its directory of .* bytes names too many files"):
        extract(path, tmp_path / "few", ArchiveLimits(1, 25))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_ways_of_compressing_that_unpack_without_a_measure(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("a", bytes(1 << 20))
    with pytest.raises(ValueError, match="another way than by deflate"):
        extract(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_without_the_folder_on_top(tmp_path: Path, suffix: str, caplog) -> None:
    files = {"coco/a": b"1", "./coco/d/b": b"2", ".bashrc": b"3", "cocoa/c": b"4"}
    path = packed(tmp_path / f"x{suffix}", files)
    out = extract(path, tmp_path / "out", top="coco")
    assert sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()) == ["a", "d/b"]
    assert "2 files that are not in coco/ were left out" in caplog.text
    with pytest.raises(ValueError, match="leads out"):
        extract(zipped(tmp_path / "y.zip", {"coco/../../x": b"1"}), tmp_path / "out", top="coco")


@pytest.mark.parametrize("name", ["a\x1b[31mb.jpg", "a/\x1b]0;b\x07", "a\nb", "a\x9bb"])
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_control_characters_reach_no_path(tmp_path: Path, pack: Callable[..., Path], name: str) -> None:
    archive = pack(tmp_path / ("one.zip" if pack is zipped else "one.tar"), {name: b"1"})
    with pytest.raises(ValueError, match="has control characters") as caught:
        extract(archive, tmp_path / "there")
    assert str(caught.value).isprintable() and not (tmp_path / "there").exists()
