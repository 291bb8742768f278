"""Images that are small to send and made to cost much to decode, by format; and unusual ones that are not."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of this format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """An image of one colour."""
    return Image.new(mode, (width, height), {"L": 90, "RGB": (120, 130, 90), "CMYK": (120, 130, 90, 10)}[mode])


def shapes(width: int, height: int) -> Image.Image:
    """Blurred colours."""
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# ---- JPEG
def scans_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """A progressive JPEG's head, and its scans, each with the tables before it."""
    place, head, waiting, scans = 2, data[:2], b"", []
    while data[place + 1] != 0xD9:
        kind = data[place + 1]
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        while kind == 0xDA and not (data[end] == 0xFF and data[end + 1] not in (0, *range(0xD0, 0xD8))):
            end += 1
        part, place = data[place:end], end
        if kind == 0xDA:
            scans.append(waiting + part)
            waiting = b""
        elif kind == 0xC4:
            waiting += part
        else:
            head += part
    return head, scans


def many_scans(side: int, count: int, which: int = 5, mode: str = "RGB", head: bytes = b"") -> bytes:
    """A JPEG of one colour in which one of the ten scans is there again and again."""
    top, scans = scans_of(file_of(plain(side, side, mode), "JPEG", progressive=True, quality=75, optimize=True))
    return top + head + b"".join(scans) + scans[which] * (count - len(scans)) + b"\xff\xd9"


def in_jpeg(content: bytes) -> bytes:
    """A usual JPEG with this at its beginning."""
    usual = file_of(shapes(64, 48), "JPEG")
    return usual[:2] + content + usual[2:]


def tags(*rows: tuple[int, int, int, bytes | int], start: int = 8) -> bytes:
    """A TIFF directory (little-endian, to lie at `start`): tag, type, count, value or its place; the values follow."""
    place = start + 2 + 12 * len(rows) + 4
    table, values = struct.pack("<H", len(rows)), b""
    for tag, kind, count, value in rows:
        if isinstance(value, int):
            value = struct.pack("<I", value)
        elif len(value) > 4:
            values, value = values + value, struct.pack("<I", place + len(values))
        table += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return table + bytes(4) + values


def tiff(*rows: tuple[int, int, int, bytes | int], tail: bytes = b"") -> bytes:
    """A TIFF file of one directory, whose image data is `tail`."""
    return b"II*\0" + struct.pack("<I", 8) + tags(*rows) + tail


def greedy_exif(size: int = 60_000) -> bytes:
    """EXIF data in which each of very many tags claims all of the data as fractions."""
    room = size // 8 - 10
    rows = [(0x9000 + i, 5, room, 8) for i in range(min(size // 24, 20_000))]
    return (b"II*\0" + struct.pack("<I", 8) + tags((0x0112, 3, 1, 6), *rows)).ljust(size, b"\1")


def jpeg_with_greedy_exif() -> bytes:
    exif = b"Exif\0\0" + greedy_exif()
    return in_jpeg(b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif)


# ---- PNG
Chunk = tuple[bytes, bytes]  # name, content
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png(width: int, height: int, rows: bytes, *chunks: Chunk, kind: tuple[int, int, int] = (8, 0, 0)) -> bytes:
    """A PNG of these unpacked rows; `kind` is depth, colour type, interlacing."""
    depth, colours, interlaced = kind
    head = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    whole = [struct.pack(">I", len(data)) + name + data + _check(name + data) for name, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def _check(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def png_of_profiles() -> bytes:
    profile = b"x\0\0" + zlib.compress(bytes(1 << 20))[:-4] + b"fail"
    return png(8, 8, bytes(72), *[(b"iCCP", profile)] * 4000)


def png_with_greedy_exif_in_a_text() -> bytes:
    text = b"\nexif\n%d\n" % 400_000 + greedy_exif(400_000).hex().encode()
    return png(64, 48, bytes(65 * 48), (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))


def interlaced_rows(width: int, height: int, bits: int) -> bytes:
    """As many zeros as the seven passes of a PNG have."""
    count = 0
    for left, top, across, down in PASSES:
        wide, tall = -(-(width - left) // across), -(-(height - top) // down)
        count += tall * (1 + (wide * bits + 7) // 8) if wide > 0 and tall > 0 else 0
    return bytes(count)


# ---- GIF
def in_gif(content: bytes) -> bytes:
    """A usual GIF with this before its frame."""
    usual = file_of(shapes(64, 48).quantize(16), "GIF")
    place = usual.index(b",", 13)
    return usual[:place] + content + usual[place:]


def gif_whose_frame_is_larger() -> bytes:
    file = bytearray(in_gif(b""))
    place = file.index(b",", 13)
    file[place + 5 : place + 9] = struct.pack("<HH", 65_000, 65_000)
    return bytes(file)


# ---- WebP
def webp(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """An extended WebP whose canvas is so large, with the chunks of a plain one at its end."""
    image = file_of(shapes(width, height), "WEBP")[12:]
    head = bytes([0x08, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    parts = [b"WEBP", b"VP8X" + struct.pack("<I", 10) + head, image]
    for name, data in chunks:
        parts.append(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2))
    body = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


# ---- BMP
def bmp(width: int, height: int, data: bytes, bits: int = 8, compression: int = 1) -> bytes:
    """A BMP with a palette; compression 1 and 2 are run lengths."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, 256, 256)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024) + head + bytes(range(256)) * 4 + data


# ---- TIFF
def layout(width: int, height: int, bits: int, compression: int) -> list[tuple[int, int, int, bytes | int]]:
    """The tags that every grey TIFF has."""
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, 1)]


def numbers(values: list[int]) -> bytes:
    """As TIFF writes them, 32 bits each."""
    return struct.pack(f"<{len(values)}I", *values)


def tiff_of_strips_again_and_again() -> bytes:
    """Uncompressed, 4 megapixels of a bit each, in 100,000 strips of nearly all rows."""
    count, rows = 100_000, layout(2000, 2000, 1, 1)
    more = [(273, 4, count, numbers([count * 4] * count)), (277, 3, 1, 1), (278, 4, 1, 1999)]
    return tiff(*rows, *more, tail=bytes(1_000_000))


def _tiles(width: int, height: int, tile: tuple[int, int], kind: int, content: bytes, apart: bool = True) -> bytes:
    """A grey TIFF whose tiles all hold `content`, each its own copy or all the same."""
    count = -(-width // tile[0]) * -(-height // tile[1])
    start = 8 + 2 + 12 * 10 + 4 + 8 * count * (count > 1)
    places = [start + apart * len(content) * i for i in range(count)]
    more = [(277, 3, 1, 1), (322, 4, 1, tile[0]), (323, 4, 1, tile[1])]
    more += [(324, 4, count, numbers(places)), (325, 4, count, numbers([len(content)] * count))]
    return tiff(*layout(width, height, 8, kind), *more, tail=content * (count if apart else 1))


def tiff_of_greedy_tags() -> bytes:
    rows = [*layout(64, 48, 8, 1), (273, 4, 1, 8), (278, 4, 1, 48), (279, 4, 1, 3072)]
    return tiff(*rows, *[(40_000 + i, 5, 1_900_000, 8) for i in range(5000)], tail=bytes(15_400_000))


# ---- unusual, and fine


def png_with_profile_and_texts() -> bytes:
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(b"words " * 1000))
    return png(64, 48, bytes(65 * 48), (b"iCCP", b"x\0\0" + zlib.compress(bytes(3000))), *[text] * 20)


def jpeg_with_exif_and_comment() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x011A] = "maker", 72.0
    exif.get_ifd(0x8769)[0x829A] = 0.01
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return file_of(shapes(64, 48), "JPEG", exif=exif, comment=b"words", progressive=True)


def gif_animated() -> bytes:
    frames = [plain(64, 48).quantize(4), *[shapes(64, 48).quantize(16 + i) for i in range(9)]]
    return file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"words" * 100)


def tiff_of_6000_strips() -> bytes:
    strips = numbers([0] * 6000)
    start = 8 + 2 + 12 * 8 + 4 + 2 * len(strips)
    places = numbers([start + 3000 * i for i in range(6000)])
    more = [(273, 4, 6000, places), (278, 4, 1, 1), (279, 4, 6000, numbers([3000] * 6000))]
    return tiff(*layout(3000, 6000, 8, 1), *more, tail=bytes(18_000_000))


def _tiff(compression: str | None, mode: str = "RGB", **options: object) -> bytes:
    return file_of(shapes(640, 480).convert(mode), "TIFF", compression=compression, **options)


# ---- name -> format, maker of files that must be refused
COSTLY: dict[str, tuple[str, Callable[[], bytes]]] = {
    "jpeg_of_99_scans": ("JPEG", lambda: many_scans(7000, 99)),
    "jpeg_of_99_scans_of_all_colours": ("JPEG", lambda: many_scans(5000, 99, which=6)),
    "jpeg_with_scans_in_a_thumbnail_too": ("JPEG", lambda: many_scans(7000, 60, head=b"\xff\xe1\x00\x08Exif\x00\x00")),
    "jpeg_of_1000_tiny_scans": ("JPEG", lambda: many_scans(16, 1000)),
    "jpeg_of_empty_segments": ("JPEG", lambda: in_jpeg(b"\xff\xed\x00\x02" * 1_000_000)),
    "jpeg_of_padding": ("JPEG", lambda: in_jpeg(b"\xff\xe5\x00\x02" + b"\xff" * 15_000_000)),
    "jpeg_with_arithmetic_coding": (
        "JPEG",
        lambda: file_of(plain(64, 48), "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1),
    ),
    "jpeg_with_greedy_exif": ("JPEG", jpeg_with_greedy_exif),
    "png_of_profiles": ("PNG", png_of_profiles),
    "png_of_empty_chunks": ("PNG", lambda: png(8, 8, bytes(72), *[(b"abCd", b"")] * 1_200_000)),
    "png_one_pixel_wide": ("PNG", lambda: png(1, 49_000_000, bytes(98_000_000), kind=(8, 0, 1))),
    "png_with_two_headers": (
        "PNG",
        lambda: png(8, 8, bytes(72), (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0))),
    ),
    "png_with_greedy_exif": ("PNG", lambda: png(64, 48, bytes(65 * 48), (b"eXIf", greedy_exif(1_000_000)))),
    "png_with_greedy_exif_in_a_text": ("PNG", png_with_greedy_exif_in_a_text),
    "gif_of_tiny_blocks": ("GIF", lambda: in_gif(b"!\xfe" + b"\x01a" * 8_000_000 + b"\0")),
    "gif_of_comments": ("GIF", lambda: in_gif(b"!\xfe" + (b"\xff" + b"c" * 255) * 62_000 + b"\0")),
    "gif_of_nothing": ("GIF", lambda: in_gif(bytes(15_000_000))),
    "gif_whose_frame_is_larger": ("GIF", gif_whose_frame_is_larger),
    "webp_with_greedy_exif": ("WebP", lambda: webp(64, 48, (b"EXIF", greedy_exif(1_000_000)))),
    "webp_of_empty_chunks": ("WebP", lambda: webp(64, 48, *[(b"abcd", b"")] * 1_000_000)),
    "webp_whose_canvas_is_larger": (
        "WebP",
        lambda: webp(64, 48).replace(struct.pack("<I", 63)[:3], struct.pack("<I", 16_000_000)[:3], 1),
    ),
    "bmp_of_empty_rows": ("BMP", lambda: bmp(7000, 7000, b"\x01\x01\x00\x00" * 7000)),
    "bmp_of_runs_of_one": ("BMP", lambda: bmp(3000, 2700, b"\x01\x01" * 8_000_000)),
    "bmp_of_one_wide_row": ("BMP", lambda: bmp(49_000_000, 1, b"\x00\x02\x00\xff" + b"\x01\x01")),
    "tiff_of_strips_again_and_again": ("TIFF", tiff_of_strips_again_and_again),
    "tiff_of_tall_tiles": ("TIFF", lambda: _tiles(98_000, 500, (16, 32_000), 8, zlib.compress(bytes(16 * 32_000)))),
    "tiff_of_one_huge_tile": ("TIFF", lambda: _tiles(64, 48, (32_000, 60_000), 8, zlib.compress(bytes(10_000)))),
    "tiff_of_jpegs_of_99_scans": (
        "TIFF",
        lambda: _tiles(7056, 7056, (1008, 1008), 7, many_scans(1008, 99, which=1, mode="L")),
    ),
    "tiff_of_tiles_that_are_one": ("TIFF", lambda: _tiles(7056, 7056, (1008, 1008), 8, bytes(1_000_000), apart=False)),
    "tiff_of_unknown_cost": ("TIFF", lambda: _tiles(64, 48, (64, 48), 34925, bytes(1000))),
    "tiff_of_old_jpeg": ("TIFF", lambda: _tiles(64, 48, (64, 48), 6, bytes(1000))),
    "tiff_of_greedy_tags": ("TIFF", tiff_of_greedy_tags),
}
# name -> size, maker of files that are unusual, and must be taken
USUAL: dict[str, tuple[tuple[int, int], Callable[[], bytes]]] = {
    "phone_of_48_megapixels": (
        (8064, 6048),
        lambda: file_of(plain(8064, 6048), "JPEG", progressive=True, subsampling=0),
    ),
    "cmyk_progressive": ((4000, 3000), lambda: file_of(plain(4000, 3000, "CMYK"), "JPEG", progressive=True)),
    "png_interlaced": ((4000, 3000), lambda: png(4000, 3000, interlaced_rows(4000, 3000, 24), kind=(8, 2, 1))),
    "png_16_bits_interlaced": ((3000, 3000), lambda: png(3000, 3000, interlaced_rows(3000, 3000, 64), kind=(16, 6, 1))),
    "png_with_profile_and_texts": ((64, 48), png_with_profile_and_texts),
    "jpeg_with_a_large_profile": ((64, 48), lambda: file_of(shapes(64, 48), "JPEG", icc_profile=bytes(1_000_000))),
    "jpeg_with_exif_and_comment": ((64, 48), jpeg_with_exif_and_comment),
    "mpo_of_two": ((64, 48), lambda: file_of(shapes(64, 48), "MPO", save_all=True, append_images=[plain(64, 48)])),
    "gif_animated": ((64, 48), gif_animated),
    "webp_animated": (
        (64, 48),
        lambda: file_of(shapes(64, 48), "WEBP", save_all=True, append_images=[plain(64, 48)] * 20),
    ),
    "webp_lossless": ((2000, 1500), lambda: file_of(shapes(2000, 1500), "WEBP", lossless=True, method=0)),
    "apng": ((64, 48), lambda: file_of(shapes(64, 48), "PNG", save_all=True, append_images=[plain(64, 48)] * 20)),
    "bmp_of_runs": ((300, 200), lambda: bmp(300, 200, b"\xff\x07\x2d\x08\x00\x00" * 200 + b"\x00\x01")),
    "tiff_of_6000_strips": ((3000, 6000), tiff_of_6000_strips),
}
for _name, _compression, _mode in (
    ("lzw", "tiff_lzw", "RGB"),
    ("deflate", "tiff_adobe_deflate", "RGBA"),
    ("packbits", "packbits", "L"),
    ("jpeg", "jpeg", "RGB"),
    ("group4", "group4", "1"),
    ("cmyk", "tiff_lzw", "CMYK"),
):
    USUAL[f"tiff_{_name}"] = ((640, 480), lambda kind=_compression, mode=_mode: _tiff(kind, mode))
USUAL["tiff_big"] = ((640, 480), lambda: _tiff(None, big_tiff=True))
USUAL["tiff_many_strips"] = ((640, 480), lambda: _tiff("tiff_lzw", tiffinfo={278: 1}))
