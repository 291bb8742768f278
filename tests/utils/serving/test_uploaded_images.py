from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serve import read_array
from tests.hostile import COSTLY, USUAL, file_of, many_scans
from utils.serving.limits import Refusal
from utils.serving.uploaded_images import FORMATS, Decoder, check_size


def read(picture: Image.Image) -> np.ndarray:
    return np.array(picture.convert("RGB"))


DECODE = Decoder(read, 10_000)


def test_an_empty_file() -> None:
    with pytest.raises(Refusal, match="picture 3 is an empty file") as refused:
        DECODE(b"", "picture 3")
    assert refused.value.status == 400


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format(kind: str) -> None:
    picture = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    found = DECODE(file_of(picture, kind))
    assert found.shape == (30, 40, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - np.asarray(picture)).mean() < 4


@pytest.mark.parametrize("kind", FORMATS)
def test_too_many_pixels_are_known_before_decoding(kind: str) -> None:
    def no_reading(picture: Image.Image) -> np.ndarray:
        raise AssertionError("was decoded")

    with pytest.raises(Refusal, match="101 x 100 pixels; at most 10,000") as refused:
        Decoder(no_reading, 10_000)(file_of(Image.new("RGB", (101, 100)), kind))
    assert refused.value.status == 413


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "DDS"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(Refusal, match="JPEG, PNG") as refused:
        DECODE(file_of(Image.new("RGB", (16, 16)), kind))
    assert refused.value.status == 415


def test_what_the_reader_stumbles_over_is_one_printable_line() -> None:
    def stumble(picture: Image.Image) -> np.ndarray:
        raise OSError("broken\n\x1b[31m" + "x" * 500)

    with pytest.raises(Refusal, match="is damaged: broken") as refused:
        Decoder(stumble, 10_000)(file_of(Image.new("RGB", (16, 16)), "PNG"))
    assert refused.value.status == 400 and refused.value.message.isprintable() and len(refused.value.message) < 150


def test_progressive_pictures_are_taken_endless_ones_not() -> None:
    assert DECODE(many_scans(90, 99)).shape == (90, 90, 3)
    with pytest.raises(Refusal, match="more than 100 scans"):
        DECODE(many_scans(90, 101))


SERVER = Decoder(read_array, 50_000_000)  # as serve.py has it


@pytest.mark.parametrize("name", COSTLY)
def test_costly_pictures_are_refused_before_they_cost_anything(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow's help: its newer versions refuse some of these themselves."""
    kind, make = COSTLY[name]
    if name == "png_with_greedy_exif_in_a_text":  # it is seen when the texts are unpacked
        refuse, data = SERVER, make()
    else:
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("was opened"))
        refuse, data = SERVER.measure, make()
    start = time.process_time()
    with pytest.raises(Refusal) as refused:
        refuse(data)
    assert time.process_time() - start < 2
    assert refused.value.status in (400, 413, 415) and refused.value.message.isprintable()
    assert len(refused.value.message) < 200, kind


@pytest.mark.parametrize("name", USUAL)
def test_unusual_pictures_are_taken(name: str) -> None:
    size, make = USUAL[name]
    data = make()
    assert SERVER.measure(data).work <= SERVER.most_work
    if size[0] * size[1] < 10_000_000:  # the others take their time
        assert SERVER(data).shape == (size[1], size[0], 3)


SAME = ["jpeg_with_exif_and_comment", "mpo_of_two", "tiff_lzw", "webp_lossless", "bmp_of_runs"]


@pytest.mark.parametrize("name", SAME)
def test_pictures_are_what_pillow_makes_of_them(name: str) -> None:
    data = USUAL[name][1]()
    assert (SERVER(data) == np.array(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_a_webp_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert SERVER(file_of(Image.new("RGB", (40, 30)), "WEBP", exif=exif)).shape == (40, 30, 3)


def test_small_limits_refuse_no_format() -> None:
    """What a format needs whatever the image, tables for instance, is no reason."""
    few = Decoder(read_array, 4_000_000)
    for name, (size, make) in USUAL.items():
        if size[0] * size[1] <= 4_000_000:
            assert few.measure(make()).work <= few.most_work, name


def test_memory_that_a_header_asks_for_is_refused_however_few_the_pixels() -> None:
    with pytest.raises(Refusal, match="1 tiles of 32,000 x 60,000 pixels") as refused:
        SERVER.measure(COSTLY["tiff_of_one_huge_tile"][1]())
    assert refused.value.status == 413


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 2000), st.binary(min_size=1, max_size=40))
def test_any_damage_gives_a_picture_or_one_line(kind: str, place: int, junk: bytes) -> None:
    whole = file_of(Image.radial_gradient("L").resize((24, 20)), kind)
    place %= len(whole)
    try:
        found = DECODE(whole[:place] + junk + whole[place + len(junk) :])
    except Refusal as refused:
        assert refused.status in (400, 413, 415) and refused.message.isprintable()
    else:
        assert found.dtype == np.uint8 and 0 < found.size <= 30_000


@pytest.mark.parametrize("size, status", [((0, 5), 400), ((5, -1), 400), ((11, 10), 413)])
def test_sizes_that_cannot_be(size: tuple[int, int], status: int) -> None:
    with pytest.raises(Refusal) as refused:
        check_size(size, 100, "it")
    assert refused.value.status == status
    check_size((10, 10), 100, "it")
