from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.hostile import bmp, file_of, in_gif, interlaced_rows, plain, png, shapes, webp
from utils.images.decoding_cost import PLAIN_MEMORY, PLAIN_WORK, count_cost, image_format, webp_size
from utils.images.decoding_limits import CostTally, TooCostly

KINDS = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "BMP": "BMP", "GIF": "GIF", "TIFF": "TIFF"}


def counted(data: bytes) -> CostTally:
    tally = CostTally(10**12, 10**12)
    assert count_cost(data, tally)
    return tally


@pytest.mark.parametrize("data", [b"", b"text", bytes(99), b"\x00\x00\x00\x1cftypavif", b"\x00\x00\x01\x00"])
def test_what_is_not_known(data: bytes) -> None:
    assert image_format(data) is None and count_cost(data, CostTally(0, 0)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_of_all_formats(kind: str) -> None:
    data = file_of(shapes(65, 49), kind)
    assert image_format(data) == KINDS[kind] and counted(data).size == (65, 49)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_costs_something(kind: str) -> None:
    tally = counted(file_of(shapes(65, 49), kind))
    assert tally.work > PLAIN_WORK * 65 * 49 and tally.memory >= PLAIN_MEMORY * 65 * 49


@pytest.mark.parametrize("kind", KINDS)
def test_four_times_the_pixels_cost_four_times_as_much(kind: str) -> None:
    small, large = counted(file_of(plain(512, 512), kind)).work, counted(file_of(plain(1024, 1024), kind)).work
    assert 3 * small < large < 4.2 * small


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_files_are_damaged_or_counted(kind: str) -> None:
    data = file_of(shapes(65, 49), kind)
    for length in (3, 6, 8, 10, 12, 20, 25, 40, len(data) // 2):
        try:
            count_cost(data[:length], CostTally(10**9, 10**9))
        except TooCostly:
            raise
        except ValueError as error:
            assert str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_hears_of_the_size(kind: str) -> None:
    def refuse(width: int, height: int) -> None:
        raise KeyError((width, height))

    with pytest.raises(KeyError, match=r"\(65, 49\)"):
        count_cost(file_of(shapes(65, 49), kind), CostTally(10**9, 10**9, refuse))


# ---- WebP
@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_tells_its_size(mode: str, lossless: bool) -> None:
    assert webp_size(file_of(Image.new(mode, (37, 91), 99), "WEBP", lossless=lossless)) == (37, 91)


def test_webp_size_of_others() -> None:
    assert webp_size(b"") is None and webp_size(file_of(Image.new("L", (50, 50)), "PNG")) is None
    assert webp_size(webp(64, 48)) == (64, 48)


def test_lossless_webp_may_have_many_tables() -> None:
    """A group of codes for each 4 x 4 pixels at most, and one for each 20 bits of the file."""
    lossy, lossless = (counted(file_of(shapes(800, 400), "WEBP", lossless=kind)) for kind in (False, True))
    assert lossless.memory - lossy.memory == 200 * 100 * 8192


# ---- PNG, GIF, BMP
def test_interlaced_png_cost_more() -> None:
    plain_work = counted(png(64, 48, bytes(65 * 48))).work
    assert counted(png(64, 48, interlaced_rows(64, 48, 8), kind=(8, 0, 1))).work > plain_work + 4 * 64 * 48


def test_what_png_has_beside_its_pixels_counts() -> None:
    usual = counted(png(64, 48, bytes(65 * 48))).work
    for name, least in ((b"iCCP", 10**6), (b"zTXt", 10**6), (b"iTXt", 10**6), (b"tEXt", 1000), (b"abCd", 1000)):
        assert counted(png(64, 48, bytes(65 * 48), (name, b"x"))).work >= usual + least


def test_a_frame_beyond_the_canvas_of_a_gif() -> None:
    file = bytearray(file_of(shapes(64, 48).quantize(4), "GIF"))
    place = file.index(b",", 13)
    file[place + 1 : place + 9] = b"\x0a\0\x14\0\x40\0\x30\0"
    assert counted(bytes(file)).size == (74, 68)


def test_blocks_before_the_frame_of_a_gif() -> None:
    few, many = (counted(in_gif(b"!\xff" + b"\x01a" * count + b"\0")) for count in (10, 1010))
    assert many.parts - few.parts == 1000 and many.work - few.work >= 400 * 1000


def test_run_lengths_of_bmp_cost_more() -> None:
    usual, runs = (counted(bmp(300, 200, bytes(60_000), 8, kind)).work for kind in (0, 1))
    assert runs > usual + 150 * 300 * 200


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([*KINDS]), st.integers(0, 2000), st.binary(min_size=1, max_size=40))
def test_any_damage_is_counted_or_one_line(kind: str, place: int, junk: bytes) -> None:
    whole = file_of(Image.radial_gradient("L").resize((24, 20)), kind)
    place %= len(whole)
    try:
        count_cost(whole[:place] + junk + whole[place + len(junk) :], CostTally(10**10, 10**10))
    except ValueError as error:
        assert "\n" not in str(error)
