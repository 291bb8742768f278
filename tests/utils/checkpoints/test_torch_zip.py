"""Archives of PyTorch: sound ones are read, and none that two readers could take for two."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from utils.checkpoints import torch_zip
from utils.checkpoints.torch_zip import read_record, read_records

END = 22  # bytes of the end record


def zip_of(parts: dict[str, bytes]) -> bytes:
    """An archive as Python writes it: no 64-bit records, sizes before the content."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return content.getvalue()


def split(content: bytes) -> tuple[bytes, bytes, int]:
    """What is before the directory, the directory, and its entries; of an archive of Python's."""
    count, length, start = struct.unpack("<HII", content[-END + 10 : -2])
    return content[:start], content[start : start + length], count


def joined(before: bytes, directory: bytes, count: int, start: int | None = None) -> bytes:
    place = len(before) if start is None else start
    return before + directory + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, len(directory), place, 0)


def changed(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def refused(tmp_path: Path, content: bytes, match: str = "") -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=match):  # PyTorch, which raises RuntimeError, has not seen it
        read_records(tmp_path / "a.pt")


SMALL = {"a/data.pkl": b"\x80\x02}.", "a/version": b"3\n"}


def test_an_empty_file_is_none(tmp_path: Path) -> None:
    refused(tmp_path, b"", "cut off")
    (tmp_path / "a.pt").write_bytes(joined(b"", b"", 0))
    with pytest.raises(RuntimeError, match="does not contain any files"):  # PyTorch's own words
        read_records(tmp_path / "a.pt")


def test_what_pytorch_and_python_write(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0), "b": torch.zeros(0), "c": torch.ones(3, dtype=torch.int8)}
    torch.save(tensors, tmp_path / "ä b.pt")
    (tmp_path / "a.pt").write_bytes(zip_of(SMALL))
    for file in (tmp_path / "ä b.pt", tmp_path / "a.pt"):
        with zipfile.ZipFile(file) as archive:
            found = {record.name: read_record(file, record) for record in read_records(file)}
            assert list(found.items()) == [(name, archive.read(name)) for name in archive.namelist()]


def test_64_bit_fields() -> None:
    """As PyTorch writes them for more than 4 GiB."""
    extra = struct.pack("<2H2Q", 1, 16, 5, 5)
    assert torch_zip._long_numbers(extra, (0xFFFFFFFF, 0xFFFFFFFF, 7)) == (5, 5, 7)
    for bad in (extra + b"\0" * 4, extra[:12], struct.pack("<2H2Q", 2, 16, 5, 5)):
        with pytest.raises(ValueError, match="fields that PyTorch does not write"):
            torch_zip._long_numbers(bad, (0xFFFFFFFF, 0xFFFFFFFF, 7))
    with pytest.raises(ValueError, match="fields"):
        torch_zip._long_numbers(extra, (5, 5, 7))


def test_headers_of_more_than_4_gib() -> None:
    """No sizes before the content, and 64 bits of each behind it."""
    head = struct.pack("<4s5H3I2H", b"PK\3\4", 0, 0, 0, 0, 0, 7, 0xFFFFFFFF, 0xFFFFFFFF, 1, 3) + b"x"
    with pytest.raises(ValueError, match="own header"):
        torch_zip._check_header(io.BytesIO(head), 0, b"x", (0, 7, 5))
    assert torch_zip._check_header(io.BytesIO(head), 0, b"x", (0, 7, 0xFFFFFFFF)) == 3
    for size in (5, 0xFFFFFFFF):
        behind = struct.pack("<4sI2Q", b"PK\7\x08", 7, size, size) + b"PK\1\2"
        assert torch_zip._after(io.BytesIO(b"12" + behind), 2, 7) == 2 + 24


def test_two_directories(tmp_path: Path) -> None:
    """Python's zipfile looks for the directory before the end record, PyTorch where the end record says."""
    evil, good = zip_of({"a/data.pkl": b"evil", "a/version": b"3\n"}), zip_of(SMALL)
    first, directory, count = split(evil)
    second, other, _ = split(good)
    shifted = bytearray(other)
    place = 0
    while place < len(shifted):
        lengths = struct.unpack("<3H", shifted[place + 28 : place + 34])
        (start,) = struct.unpack("<I", shifted[place + 42 : place + 46])
        shifted[place + 42 : place + 46] = struct.pack("<I", start + len(first) + len(directory))
        place += 46 + sum(lengths)
    refused(tmp_path, joined(first + directory + second, bytes(shifted), count, len(first)), "end record begins")


HEADER, ENTRY = 30, 46  # bytes before a name
ROOM, OWN, NEXT, END_RECORD = "overlap, or leave room", "own header", "follow each other", "end record begins"


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda b, d, n: joined(b"#!" + b, d, n, len(b)), END_RECORD),
        (lambda b, d, n: joined(b"#!" + b, d, n), NEXT),
        (lambda b, d, n: joined(b + b"room", d, n), ROOM),
        (lambda b, d, n: joined(b, d, n) + b"more", "cut off"),
        (lambda b, d, n: joined(b, d, n)[:-2] + b"\4\0note", "cut off"),
        (lambda b, d, n: joined(b, d, n)[:-2] + b"\1\0", END_RECORD),
        (lambda b, d, n: joined(b, d, n - 1), ROOM),
        (lambda b, d, n: joined(b, d, n + 1), NEXT),
        (lambda b, d, n: joined(b, d + d, 2 * n), ROOM),
        (lambda b, d, n: joined(b, d + b"room", n), ROOM),
        (lambda b, d, n: joined(b, d[:-20], n), NEXT),
        (lambda b, d, n: joined(b, changed(d, len(d) - 55 + 32, b"\4\0"), n), ROOM),  # comment
        (lambda b, d, n: bytes(12) + b"PK\5\6\0", "cut off"),
        (lambda b, d, n: joined(b, d, n)[:-END] + b"PK\6\7" + bytes(16) + joined(b, d, n)[-END:], NEXT),
    ],
)
def test_every_byte_is_accounted_for(tmp_path: Path, change, match: str) -> None:
    refused(tmp_path, change(*split(zip_of(SMALL))), match)


IN_PARTS = [(18, bytes(8), OWN), (14, bytes(4), OWN), (HEADER, b"b", OWN), (8, b"\x08", OWN), (18, b"\1", OWN)]
IN_PARTS += [(0, b"PK\5\6", NEXT), (40, b"!", "does not match its checksum")]
IN_DIRECTORY = [(8, b"\1\0", ROOM), (34, b"\1\0", ROOM), (42, b"\1", ROOM)]  # encrypted, on another disk, elsewhere
IN_DIRECTORY += [(10, b"\x08\0", "compressed"), (20, b"\2\0", "compressed"), (20, b"\2\0\0\0\2\0\0\0", OWN)]
IN_DIRECTORY += [(16, b"\1", OWN), (ENTRY, b"b", OWN)]  # checksum, name


def test_every_field_is_compared(tmp_path: Path) -> None:
    before, directory, count = split(zip_of(SMALL))
    for place, new, match in IN_PARTS:
        refused(tmp_path, joined(changed(before, place, new), directory, count), match)
    for place, new, match in IN_DIRECTORY:
        refused(tmp_path, joined(before, changed(directory, place, new), count), match)


@pytest.mark.parametrize("field", ["count", "length", "start"])
def test_two_end_records_that_differ(tmp_path: Path, field: str) -> None:
    torch.save({}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    place = len(content) - END + {"count": 8, "length": 12, "start": 16}[field]
    refused(tmp_path, changed(content, place, bytes([content[place] ^ 1])), "two end records")
    long = len(content) - END - 20 - 56 + {"count": 24, "length": 40, "start": 48}[field]
    refused(tmp_path, changed(content, long, bytes([content[long] ^ 1])), "two end records")
    for locator in (4, 8, 16):
        refused(tmp_path, changed(content, len(content) - END - 20 + locator, b"\7"), "two end records")
    for record in (4, 16, 20):
        refused(tmp_path, changed(content, len(content) - END - 20 - 56 + record, b"\7"), "two end records")


@pytest.mark.parametrize("names", [("a/x", "a/x"), ("a/x", "A/X"), ("a/x", "b/x"), ("a/x", "a/X")])
def test_names_that_could_be_one_another(tmp_path: Path, names: tuple[str, str]) -> None:
    first, second = (split(zip_of({name: b"1"})) for name in names)
    directory = first[1] + changed(second[1], 42, struct.pack("<I", len(first[0])))
    refused(tmp_path, joined(first[0] + second[0], directory, 2), "same name|several folders")


@pytest.mark.parametrize("name", ["x", "a/", "a\\b/x", "a/x\x01", "a/\u202ex", "a/dat\0x"])
def test_names_that_readers_change_or_cut_off(tmp_path: Path, name: str) -> None:
    content = zip_of({name.replace("\0", "a"): b"1"}).replace(b"a/datax", b"a/dat\0x")
    refused(tmp_path, content, "name that PyTorch does not write")


def test_a_checksum_behind_the_content(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    refused(tmp_path, content.replace(b"PK\7\x08", b"PK\7\x09", 1), "follow each other")
    place = content.index(b"PK\7\x08") + 4
    refused(tmp_path, changed(content, place, bytes([content[place] ^ 1])), "does not match its checksum")


def test_no_more_parts_than_checkpoints_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_zip, "MAX_RECORDS", 2)
    (tmp_path / "b.pt").write_bytes(zip_of(SMALL))
    assert len(read_records(tmp_path / "b.pt")) == 2
    monkeypatch.setattr(torch_zip, "MAX_RECORDS", 1)
    refused(tmp_path, zip_of(SMALL), "an archive of 2 parts")
    monkeypatch.undo()
    monkeypatch.setattr(torch_zip, "MAX_DIRECTORY", 10)
    refused(tmp_path, zip_of(SMALL), "an archive of 2 parts")


def test_pytorch_has_the_last_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pt").write_bytes(zip_of(SMALL))

    reader = SimpleNamespace(get_all_records=lambda: ["data.pkl"])
    monkeypatch.setattr(torch._C, "PyTorchFileReader", lambda path: reader)
    with pytest.raises(ValueError, match="read in two ways"):
        read_records(tmp_path / "a.pt")
