from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from utils.serving.limits import Refusal
from utils.serving.pictures import FORMATS, Decoder, check_size


def read(picture: Image.Image) -> np.ndarray:
    return np.array(picture.convert("RGB"))


DECODE = Decoder(read, 10_000)


def file_of(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


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
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    usual = file_of(noise, "JPEG", progressive=True, quality=100)
    assert DECODE(usual).shape == (90, 90, 3)
    with pytest.raises(Refusal, match="scans"):
        DECODE(usual[:-2] + b"\xff\xda" * 100 + usual[-2:])


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
