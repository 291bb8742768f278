from __future__ import annotations

import struct

import pytest

from tests.hostile import file_of, greedy_exif, many_scans, plain, scans_of, shapes
from utils.images.decoding_jpeg import JpegFrame, count_jpeg
from utils.images.decoding_limits import CostTally, TooCostly, Unbounded


def roomy() -> CostTally:
    return CostTally(10**12, 10**12)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", bytes(100), b"\xff" * 1000])
def test_nothing_is_there(data: bytes) -> None:
    assert count_jpeg(data, roomy()) is None


def frame(width: int, height: int, *factors: int) -> JpegFrame:
    rows = b"".join(bytes([i, factor, 0]) for i, factor in enumerate(factors, 1))
    return JpegFrame.read(struct.pack(">BHHB", 8, height, width, len(factors)) + rows)


@pytest.mark.parametrize(
    "size, factors, numbers, samples",
    [
        ((8, 8), (0x11,), [1], 64),
        ((9, 8), (0x11,), [1], 128),
        ((16, 16), (0x22, 0x11, 0x11), [1, 2, 3], 6 * 64),  # 4:2:0: four blocks and two
        ((17, 16), (0x22, 0x11, 0x11), [1, 2, 3], 12 * 64),
        ((17, 16), (0x22, 0x11, 0x11), [1], 6 * 64),  # alone it ends with its last block
        ((17, 16), (0x22, 0x11, 0x11), [2], 2 * 64),
        ((100, 50), (0x11, 0x11, 0x11, 0x11), [1, 2, 3, 4], 4 * 13 * 7 * 64),
        ((100, 50), (0x11,), [9], 0),  # no such component
    ],
)
def test_samples_of_a_scan(size: tuple[int, int], factors: tuple[int, ...], numbers: list[int], samples: int) -> None:
    assert frame(*size, *factors).samples(numbers) == samples


ONE = b"\x08\0\x08\0\x08\x01\x01"  # 8 x 8 pixels, one component, up to its factors


def test_components_of_one_number_are_taken_in_turn() -> None:
    rows = bytes([1, 0x22, 0, 1, 0x11, 0, 1, 0x11, 0])
    found = JpegFrame.read(struct.pack(">BHHB", 8, 16, 16, 3) + rows)
    assert found.samples([1, 1, 1]) == found.samples() == 6 * 64 and found.samples([1]) == 4 * 64


@pytest.mark.parametrize("part", [b"", bytes(6), ONE, ONE + b"\x15\0", ONE + b"\x01\0", ONE[:5] + b"\x03\x01\x11\0"])
def test_frames_that_cannot_be(part: bytes) -> None:
    with pytest.raises(ValueError):
        JpegFrame.read(part)


def test_sizes_are_what_pillow_wrote() -> None:
    tally = roomy()
    found = count_jpeg(file_of(shapes(65, 49), "JPEG"), tally)
    assert found is not None and (found.width, found.height) == tally.size == (65, 49)


def test_each_scan_costs_a_pass() -> None:
    """Two scans of the same samples more cost twice 2 units a sample, and what a scan and its segments cost."""
    work = []
    for count in (10, 11, 12, 20):
        tally = roomy()
        count_jpeg(many_scans(800, count), tally)
        work.append(tally.work)
    step = work[1] - work[0]
    assert work[2] - work[1] == step and work[3] - work[0] == 10 * step
    assert 2 * 800 * 800 < step < 2.1 * 800 * 800


@pytest.mark.parametrize("count, taken", [(100, True), (101, False)])
def test_scans_are_counted(count: int, taken: bool) -> None:
    if taken:
        count_jpeg(many_scans(16, count), roomy())
    else:
        with pytest.raises(TooCostly, match="more than 100 scans"):
            count_jpeg(many_scans(16, count), roomy())


def test_scans_after_the_end_and_inside_of_segments_do_not_count() -> None:
    usual = file_of(shapes(64, 48), "JPEG")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 300
    tally, other = roomy(), roomy()
    count_jpeg(usual, tally)
    count_jpeg(usual[:2] + b"\xff\xe5" + struct.pack(">H", len(scan) + 2) + scan + usual[2:] + scan, other)
    assert other.work - tally.work < 10_000


def test_restart_markers_and_stuffed_bytes_are_no_segments() -> None:
    usual = file_of(shapes(640, 480), "JPEG", quality=100, restart_marker_rows=1)
    assert usual.count(b"\xff\xd3") > 3 and usual.count(b"\xff\x00") > 5
    tally = roomy()
    count_jpeg(usual, tally)
    assert tally.parts < 15


def test_restart_markers_hide_no_scan() -> None:
    head, scans = scans_of(file_of(plain(16, 16), "JPEG", progressive=True))
    with pytest.raises(TooCostly, match="scans"):
        count_jpeg(head + b"".join(scans) + (b"\xff\xd0\xff\x01" + scans[5]) * 100 + b"\xff\xd9", roomy())


@pytest.mark.parametrize("marker", [0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF])
def test_codings_of_unknown_cost(marker: int) -> None:
    with pytest.raises(Unbounded, match="arithmetic-coded or lossless"):
        count_jpeg(file_of(shapes(64, 48), "JPEG").replace(b"\xff\xc0", bytes([0xFF, marker]), 1), roomy())


def test_a_second_beginning() -> None:
    usual = file_of(shapes(64, 48), "JPEG")
    with pytest.raises(ValueError, match="begins twice"):
        count_jpeg(usual[:2] + usual, roomy())
    place = usual.index(b"\xff\xc0")
    with pytest.raises(ValueError, match="two frames"):
        count_jpeg(usual[:place] + usual[place : place + 19] + usual[place:], roomy())
    with pytest.raises(ValueError, match="before its size"):
        count_jpeg(usual[:place] + usual[place + 19 :], roomy())


def test_directories_of_several_images_in_one_are_counted() -> None:
    part = b"MPF\0" + greedy_exif()
    usual = file_of(shapes(64, 48), "JPEG")
    with pytest.raises(TooCostly, match="tag"):
        count_jpeg(
            usual[:2] + b"\xff\xe2" + struct.pack(">H", len(part) + 2) + part + usual[2:], CostTally(10**9, 10**9)
        )
