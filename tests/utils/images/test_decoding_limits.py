from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.hostile import greedy_exif, numbers, tags, tiff
from utils.images.decoding_limits import MOST_PARTS, CostTally, TagReader, TooCostly, count_exif


def roomy() -> CostTally:
    return CostTally(10**9, 10**9)


def test_nothing_is_free() -> None:
    tally = roomy()
    count_exif(b"", tally)
    assert (tally.work, tally.memory, tally.parts, tally.size) == (0, 0, 0, (0, 0))


def test_a_tally_says_what_was_too_much() -> None:
    tally = CostTally(100, 50)
    tally.spend(100, "its size")
    tally.hold(50, "its size")
    with pytest.raises(TooCostly, match="its colour"):
        tally.spend(1, "its colour")
    with pytest.raises(TooCostly, match="its weight"):
        tally.hold(1, "its weight")


def test_what_is_conceded_is_held_and_refuses_nothing() -> None:
    tally = CostTally(100, 50)
    tally.concede(1000)
    tally.hold(50, "its size")
    assert tally.memory == 1050
    with pytest.raises(TooCostly):
        tally.hold(1, "its size")


def test_parts_are_counted_even_where_they_cost_nothing() -> None:
    tally = roomy()
    for _ in range(MOST_PARTS):
        tally.part(0, "crumbs")
    with pytest.raises(TooCostly, match="more than 200,000 crumbs"):
        tally.part(0, "crumbs")


def test_a_size_is_judged_by_whoever_asks() -> None:
    seen: list[tuple[int, int]] = []
    tally = CostTally(1, 1, lambda *size: seen.append(size))
    tally.image(3, 4)
    assert seen == [(3, 4)] and tally.size == (3, 4)


@pytest.mark.parametrize("order, big", [("<", False), (">", False), ("<", True), (">", True)])
def test_tags_of_both_orders_and_widths(order: str, big: bool) -> None:
    """A number that stands in the tag itself, and three that lie elsewhere."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        data = mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, 2)
        data += struct.pack(f"{order}HHQHHI", 256, 3, 1, 77, 0, 0) + struct.pack(f"{order}HHQQ", 273, 16, 3, 64)
        data += struct.pack(f"{order}QQQ", 5, 6, 1 << 40)
    else:
        data = mark + struct.pack(f"{order}HIH", 42, 8, 2)
        data += struct.pack(f"{order}HHIHH", 256, 3, 1, 77, 0) + struct.pack(f"{order}HHII", 273, 4, 3, 34)
        data += struct.pack(f"{order}III", 5, 6, 7)
    reader = TagReader(data, roomy())
    found = reader.tags(reader.first)
    assert reader.big == big and set(found) == {256, 273}
    assert reader.numbers(found, 256) == (77,) and reader.number(found, 256, 0) == 77
    assert reader.numbers(found, 273) == ((5, 6, 1 << 40) if big else (5, 6, 7))
    assert reader.numbers(found, 999) == () and reader.number(found, 999, 8) == 8


@pytest.mark.parametrize("data", [b"", b"II", b"XX*\0\x08\0\0\0", b"II\x07\0\x08\0\0\0", b"II*\0\xff\0\0\0"])
def test_what_is_no_directory(data: bytes) -> None:
    with pytest.raises(ValueError):
        reader = TagReader(data, roomy())
        reader.tags(reader.first)


def test_words_are_no_numbers() -> None:
    reader = TagReader(tiff((256, 2, 4, b"abc\0")), roomy())
    with pytest.raises(ValueError, match="tag 256 holds no whole numbers"):
        reader.numbers(reader.tags(8), 256)


def test_what_is_there_twice_is_known() -> None:
    reader = TagReader(tiff((256, 3, 1, 5), (256, 3, 1, 6)), roomy())
    reader.tags(8)
    assert reader.twice == {256}


def test_exif_of_a_camera_is_cheap() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    tally = roomy()
    count_exif(exif.tobytes(), tally)
    assert tally.parts == 5  # maker, time of exposure, latitude, and the two links
    assert tally.work < 100_000 and tally.memory < 10_000


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
def test_exif_that_claims_more_than_it_has(prefix: bytes) -> None:
    with pytest.raises(TooCostly, match=r"tag \d+ with 7,490 values"):
        count_exif(prefix + greedy_exif(), roomy())


@pytest.mark.parametrize("link", [0x8769, 0x8825, 0xA005])
def test_directories_behind_links_count(link: int) -> None:
    first = tags((link, 4, 1, 26))
    second = tags(*[(40_000 + i, 5, 400_000, 8) for i in range(3)], start=26)
    data = b"II*\0" + struct.pack("<I", 8) + first
    assert len(data) == 26
    with pytest.raises(TooCostly, match="tag 40001"):
        count_exif(data + second, roomy())


def test_links_in_a_circle_end() -> None:
    tally = roomy()
    count_exif(tiff((0x8769, 4, 1, 8), (0x8825, 4, 1, 8)), tally)
    assert tally.parts == 4


def test_a_link_to_nowhere_hides_nothing() -> None:
    first = tags((0x8769, 4, 1, 10**6), (0x8825, 4, 1, 38))
    data = b"II*\0" + struct.pack("<I", 8) + first + tags((40_000, 5, 1_000_000, 8), start=38)
    with pytest.raises(TooCostly, match="tag 40000"):
        count_exif(data, roomy())


def test_a_tag_that_is_there_twice_hides_nothing() -> None:
    data = tiff((1, 3, 1, 1), (1, 3, 1, 2), (40_000, 5, 1_000_000, 8))
    with pytest.raises(TooCostly, match="tag 40000"):
        count_exif(data, roomy())


def test_a_bad_order_of_bytes_is_read_as_pillow_does() -> None:
    data = b"MM*\0" + struct.pack(">IH", 8, 1) + struct.pack(">HHII", 40_000, 5, 1_000_000, 8) + numbers([0])
    with pytest.raises(TooCostly, match="tag 40000"):
        count_exif(data, roomy())


@given(st.binary(max_size=80))
def test_any_bytes_are_counted_or_passed_over(data: bytes) -> None:
    for head in (b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b""):
        try:
            count_exif(head + data, roomy())
        except TooCostly as error:
            assert "values" in str(error)
