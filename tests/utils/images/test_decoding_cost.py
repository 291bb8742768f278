"""What decoding costs, of every format."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from tests.hostile import (
    bmp,
    file_of,
    greedy_exif,
    in_gif,
    interlaced_rows,
    layout,
    many_scans,
    numbers,
    plain,
    png,
    scans_of,
    shapes,
    tiff,
    webp,
)
from utils.images.decoding_cost import PLAIN_MEMORY, PLAIN_WORK, JpegFrame, count_cost, count_jpeg
from utils.images.decoding_limits import DecodingBudget, TooCostly, Unbounded
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


def test_webp_has_its_size_in_the_header_and_may_have_many_tables() -> None:
    """A group of codes for each 4 x 4 pixels at most, and one for each 20 bits of the file; none is refused for it."""
    for mode in ("RGB", "RGBA"):
        lossy, lossless = (file_of(shapes(800, 400).convert(mode), "WEBP", lossless=kind) for kind in (False, True))
        assert webp_size(lossy) == webp_size(lossless) == (800, 400)
    assert webp_size(webp(64, 48)) == (64, 48)
    assert webp_size(b"") is None and webp_size(file_of(Image.new("L", (50, 50)), "PNG")) is None
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


# ---- TIFF


def strips(count: int, rows: int, *more: tuple[int, int, int, bytes | int], kind: int = 1, tail: bytes = b"") -> bytes:
    """A grey TIFF of 100 x 60 pixels in strips of 10 bytes each, all at place 0."""
    table = [(273, 4, count, numbers([0] * count)), (278, 4, 1, rows), (279, 4, count, numbers([10] * count))]
    return tiff(*layout(100, 60, 8, kind), *table, *more, tail=tail)


def strip_of(content: bytes) -> bytes:
    """A grey TIFF of 16 x 16 pixels whose only strip is this JPEG."""
    rows = [(273, 4, 1, 8 + 2 + 12 * 9 + 4), (277, 3, 1, 1), (278, 4, 1, 16), (279, 4, 1, len(content))]
    return tiff(*layout(16, 16, 8, 7), *rows, tail=content)


def test_every_strip_of_a_tiff_counts() -> None:
    """60 strips of a row cost as much for their pixels as one of 60 rows, and more for being many."""
    assert counted(strips(60, 1)).work > counted(strips(1, 60)).work + 59 * 20_000
    assert counted(strips(600, 59)).work > 600 * 59 * 100 * 2, "more strips than rows"
    assert counted(strips(1, 2**31)).work == counted(strips(1, 60)).work, "rows beyond the image are none"
    assert counted(strips(1, 60, kind=50000)).memory > 100_000_000, "Zstandard may look far back"
    many, few = (counted(strip_of(many_scans(16, scans, which=1, mode="L"))).work for scans in (90, 10))
    assert many - few >= 80 * 2 * 16 * 16, "scans inside of strips"


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_sizes_of_tiffs_are_what_pillow_wrote(compression: str | None) -> None:
    further = {"save_all": True, "append_images": [shapes(80, 80)] * 5}
    assert counted(file_of(shapes(65, 49), "TIFF", compression=compression, **further)).size == (65, 49)


@pytest.mark.parametrize("kind", [6, 34925, 50001, 34712, 32809, 34676, 65000])
def test_compressions_of_unknown_cost(kind: int) -> None:
    with pytest.raises(Unbounded, match=f"compression {kind}: save it with LZW or Deflate"):
        counted(strips(1, 60, kind=kind))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"II*\0\x08\0\0\0", "outside of the file"),
        (tiff((273, 4, 1, 8), (279, 4, 1, 8)), "have no size"),
        (strips(1, 60, (322, 4, 1, 16)), "both strips and tiles"),
        (strips(1, 60, (256, 4, 1, 5)), "tag 256 is there twice"),
        (strips(1, 0), "have no size"),
        (tiff(*layout(100, 60, 8, 5), (273, 4, 9, numbers([0] * 9)), (278, 4, 1, 8)), "how long its strips are"),
        (tiff(*layout(100, 60, 8, 1), (324, 4, 1, 8)), "have no size"),
        (strip_of(file_of(shapes(64, 64), "JPEG")), "one of its strips or tiles is larger"),
    ],
)
def test_layouts_that_cannot_be(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        counted(data)


def test_strips_over_each_other() -> None:
    file = strips(60, 1, kind=8, tail=bytes(100))
    with pytest.raises(TooCostly, match="strips that lie over each other"):
        counted(file.replace(numbers([10] * 60), numbers([len(file)] * 60)))


# ---- JPEG
USUAL = file_of(shapes(64, 48), "JPEG")
FRAME = USUAL.index(b"\xff\xc0")


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
