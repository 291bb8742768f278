"""What decoding costs, of every format; JPEG and TIFF have files of their own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.hostile import bmp, file_of, in_gif, interlaced_rows, plain, png, shapes, webp
from utils.images.decoding_cost import PLAIN_MEMORY, PLAIN_WORK, count_cost
from utils.images.decoding_limits import DecodingBudget
from utils.images.image_headers import webp_size

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def counted(data: bytes) -> DecodingBudget:
    budget = DecodingBudget(10**12, 10**12)
    assert count_cost(data, budget)
    return budget


@pytest.mark.parametrize("data", [b"", b"text", bytes(99), b"\x00\x00\x00\x1cftypavif", b"\x00\x00\x01\x00"])
def test_what_is_not_known(data: bytes) -> None:
    assert count_cost(data, DecodingBudget(0, 0)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_costs_something_and_the_size_is_checked(kind: str) -> None:
    data = file_of(shapes(65, 49), kind)
    budget = counted(data)
    assert budget.size == (65, 49) and budget.work > PLAIN_WORK * 65 * 49 and budget.memory >= PLAIN_MEMORY * 65 * 49

    def refuse(width: int, height: int) -> None:
        raise KeyError((width, height))

    with pytest.raises(KeyError, match=r"\(65, 49\)"):
        count_cost(data, DecodingBudget(10**9, 10**9, refuse))
    small, large = counted(file_of(plain(512, 512), kind)).work, counted(file_of(plain(1024, 1024), kind)).work
    assert 3 * small < large < 4.2 * small


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_has_its_size_in_the_header(mode: str, lossless: bool) -> None:
    assert webp_size(file_of(Image.new(mode, (37, 91), 99), "WEBP", lossless=lossless)) == (37, 91)
    assert webp_size(webp(64, 48)) == (64, 48)
    assert webp_size(b"") is None and webp_size(file_of(Image.new("L", (50, 50)), "PNG")) is None


def test_lossless_webp_may_have_many_tables() -> None:
    """A group of codes for each 4 x 4 pixels at most, and one for each 20 bits of the file; none is refused for it."""
    lossy, lossless = (counted(file_of(shapes(800, 400), "WEBP", lossless=kind)) for kind in (False, True))
    assert lossless.memory - lossy.memory == 200 * 100 * 8192 == lossless.most_memory - 10**12


def test_what_png_has_beside_its_pixels_counts() -> None:
    usual = counted(png(64, 48, bytes(65 * 48))).work
    assert counted(png(64, 48, interlaced_rows(64, 48, 8), kind=(8, 0, 1))).work > usual + 4 * 64 * 48
    for name, least in ((b"iCCP", 10**6), (b"zTXt", 10**6), (b"iTXt", 10**6), (b"tEXt", 1000), (b"abCd", 1000)):
        assert counted(png(64, 48, bytes(65 * 48), (name, b"x"))).work >= usual + least


def test_gif_counts_its_whole_frame_and_what_lies_before() -> None:
    file = bytearray(file_of(shapes(64, 48).quantize(4), "GIF"))
    place = file.index(b",", 13)
    file[place + 1 : place + 9] = b"\x0a\0\x14\0\x40\0\x30\0"
    assert counted(bytes(file)).size == (74, 68), "a frame beyond the canvas"
    few, many = (counted(in_gif(b"!\xff" + b"\x01a" * count + b"\0")) for count in (10, 1010))
    assert many.parts - few.parts == 1000 and many.work - few.work >= 400 * 1000


def test_run_lengths_of_bmp_cost_more() -> None:
    usual, runs = (counted(bmp(300, 200, bytes(60_000), 8, kind)).work for kind in (0, 1))
    assert runs > usual + 150 * 300 * 200


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2000), st.integers(0, 2000), st.binary(max_size=40))
def test_any_damage_is_counted_or_one_line(kind: str, place: int, length: int, junk: bytes) -> None:
    whole = file_of(Image.radial_gradient("L").resize((24, 20)), kind)
    place %= len(whole)
    said = "fine"
    try:
        changed = whole[:place] + junk + whole[place + len(junk) :]
        count_cost(changed[: length or None], DecodingBudget(10**10, 10**10))
    except ValueError as error:
        said = str(error)
    assert re.fullmatch(".+", said)
