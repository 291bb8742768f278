"""What decoding a JPEG costs: its scans, its segments, its EXIF."""

from __future__ import annotations

import struct

import pytest

from tests.hostile import file_of, greedy_exif, many_scans, plain, scans_of, shapes
from utils.images.decoding_jpeg import JpegFrame, count_jpeg
from utils.images.decoding_limits import DecodingBudget, TooCostly, Unbounded

USUAL = file_of(shapes(64, 48), "JPEG")
FRAME = USUAL.index(b"\xff\xc0")


def counted(data: bytes) -> DecodingBudget:
    budget = DecodingBudget(10**12, 10**12)
    count_jpeg(data, budget)
    return budget


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(100), b"\xff" * 1000])
def test_nothing_is_there(data: bytes) -> None:
    assert count_jpeg(data, DecodingBudget(10**12, 10**12)) is None


def frame(width: int, height: int, *factors: int, same_number: bool = False) -> JpegFrame:
    rows = b"".join(bytes([1 if same_number else i, factor, 0]) for i, factor in enumerate(factors, 1))
    return JpegFrame.read(0xC0, struct.pack(">BHHB", 8, height, width, len(factors)) + rows)


@pytest.mark.parametrize(
    "size, factors, numbers, samples",
    [
        ((8, 8), (0x11,), [1], 64),
        ((9, 8), (0x11,), [1], 128),
        ((16, 16), (0x22, 0x11, 0x11), [1, 2, 3], 6 * 64),  # 4:2:0: four blocks and two
        ((17, 16), (0x22, 0x11, 0x11), None, 12 * 64),
        ((17, 16), (0x22, 0x11, 0x11), [1], 6 * 64),  # alone it ends with its last block
        ((17, 16), (0x22, 0x11, 0x11), [2], 2 * 64),
        ((100, 50), (0x11, 0x11, 0x11, 0x11), [1, 2, 3, 4], 4 * 13 * 7 * 64),
        ((100, 50), (0x11,), [9], 0),  # no such component
    ],
)
def test_samples_of_a_scan(size: tuple[int, int], factors: tuple[int, ...], numbers: list, samples: int) -> None:
    assert frame(*size, *factors).samples(numbers) == samples
    same = frame(16, 16, 0x22, 0x11, 0x11, same_number=True)  # components of one number are taken in turn
    assert same.samples([1, 1, 1]) == same.samples() == 6 * 64 and same.samples([1]) == 4 * 64


ONE = b"\x08\0\x08\0\x08\x01\x01"  # 8 x 8 pixels, one component, up to its factors


@pytest.mark.parametrize("part", [b"", bytes(6), ONE, ONE + b"\x15\0", ONE + b"\x01\0", ONE[:5] + b"\x03\x01\x11\0"])
def test_frames_that_cannot_be(part: bytes) -> None:
    with pytest.raises(ValueError, match="its frame header"):
        JpegFrame.read(0xC0, part)


def test_each_scan_costs_a_pass() -> None:
    """Two scans of the same samples more cost twice 2 units a sample, and what a scan and its segments cost."""
    work = [counted(many_scans(800, count)).work for count in (10, 11, 12, 20)]
    step = work[1] - work[0]
    assert work[2] - work[1] == step and work[3] - work[0] == 10 * step
    assert 2 * 800 * 800 < step < 2.1 * 800 * 800


def test_scans_are_counted_wherever_they_are_read() -> None:
    assert counted(many_scans(16, 100)).size == (16, 16)
    head, scans = scans_of(file_of(plain(16, 16), "JPEG", progressive=True))
    hidden = head + b"".join(scans) + (b"\xff\xd0\xff\x01" + scans[5]) * 100 + b"\xff\xd9"
    for data in (many_scans(16, 101), hidden):  # restart markers hide none
        with pytest.raises(TooCostly, match="more than 100 scans"):
            counted(data)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300  # after the end, and inside of a segment
    inside = USUAL[:2] + b"\xff\xe5" + struct.pack(">H", len(scan) + 2) + scan + USUAL[2:] + scan
    assert counted(inside).work - counted(USUAL).work < 10_000
    data = file_of(shapes(640, 480), "JPEG", quality=100, restart_marker_rows=1)  # and stuffed bytes: no segments
    assert data.count(b"\xff\xd3") > 3 and data.count(b"\xff\x00") > 5 and counted(data).parts < 15


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_codings_of_unknown_cost(marker: int) -> None:
    with pytest.raises(Unbounded, match="arithmetic-coded or lossless"):
        counted(USUAL.replace(b"\xff\xc0", bytes([0xFF, marker]), 1))


@pytest.mark.parametrize(
    "data, reason",
    [
        (USUAL[:2] + USUAL, "begins twice"),
        (USUAL[:FRAME] + USUAL[FRAME : FRAME + 19] + USUAL[FRAME:], "two frames"),
        (USUAL[:FRAME] + USUAL[FRAME + 19 :], "before its size"),
    ],
)
def test_orders_that_cannot_be(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        counted(data)


def test_directories_of_several_images_in_one_are_counted() -> None:
    part = b"MPF\0" + greedy_exif()
    data = USUAL[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + USUAL[2:]
    with pytest.raises(TooCostly, match="tag"):
        count_jpeg(data, DecodingBudget(10**9, 10**9))
