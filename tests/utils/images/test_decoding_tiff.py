from __future__ import annotations

import io

import pytest
from utils.images.decoding_tiff import count_tiff

from tests.hostile import file_of, layout, many_scans, numbers, shapes, tiff
from utils.images.decoding_limits import DecodingBudget, TooCostly, Unbounded


def counted(data: bytes, work: int = 10**12) -> DecodingBudget:
    budget = DecodingBudget(work, 10**12)
    count_tiff(data, budget)
    return budget


def strips(count: int, rows: int, *more: tuple[int, int, int, bytes | int], kind: int = 1, tail: bytes = b"") -> bytes:
    """A grey TIFF of 100 x 60 pixels in strips of 10 bytes each, all at place 0."""
    table = [(273, 4, count, numbers([0] * count)), (278, 4, 1, rows), (279, 4, count, numbers([10] * count))]
    return tiff(*layout(100, 60, 8, kind), *table, *more, tail=tail)


def test_no_tags() -> None:
    with pytest.raises(ValueError):
        counted(b"II*\0\x08\0\0\0")


def test_no_size() -> None:
    with pytest.raises(ValueError, match="have no size"):
        counted(tiff((273, 4, 1, 8), (279, 4, 1, 8)))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_sizes_are_what_pillow_wrote(compression: str | None) -> None:
    assert counted(file_of(shapes(65, 49), "TIFF", compression=compression)).size == (65, 49)


def test_every_strip_counts() -> None:
    """60 strips of a row cost as much for their pixels as one of 60 rows, and more for being many."""
    assert counted(strips(60, 1)).work > counted(strips(1, 60)).work + 59 * 20_000


def test_more_strips_than_rows_are_all_counted() -> None:
    assert counted(strips(600, 59)).work > 600 * 59 * 100 * 2


def test_rows_beyond_the_image_are_none() -> None:
    assert counted(strips(1, 2**31)).work == counted(strips(1, 60)).work


@pytest.mark.parametrize("kind", [6, 34925, 50001, 34712, 32809, 34676, 65000])
def test_compressions_of_unknown_cost(kind: int) -> None:
    with pytest.raises(Unbounded, match=f"compression {kind}: save it with LZW or Deflate"):
        counted(strips(1, 60, kind=kind))


@pytest.mark.parametrize(
    "data, reason",
    [
        (strips(1, 60, (322, 4, 1, 16)), "both strips and tiles"),
        (strips(1, 60, (256, 4, 1, 5)), "tag 256 is there twice"),
        (strips(1, 0), "have no size"),
        (tiff(*layout(100, 60, 8, 5), (273, 4, 9, numbers([0] * 9)), (278, 4, 1, 8)), "how long its strips are"),
        (tiff(*layout(100, 60, 8, 1), (324, 4, 1, 8)), "have no size"),
    ],
)
def test_layouts_that_cannot_be(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        counted(data)


def test_strips_over_each_other() -> None:
    file = strips(60, 1, kind=8, tail=bytes(100))
    whole = file.replace(numbers([10] * 60), numbers([len(file)] * 60))
    with pytest.raises(TooCostly, match="strips that lie over each other"):
        counted(whole)


def test_scans_inside_of_strips_count() -> None:
    inner = many_scans(16, 90, which=1, mode="L")
    work = []
    for content in (inner, many_scans(16, 10, which=1, mode="L")):
        start = 8 + 2 + 12 * 9 + 4
        rows = [(273, 4, 1, start), (277, 3, 1, 1), (278, 4, 1, 16), (279, 4, 1, len(content))]
        work.append(counted(tiff(*layout(16, 16, 8, 7), *rows, tail=content)).work)
    assert work[0] - work[1] >= 80 * 2 * 16 * 16


def test_a_strip_larger_than_the_image() -> None:
    content = file_of(shapes(64, 64), "JPEG")
    rows = [(273, 4, 1, 8 + 2 + 12 * 9 + 4), (277, 3, 1, 1), (278, 4, 1, 16), (279, 4, 1, len(content))]
    with pytest.raises(ValueError, match="one of its strips is larger"):
        counted(tiff(*layout(16, 16, 8, 7), *rows, tail=content))


def test_zstandard_may_look_far_back() -> None:
    assert counted(strips(1, 60, kind=50000)).memory > 100_000_000


def test_the_tags_of_other_images_in_the_file_are_not_read() -> None:
    file = io.BytesIO()
    shapes(64, 48).save(file, "TIFF", save_all=True, append_images=[shapes(80, 80)] * 5)
    assert counted(file.getvalue()).size == (64, 48)
