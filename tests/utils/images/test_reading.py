"""Images that claim to be more than their file can hold, and what is decoded of those that do not."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from utils.data.labels import check_pair
from utils.images.letterbox import fit_longest
from utils.images.reading import (
    IMG_FORMATS,
    decode_image,
    inspect_image,
    picture_size,
    read_image,
    to_eight_bits,
    turned_avif,
)


def part(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """One part of a PNG, with a checksum that is right, and any length."""
    size = struct.pack(">I", len(content) if length is None else length)
    return size + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes) -> bytes:
    """A PNG of this size with hardly any content."""
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    """The header of a BMP."""
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def saved(mode: str, size: tuple[int, int], kind: str, **options: object) -> bytes:
    """An image of nothing."""
    content = io.BytesIO()
    Image.new(mode, size).save(content, kind, **options)
    return content.getvalue()


def jpeg(width: int, height: int, filler: bytes = b"") -> bytes:
    """A JPEG that claims this size, with the content of a small one; `filler` before its frame header."""
    small = saved("RGB", (64, 48), "jpeg")
    frame = small.index(b"\xff\xc0")
    return small[:frame] + filler + small[frame : frame + 5] + struct.pack(">HH", height, width) + small[frame + 9 :]


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


BOMBS = {
    "nothing": b"",
    "60000 x 60000": png(60000, 60000),
    "30000 x 30000": png(30000, 30000),
    "a line without end": png(2**31 - 1, 1),
    "a JPEG": jpeg(60000, 60000),
    "a JPEG with filling bytes": jpeg(60000, 60000, b"\xff\xff"),
    "a BMP": bmp(30000, 30000),
    "a BMP upside down": bmp(20000, -20000),
    "a part that ends beyond the file": png(64, 48, part(b"tEXt", b"a\0b", length=2**31 - 1)),  # memory for all of it
    "a fax of nothing": saved("1", (30000, 30000), "tiff", compression="group4"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.png").write_bytes(BOMBS[case])
    before = peak()
    others = {"nothing": "empty file", "a part that ends beyond the file": "a part of 2,147,483,647"}
    reason = others.get(case, "pixels")
    with pytest.raises(ValueError, match=rf"a\.png: .*({reason}|cannot be decoded)"):
        read_image(tmp_path / "a.png")
    record = check_pair(str(tmp_path / "a.png"), "none.txt")
    assert record.size is None and reason in str(record.problem) and peak() - before < 64 << 20


def test_large_images_of_little_are_kept_and_thin_ones(tmp_path: Path) -> None:
    """A drawing of 12,000 x 10,000 pixels, black on white: more than 100 million of them, in a small file."""
    limit, said = Image.MAX_IMAGE_PIXELS, []
    for size in ((12000, 10000), (20000, 10)):
        (tmp_path / "a.png").write_bytes(saved("1", size, "png"))
        record = check_pair(str(tmp_path / "a.png"), "none.txt")
        assert record.size == size == inspect_image(tmp_path / "a.png").size and "left out" not in str(record.problem)
        said.append("tiles" in str(record.problem))
    assert said == [True, False] and limit == Image.MAX_IMAGE_PIXELS
    assert fit_longest(read_image(tmp_path / "a.png"), 320).shape == (1, 320, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff"])
def test_an_image_is_decoded_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode, calls = cv2.imdecode, []
    monkeypatch.setattr(cv2, "imdecode", lambda *args: calls.append(args) or decode(*args))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_image(saved("RGB", (64, 48), kind, exif=exif.tobytes()), "a").size == 64 * 48 * 3
    assert len(calls) == 1, "its size is known without a look at what OpenCV makes of the header"


def test_content_may_be_given(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    given = decode_image(np.frombuffer(whole, np.uint8), "anything.png")
    np.testing.assert_array_equal(given[..., ::-1], noise)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), given)
    for text, labels in ((b"0 .5 .5 .1 .1", 1), (None, 0)):
        record = check_pair("shard.tar/a.png", "shard.tar/a.txt", (io.BytesIO(whole), text))
        assert record.size == (30, 20) and len(record.labels) == labels == record.has_label_file
    (tmp_path / "b.jpg").write_bytes(saved("RGB", (64, 48), "jpeg") + b"\0\0\0")
    assert check_pair(str(tmp_path / "b.jpg"), "none.txt").size == (64, 48), "bytes after the end do no harm"


@pytest.mark.parametrize(
    "brightest, declared, bits",
    [
        *((200, 0, 8), (256, 0, 10), (1023, 0, 10), (4095, 0, 12), (16383, 0, 14), (16384, 0, 16), (65535, 0, 16)),
        *((1000, 12, 12), (4095, 12, 12), (65535, 12, 16), (4095, 16, 12), (4095, 7, 12), (100, 14, 14)),
    ],
)
def test_the_bits_that_matter_are_taken(brightest: int, declared: int, bits: int) -> None:
    image = np.arange(brightest + 1, dtype=np.uint16)
    assert to_eight_bits(image, declared).tolist() == [value >> (bits - 8) for value in range(brightest + 1)]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int32, np.uint32])
def test_other_numbers_are_scaled_from_their_own_range(kind: type) -> None:
    assert to_eight_bits(np.zeros((0, 4), kind)).shape == (0, 4) and not to_eight_bits(np.zeros((3, 4), kind)).any()
    assert to_eight_bits(np.array([100, 140, 300], kind)).tolist() == [0, 51, 255]
    if np.issubdtype(kind, np.floating):
        assert to_eight_bits(np.array([np.nan, np.inf, -1, 1], kind)).tolist() == [0, 0, 0, 255]
        assert to_eight_bits(np.array([np.nan, -np.inf], kind)).tolist() == [0, 0]


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_twelve_bits_in_sixteen_are_not_black(tmp_path: Path, ending: str) -> None:
    ramp = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)
    for name, image in (("a", ramp), ("b", np.dstack([ramp] * 3))):
        path = tmp_path / f"{name}.{ending}"
        cv2.imwrite(str(path), image)
        np.testing.assert_array_equal(read_image(path)[..., 0], ramp >> 4)
        assert inspect_image(path).is_deep
        assert check_pair(str(path), "none.txt").notes[0].reason == "more than 8 bits a channel"


def test_all_of_sixteen_bits_stay_as_opencv_has_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 65536, (48, 64, 3)).astype(np.uint16)
    for ending in ("png", "tiff", "jp2", "ppm"):
        for image in (noise, noise[..., 0]):
            path = tmp_path / f"a.{ending}"
            cv2.imwrite(str(path), image)
            np.testing.assert_array_equal(read_image(path), cv2.imread(str(path)))


def test_a_float_image_is_read_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ramp = np.linspace(-3, 7, 64 * 48, dtype=np.float32).reshape(48, 64)
    for image in (ramp, np.dstack([ramp] * 3)):
        cv2.imwrite(str(tmp_path / "a.tiff"), image)
        found = read_image(tmp_path / "a.tiff")
        assert found.shape == (48, 64, 3) and found.flags["C_CONTIGUOUS"]
        np.testing.assert_allclose(found[..., 1], (ramp + 3) * 25.5, atol=0.51)
    assert capfd.readouterr() == ("", "")


def test_the_first_of_several_pages_is_used_and_said(tmp_path: Path) -> None:
    pages = [Image.new("L", size, 100) for size in ((64, 48), (90, 70))]
    for big in (False, True):
        pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], big_tiff=big)
        assert inspect_image(tmp_path / "a.tif") == ((64, 48), False, True)
    assert "several images in one file" in str(check_pair(str(tmp_path / "a.tif"), "none.txt").notes[0])


@pytest.mark.skipif("avif" not in IMG_FORMATS, reason="OpenCV without AVIF")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_as_its_file_says(tmp_path: Path, orientation: int) -> None:
    rows = np.zeros((32, 48, 3), np.uint8)
    rows[:16, :24], rows[:16, 24:], rows[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        Image.fromarray(rows).save(tmp_path / "a.avif", exif=exif.tobytes(), quality=95)
    except (KeyError, OSError):
        pytest.skip("Pillow without AVIF")
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.avif")).convert("RGB"))[..., ::-1]
    if orientation > 4 and wanted.shape[0] < wanted.shape[1]:
        pytest.skip("this Pillow writes no orientation into AVIF")
    found = read_image(tmp_path / "a.avif")
    assert found.shape == wanted.shape and found.flags["C_CONTIGUOUS"]
    assert np.abs(found.astype(int) - wanted).mean() < 5
    assert inspect_image(tmp_path / "a.avif").size == picture_size(tmp_path / "a.avif") == found.shape[1::-1]


def test_boxes_that_are_none_turn_nothing() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    damaged = b"\0\0\0\x1cmeta\0\0\0\0\0\0\0\x10iprp\0\0\0\x08ipco"
    for content in (b"", b"\0" * 7, b"\0\0\0\2meta", damaged, damaged[:13], b"\0\0\0\0meta\0\0"):
        np.testing.assert_array_equal(turned_avif(image, content), image)
