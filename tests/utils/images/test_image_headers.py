"""What the check says of a file is what OpenCV makes of it, for every way to write one that is at hand."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from utils.data.labels import check_pair
from utils.images.image_headers import depth_of, kind_of, plain_header, tiff_numbers
from utils.images.reading import decode_image, inspect_image, quiet_decoder

WIDTH, HEIGHT = 64, 48
NOISE = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
COLOUR = Image.fromarray(NOISE)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def deep(kind: type, most: int, channels: int = 1) -> np.ndarray:
    shape = (HEIGHT, WIDTH, channels)[: 2 + (channels > 1)]
    return (np.random.default_rng(1).random(shape) * most).astype(kind)


def saved(image: Image.Image, kind: str, **options: object) -> bytes | None:
    """The file, or None where Pillow cannot write this."""
    content = io.BytesIO()
    with suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):
        image.save(content, kind, **options)
        return content.getvalue()


def encoded(ending: str, image: np.ndarray, options: tuple[int, ...] = ()) -> bytes | None:
    """The file, or None where OpenCV cannot write this."""
    with suppress(cv2.error):
        done, content = cv2.imencode(ending, image, options)
        return content.tobytes() if done else None


def orientations() -> Iterator[tuple[str, bytes | None]]:
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"):
        for orientation in (1, 2, 3, 5, 6, 8):
            yield f"{kind}, EXIF {orientation}", saved(COLOUR, kind, exif=turned(orientation))
        yield f"{kind}, XMP", saved(COLOUR, kind, xmp=XMP)
        yield f"{kind}, both", saved(COLOUR, kind, xmp=XMP, exif=turned(1))
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", XMP.decode())
    yield "PNG, XMP as text", saved(COLOUR, "PNG", pnginfo=text)
    for grey in (deep(np.uint16, 4095), deep(np.float32, 1)):
        yield f"TIFF, tag 6 {grey.dtype}", saved(Image.fromarray(grey), "TIFF", tiffinfo={274: 6})


def modes() -> Iterator[tuple[str, bytes | None]]:
    images = {mode: COLOUR.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")}
    images |= {"F": Image.fromarray(deep(np.float32, 1)), "I": Image.fromarray(deep(np.int32, 9999))}
    images |= {"16 bits": Image.fromarray(deep(np.uint16, 65535)), "12 in 16": Image.fromarray(deep(np.uint16, 4095))}
    for mode, image in images.items():
        for kind in ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "JPEG2000", "AVIF", "GIF", "PPM", "ICO"):
            yield f"{kind}, {mode}", saved(image, kind)
        for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4", "lzma", "zstd", "webp"):
            yield f"TIFF {compression}, {mode}", saved(image, "TIFF", compression=compression)
    yield "PNG, palette with transparency", saved(images["P"], "PNG", transparency=3)
    yield "GIF, palette with transparency", saved(images["P"], "GIF", transparency=3)


def several() -> Iterator[tuple[str, bytes | None]]:
    for kind in ("TIFF", "GIF", "WEBP", "PNG", "MPO", "AVIF"):
        yield f"{kind}, two images", saved(COLOUR, kind, save_all=True, append_images=[COLOUR.rotate(90)])
    yield "TIFF, a larger second", saved(COLOUR, "TIFF", save_all=True, append_images=[COLOUR.resize((99, 70))])
    yield "MPO, a larger second", saved(COLOUR, "MPO", save_all=True, append_images=[COLOUR.resize((99, 70))])
    yield "BigTIFF", saved(COLOUR, "TIFF", big_tiff=True)
    yield "progressive", saved(COLOUR, "JPEG", progressive=True)
    yield "4:1:1, restarts", encoded(".jpg", NOISE, (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x411111))
    yield "own tables", saved(COLOUR, "JPEG", optimize=True, quality=31)


def many_bits() -> Iterator[tuple[str, bytes | None]]:
    for channels in (1, 3, 4):
        for ending in (".png", ".tiff", ".jp2", ".ppm"):
            for bits in (10, 12, 14, 16):
                yield f"{ending}, {bits} x {channels}", encoded(ending, deep(np.uint16, (1 << bits) - 1, channels))
    for kind in (np.float32, np.float64, np.int32, np.int16, np.int8, np.uint32):
        for channels in (1, 3):
            yield f"TIFF, {kind.__name__} x {channels}", encoded(".tiff", deep(kind, 100, channels))
    for ending in (".hdr", ".pfm", ".exr"):
        yield ending, encoded(ending, deep(np.float32, 1, 3))
    for bits in (10, 12):
        depth = (cv2.IMWRITE_AVIF_DEPTH, bits)
        yield f".avif, {bits}", encoded(".avif", deep(np.uint16, (1 << bits) - 1, 3), depth)


@functools.cache
def written() -> dict[str, bytes]:
    """Every file that could be written here, and each without its last third."""
    parts = (orientations, modes, several, many_bits)
    whole = {name: content for part in parts for name, content in part() if content}
    return whole | {f"{name}, cut": content[: len(content) * 2 // 3] for name, content in whole.items()}


def test_the_check_and_the_decoder_agree_on_every_file() -> None:
    files, used = written(), 0
    assert len(files) > 300
    for name, content in files.items():
        with quiet_decoder():
            record = check_pair(f"{name}.jpg", "none.txt", (io.BytesIO(content), None))
            try:
                image = decode_image(content, name)
            except ValueError:
                assert record.size is None and record.problem.dropped, name
                continue
        assert image.shape[2:] == (3,) and image.dtype == np.uint8, name
        assert record.size in (image.shape[1::-1], None), name
        assert record.size or name.endswith(", cut"), "what is decoded is used"
        used += record.size is not None
    assert used > 150


TURNED = ("JPEG, EXIF 6", "PNG, EXIF 5")
UPRIGHT = ("JPEG, EXIF 3", "JPEG, XMP", "JPEG, both", "PNG, XMP as text", "progressive", "own tables")
UPRIGHT += ("4:1:1, restarts", "MPO, a larger second", "PNG, palette with transparency", ".png, 16 x 4")


@pytest.mark.parametrize("name", TURNED + UPRIGHT)
def test_ordinary_files_are_not_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, size = written()[name], (HEIGHT, WIDTH) if name in TURNED else (WIDTH, HEIGHT)
    decode, longest = cv2.imdecode, []

    def watched(data: np.ndarray, flags: int) -> np.ndarray | None:
        image = decode(data, flags)
        longest.append(max(image.shape))
        return image

    monkeypatch.setattr(cv2, "imdecode", watched)
    assert inspect_image(io.BytesIO(content)).size == size
    assert max(longest, default=0) <= 16, "but for a small one that has its metadata"


@pytest.mark.parametrize("seed", range(4))
def test_a_jpeg_with_a_damaged_header_is_never_promised(seed: int) -> None:
    """Bytes of header change at random: what passes without decoding is decoded to the size that was told."""
    rng, passed = random.Random(seed), 0
    good = [saved(COLOUR, "JPEG"), saved(COLOUR, "JPEG", progressive=True), saved(COLOUR.convert("L"), "JPEG")]
    good += [saved(COLOUR, "JPEG", exif=turned(6)), saved(COLOUR, "JPEG", optimize=True)]
    for _ in range(250):
        content = bytearray(rng.choice(good))
        for _ in range(rng.choice((1, 1, 2, 5))):
            content[rng.randrange(2, content.find(b"\xff\xda") + 14)] = rng.randrange(256)
        header = plain_header(io.BytesIO(content), len(content))
        if header and min(header.size) >= 10:
            assert decode_image(bytes(content), "a.jpg").shape[1::-1] == header.size
            passed += 1
    assert passed > 50


def test_an_endless_jpeg_header_is_left_to_the_decoder() -> None:
    """What OpenCV says of a header is kept, so none is long."""
    content, note = saved(COLOUR, "JPEG"), b"\xff\xe1\xff\xff" + bytes(65533)
    for count, is_plain in ((1, True), (2, False)):
        longer = content[:2] + note * count + content[2:]
        assert (plain_header(io.BytesIO(longer), len(longer)) is not None) == is_plain
        assert inspect_image(io.BytesIO(longer)).size == (WIDTH, HEIGHT)


def parts_of(content: bytes) -> list[tuple[bytes, bytes]]:
    parts, place = [], 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        parts.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return parts


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        content += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return content


HEAD, *OTHERS = parts_of(saved(COLOUR, "PNG"))
DATA, END = b"".join(body for name, body in OTHERS if name == b"IDAT"), (b"IEND", b"")
SPOILED = {  # PNG files whose parts are sound, each by itself, and wrong together
    "no data": [HEAD, END],
    "empty data": [HEAD, (b"IDAT", b""), END],
    "data in two places": [HEAD, (b"IDAT", DATA[:50]), (b"tEXt", b"a\0b"), (b"IDAT", DATA[50:]), END],
    "no colours": [(b"IHDR", HEAD[1][:9] + b"\x03" + HEAD[1][10:]), (b"IDAT", DATA), END],
    "an unknown part that is needed": [HEAD, (b"ABCD", b""), (b"IDAT", DATA), END],
    "not compressed": [HEAD, (b"IDAT", b"\x00" * len(DATA)), END],
    "two headers": [HEAD, HEAD, (b"IDAT", DATA), END],
    "half a colour": [HEAD, (b"PLTE", b"1234"), (b"IDAT", DATA), END],
    "a kind of 3 bits": [(b"IHDR", HEAD[1][:8] + b"\x03" + HEAD[1][9:]), (b"IDAT", DATA), END],
    "no end": [HEAD, (b"IDAT", DATA)],
    "no header": [(b"IDAT", DATA), END],
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_png_whose_parts_do_not_fit_is_left_to_the_decoder(case: str) -> None:
    content, sound = joined(SPOILED[case]), joined([HEAD, *OTHERS])
    header = plain_header(io.BytesIO(content), len(content))
    if case == "half a colour":  # which OpenCV passes over where no palette is needed
        assert header.size == (WIDTH, HEIGHT) == decode_image(content, case).shape[1::-1]
    else:
        assert header is None
    assert plain_header(io.BytesIO(sound), len(sound)).size == (WIDTH, HEIGHT)


def test_kinds_are_known_by_their_first_bytes() -> None:
    assert kind_of(b"") == kind_of(b"hello") == kind_of(b"RIFF....WAVE") == ""
    named = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WebP", "TIFF": "TIFF", "BMP": "BMP", "GIF": "GIF", "ICO": "ICO"}
    assert {kind: kind_of(saved(COLOUR, kind)) for kind in named} == named
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500)
    assert kind_of(heic) == "HEIC" and kind_of(b"\0\0\0\x20ftypavif") == "AVIF"
    record = check_pair("a.jpg", "none.txt", (io.BytesIO(heic), None))
    assert record.size is None
    assert "OpenCV decodes no such HEIC file, or it is damaged; save it as .jpg or .png" in str(record.problem)
    if avif := encoded(".avif", NOISE):  # read whatever it is called
        assert check_pair("a.jpg", "none.txt", (io.BytesIO(avif), None)).size == (WIDTH, HEIGHT)


GREY_16 = Image.fromarray(deep(np.uint16, 9))


@pytest.mark.parametrize(
    "content, bits, is_odd",
    [
        (saved(GREY_16, "PNG"), 0, False),
        (saved(GREY_16, "TIFF"), 16, False),
        (saved(GREY_16, "TIFF", tiffinfo={281: 4095}), 12, False),
        (saved(GREY_16, "TIFF", big_tiff=True), 16, False),
        (encoded(".tiff", deep(np.int16, 9)), 16, True),
        (encoded(".tiff", deep(np.float32, 9, 3)), 32, True),
        (joined([(b"IHDR", HEAD[1][:8] + b"\x10" + HEAD[1][9:]), (b"sBIT", b"\x0a"), (b"IDAT", DATA)]), 10, False),
        *((saved(COLOUR, kind), None, None) for kind in ("JPEG", "PNG", "TIFF", "BMP", "WEBP")),
        (b"II*\0", None, None),
    ],
)
def test_declared_bits_are_read_where_there_are_more_than_8(content: bytes, bits: int | None, is_odd: bool) -> None:
    depth = depth_of(content)
    assert (depth and (depth.bits, depth.is_odd)) == (bits if bits is None else (bits, is_odd))


def test_tags_that_lie_cost_nothing() -> None:
    most = 2**32 - 1
    tags = [(256, 4, 4 * 10**9), (257, 4, 4 * 10**9), (258, 4, most), (339, 9, -5), (281, 4, most)]
    rows = b"".join(struct.pack("<HHIi" if kind == 9 else "<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + struct.pack("<I", 0)
    assert depth_of(content) == (32, True, True) and not tiff_numbers(content)[1]
    with pytest.raises(ValueError, match="4000000000 x 4000000000 pixels are more than OpenCV decodes"):
        decode_image(content, "a.tif")
