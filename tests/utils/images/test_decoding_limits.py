"""What is counted before decoding, and the tags of TIFF and EXIF."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.hostile import greedy_exif, numbers, tags, tiff
from utils.images.decoding_limits import MOST_PARTS, DecodingBudget, TagReader, TooCostly, count_exif


def roomy() -> DecodingBudget:
    return DecodingBudget(10**9, 10**9)


def test_a_budget_says_what_was_too_much() -> None:
    budget = DecodingBudget(100, 50)
    count_exif(b"", budget)
    assert (budget.work, budget.memory, budget.parts, budget.size) == (0, 0, 0, (0, 0))
    budget.spend("its size", 100, 50)
    with pytest.raises(TooCostly, match="its colour"):
        budget.spend("its colour", 1)
    with pytest.raises(TooCostly, match="its weight"):
        DecodingBudget(100, 50).spend("its weight", 0, 51)
    budget = DecodingBudget(1, 1, parts=MOST_PARTS)
    with pytest.raises(TooCostly, match="more than 200,000 crumbs"):
        budget.part(0, "crumbs")


@pytest.mark.parametrize("order, mark", [("<", b"II"), (">", b"MM")])
def test_tags_of_both_orders_and_widths(order: str, mark: bytes) -> None:
    """A number that stands in the tag itself, and three that lie elsewhere."""
    large = mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, 2)
    large += struct.pack(f"{order}HHQHHI", 256, 3, 1, 77, 0, 0) + struct.pack(f"{order}HHQQ", 273, 16, 3, 64)
    large += struct.pack(f"{order}QQQ", 5, 6, 1 << 40)
    small = mark + struct.pack(f"{order}HIH", 42, 8, 2)
    small += struct.pack(f"{order}HHIHH", 256, 3, 1, 77, 0) + struct.pack(f"{order}HHII", 273, 4, 3, 34)
    small += struct.pack(f"{order}III", 5, 6, 7)
    for data, last in ((large, 1 << 40), (small, 7)):
        reader = TagReader(data, roomy())
        found = reader.tags(reader.first)
        assert set(found) == {256, 273} and not reader.repeated
        assert reader.numbers(found, 256) == (77,) and reader.numbers(found, 999, (8,)) == (8,)
        assert reader.numbers(found, 273) == (5, 6, last)


@pytest.mark.parametrize("data", [b"", b"II", b"XX*\0\x08\0\0\0", b"II\x07\0\x08\0\0\0", b"II*\0\xff\0\0\0"])
def test_what_is_no_directory(data: bytes) -> None:
    with pytest.raises(ValueError, match="its tags"):
        TagReader(data, roomy()).tags(255)


@pytest.mark.parametrize("row", [(256, 2, 4, b"abc\0"), (256, 9, 1, b"\xff" * 4), (256, 4, 0, 0)])
def test_words_and_negatives_are_no_numbers(row: tuple) -> None:
    reader = TagReader(tiff(row, row), roomy())
    found = reader.tags(8)
    assert reader.repeated == {256}
    with pytest.raises(ValueError, match="tag 256 holds no whole numbers"):
        reader.numbers(found, 256)


def test_exif_of_a_camera_is_cheap() -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    budget = roomy()
    count_exif(exif.tobytes(), budget)
    assert budget.parts == 5  # maker, time of exposure, latitude, and the two links
    assert budget.work < 100_000 and budget.memory < 10_000
    budget = roomy()
    count_exif(tiff((0x8769, 4, 1, 8), (0x8825, 4, 1, 8)), budget)
    assert budget.parts == 4, "links in a circle end"


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
def test_exif_that_claims_more_than_it_has(prefix: bytes) -> None:
    with pytest.raises(TooCostly, match=r"tag \d+ with 7,490 values"):
        count_exif(prefix + greedy_exif(), roomy())


GREEDY = (40_000, 5, 1_000_000, 8)
LINKED = {
    f"behind link {link:x}": b"II*\0\x08\0\0\0" + tags((link, 4, 1, 26)) + tags(GREEDY, start=26)
    for link in (0x8769, 0x8825, 0xA005)
}
HIDDEN = LINKED | {
    "behind a link to nowhere": b"II*\0\x08\0\0\0"
    + tags((0x8769, 4, 1, 10**6), (0x8825, 4, 1, 38))
    + tags(GREEDY, start=38),
    "behind a tag that is there twice": tiff((1, 3, 1, 1), (1, 3, 1, 2), GREEDY),
    "by a bad order of bytes, which Pillow reads": b"MM*\0" + struct.pack(">IHHHII", 8, 1, *GREEDY) + numbers([0]),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_costly_tags_are_not_hidden(case: str) -> None:
    with pytest.raises(TooCostly, match="tag 40000"):
        count_exif(HIDDEN[case], roomy())


@given(st.binary(max_size=80), st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0+\0\x08\0\0", b""]))
def test_any_bytes_are_counted_or_passed_over(data: bytes, head: bytes) -> None:
    budget = DecodingBudget(10**30, 10**30)
    count_exif(head + data, budget)
    assert budget.work >= budget.parts
