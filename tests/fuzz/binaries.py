"""Inputs that are no text: images, archives, caches."""

from __future__ import annotations

import functools
import gzip
import io
import logging
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.fuzz.guard import Kind
from tests.fuzz.mutate import NUMBERS, WORDS, damaged
from utils.base.arrays import read_array, read_arrays
from utils.data.image_cache import DiskCache
from utils.data.image_files import Problem
from utils.data.label_arrays import LabelIndex
from utils.data.label_index import load_cache, save_cache
from utils.data.labels import check_pair
from utils.images.reading import read_image
from utils.prepare.archives import extract

SIDES = (0, 1, 9, 10, 64, 16383, 30000, 60000, 65535, 2**31 - 1, 2**32 - 1)


# ---- images
@functools.cache
def _images() -> tuple[tuple[str, bytes], ...]:
    """One of each format and of the odd ones: grey, palette, 16 bits, turned by EXIF, several pages."""
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    colour, found = Image.fromarray(noise), []
    exif = colour.getexif()
    exif[0x0112] = 6
    exif[0x010E] = "words"
    for kind, options in (
        *(("jpeg", {}), ("jpeg", {"exif": exif}), ("jpeg", {"progressive": True}), ("png", {}), ("bmp", {})),
        *(("png", {"exif": exif}), ("tiff", {}), ("tiff", {"compression": "tiff_lzw"})),
        ("tiff", {"compression": "tiff_adobe_deflate"}),
        *(("webp", {}), ("webp", {"lossless": True, "exif": exif}), ("gif", {}), ("mpo", {}), ("ppm", {})),
    ):  # fmt: skip
        content = io.BytesIO()
        colour.save(content, kind, **options)
        found.append((kind, content.getvalue()))
    for image in (colour.convert("P"), colour.convert("1"), Image.fromarray(noise[..., 0].astype(np.uint16) * 257)):
        content = io.BytesIO()
        image.save(content, "png")
        found.append(("png", content.getvalue()))
    return tuple(found)


def _resized(rng: Random, kind: str, content: bytes) -> bytes:
    """The same pixels, with another size in the header."""
    sides = rng.choice(SIDES), rng.choice(SIDES)
    if kind == "png":
        head = content[12:16] + struct.pack(">II", *sides) + content[24:29]
        return content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:]
    if kind == "bmp":
        return content[:18] + struct.pack("<II", *sides) + content[26:]
    if kind == "jpeg" and (place := content.find(b"\xff\xc0")) > 0:
        return content[: place + 5] + struct.pack(">HH", *(side & 0xFFFF for side in sides)) + content[place + 9 :]
    if kind == "tiff":  # ImageWidth, of any type
        place = content.find(b"\x00\x01", 8)
        return content[: place + 8] + struct.pack("<I", sides[0]) + content[place + 12 :] if place > 0 else content
    return damaged(rng, content)


def _png_parts(rng: Random, content: bytes) -> bytes:
    """A part is repeated, dropped, moved or damaged, and its checksum is right again."""
    parts, place = [], 8
    while place + 12 <= len(content):
        length = struct.unpack_from(">I", content, place)[0]
        parts.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    number = rng.randrange(len(parts))
    name, body = parts[number]
    other = rng.choice((b"iCCP", b"zTXt", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"iTXt"))
    bomb = (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 22)))
    before = [(other, damaged(rng, body)), (name, body)]
    choices = ([(name, damaged(rng, body))], before, [(name, body)] * 3, [bomb, (name, body)], [])
    parts[number : number + 1] = rng.choice(choices)
    packed = (struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in parts)
    return content[:8] + b"".join(packed)


def _make_image(rng: Random) -> bytes:
    kind, content = rng.choice(_images())
    change = rng.randrange(4)
    if change == 1 and kind == "png":
        return _png_parts(rng, content)
    return damaged(rng, content) if change else _resized(rng, kind, content)


def _use_image(path: Path) -> None:
    """Both ways of looking at an image must either work or say why not."""
    record = check_pair(str(path), "none.txt")
    try:
        image = read_image(path)
    except ValueError as error:
        image, said = None, str(error)
    if record.size is None:
        raise ValueError(str(record.problem))
    if image is None:
        raise ValueError(said)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


# ---- archives
NAMES = (
    *("a.txt", "a.txt", "A.TXT", "d/", "d/b.txt", "d", "d/b.txt/c", "../out", "d/../../out", "/tmp/out", "..\\out"),
    *("C:out", "//host/out", "a" * 300, "d/" * 600 + "x", "", ".", "..", "d/./b", "a\nb", "图", "con", "a:b", "~/x"),
    "a.unpacking",
)  # fmt: skip


def _contents(rng: Random) -> list[tuple[str, bytes]]:
    files = []
    for _ in range(rng.randrange(1, 5)):
        name = rng.choice(("a.txt", "d/b.txt", "d/", "图.png", "e", rng.choice((*NAMES, *WORDS[:20]))))
        files.append((name.replace("\0", ""), rng.choice((b"", b"text", bytes(5000), b"\x00\xff" * 40))))
    return files


def _make_zip(rng: Random) -> bytes:
    content = io.BytesIO()
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in _contents(rng):
            info = zipfile.ZipInfo(name or "x")
            info.compress_type = rng.choice(methods)
            info.external_attr = rng.choice((0, 0, 0o100644, 0o040755, 0o120777, 0o010644, 0o020666)) << 16
            info.filename = name
            archive.writestr(info, body)
    whole = bytearray(content.getvalue())
    if rng.randrange(3) == 0:  # one field of one header says something else
        heads = [place for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") if (place := whole.find(mark)) >= 0]
        place = rng.choice(heads) + rng.randrange(4, 22)
        whole[place : place + 2] = struct.pack("<H", rng.choice(NUMBERS) & 0xFFFF)
    return damaged(rng, bytes(whole)) if rng.randrange(3) == 0 else bytes(whole)


def _make_tar(rng: Random) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=rng.choice((0, 1, 2))) as archive:
        for name, body in _contents(rng):
            info = tarfile.TarInfo(name or "x")
            info.size = len(body)
            info.type = rng.choice((b"0", b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6", b"S", b"L", b"x", b"g", b"7"))
            info.linkname = rng.choice(("/etc/passwd", "a.txt", "..", "x" * 300))
            try:
                archive.addfile(info, io.BytesIO(body))
            except (ValueError, UnicodeError):
                continue
    whole = bytearray(content.getvalue())
    if len(whole) >= 512 and rng.randrange(2) == 0:  # a field of the first header says something else, and is right
        fields = ((0, 100), (100, 8), (124, 12), (156, 1), (157, 100), (257, 8), (345, 155), (386, 12))
        place, length = rng.choice(fields)
        large, negative = b"\x80" + struct.pack(">Q", rng.choice(NUMBERS)), struct.pack(">q", -rng.choice(NUMBERS[:12]))
        words = (large, b"\xff" * 4 + negative, b"77777777777", b"-1", b"../x", b"S", b"\0" * 12, rng.randbytes(8))
        word = rng.choice(words)
        whole[place : place + length] = word[:length].ljust(length, b"\0")
        whole[148:156] = b" " * 8
        whole[148:156] = b"%06o\0 " % (sum(whole[:512]) & 0o777777)
    return damaged(rng, bytes(whole)) if rng.randrange(3) == 0 else bytes(whole)


def _use_archive(path: Path) -> None:
    out = path.parent / "out"
    extract(path, out)
    for file in out.rglob("*"):
        assert not file.is_symlink() and (file.is_file() or file.is_dir())


# ---- caches
@functools.cache
def _cache_seed() -> tuple[bytes, bytes]:
    """A label cache of one image, and one array."""
    with tempfile.TemporaryDirectory() as name:
        folder, array = Path(name), io.BytesIO()
        Image.new("RGB", (24, 16)).save(folder / "a.png")
        (folder / "a.txt").write_text("0 .5 .5 .2 .2\n1 .1 .1 .4 .1 .4 .5 .1 .5 .2 .2\n")
        index = LabelIndex.pack([check_pair(str(folder / "a.png"), str(folder / "a.txt"))])
        index.problems = [Problem("a.png", 1, "x", "y")]
        save_cache(folder / "x.npz", index, "stamp")
        np.save(array, np.zeros((16, 24, 3), np.uint8))
        return (folder / "x.npz").read_bytes(), array.getvalue()


def _make_array(rng: Random) -> bytes:
    """An array whose header lies, or that is damaged."""
    kind = rng.choice(("|u1", "<f4", "|O", "<i8", "<U9", "|V7", "<M8[s]", "<c16", "|b1", [("a", "<i4")], "(2,3)f4"))
    sides = (0, 1, 3, 16, 24, 2**20, 2**40, 2**62, -1)
    shape = tuple(rng.choice(sides) for _ in range(rng.randrange(4)))
    body = rng.choice((b"", bytes(1152), rng.randbytes(40)))
    if rng.randrange(3) == 0:
        return damaged(rng, _cache_seed()[1])
    text = f"{{'descr': {kind!r}, 'fortran_order': {rng.choice((True, False, 1))}, 'shape': {shape}, }}"
    other = (text[:-9], "(" * 90, "{" + text, text + "\n" * 9, "1", "__import__('os').system('true')")
    head = rng.choice((text, text, *other))
    version = rng.choice((1, 1, 2, 3, 9))
    length = struct.pack("<H" if version == 1 else "<I", len(head) + rng.choice((0, 0, 1, 2**15)))
    return b"\x93NUMPY" + bytes([version, 0]) + length + head.encode() + body


def _make_cache(rng: Random) -> bytes:
    """An array of a label cache is another one, the header says something else, or the archive is damaged."""
    seed = _cache_seed()[0]
    if rng.randrange(3) == 0:
        return damaged(rng, seed)
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(seed)) as old, zipfile.ZipFile(content, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            body = old.read(name)
            method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
            if name == chosen:
                array = np.load(io.BytesIO(body))
                body = rng.choice((_make_array, _other_values(array), lambda rng, body=body: damaged(rng, body)))(rng)
            new.writestr(name if name != chosen or rng.randrange(6) else "other", body, method)
    return content.getvalue()


def _other_values(array: np.ndarray) -> Callable[[Random], bytes]:
    """The array with other numbers, another type or shape, as a sound file."""

    def make(rng: Random) -> bytes:
        changed = array.copy().ravel()
        if len(changed) and rng.randrange(2):
            with np.errstate(all="ignore"):
                changed[rng.randrange(len(changed))] = np.array(rng.choice(NUMBERS)).astype(changed.dtype)
        elif changed.dtype == np.uint8:
            changed = np.frombuffer(damaged(rng, changed.tobytes()), np.uint8)
        else:
            shape = rng.choice(((-1, 1), (1, -1), (-1,)))
            changed = changed.astype(rng.choice(("f4", "i8", "u1", "f8"))).reshape(shape)
        content = io.BytesIO()
        np.save(content, changed)
        return content.getvalue()

    return make


def _use_cache(path: Path) -> None:
    """A damaged cache is as good as none."""
    index = load_cache(path, "stamp")
    if index is None:
        return
    for number in range(len(index)):
        index.path(number), index.labels(number), index.segments(number)
    index.take(np.arange(len(index))[::-1])
    assert index.sizes.shape == (len(index), 2) and index.all_labels.shape[1] == 5


class _One:
    """A data set of one image, as far as a cache of images looks at it."""

    sizes = np.array([[24, 16]])


def _use_image_cache(path: Path) -> None:
    cache = object.__new__(DiskCache)
    cache.index, cache.size = _One(), 24
    cache.file = lambda position: path
    image = cache.get(0)
    assert image is None or (image.shape == (16, 24, 3) and image.dtype == np.uint8)


def _quiet(use: Callable[[Path], None]) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        logging.disable()
        try:
            use(path)
        finally:
            logging.disable(logging.NOTSET)

    return run


BINARIES = (
    *(Kind(f"image called .{end}", f"input.{end}", _make_image, _use_image) for end in ("jpg", "png", "tif")),
    Kind("zip", "input.zip", _make_zip, _quiet(_use_archive)),
    Kind("tar", "input.tar", _make_tar, _quiet(_use_archive)),
    Kind("tar.gz", "input.tar.gz", lambda rng: gzip.compress(_make_tar(rng), 1), _quiet(_use_archive)),
    Kind(".npy", "input.npy", _make_array, lambda path: read_array(path, 1 << 20)),
    Kind(".npz", "input.npz", _make_cache, lambda path: read_arrays(path, 1 << 20)),
)
CACHES = (
    Kind("label cache", "input.npz", _make_cache, _quiet(_use_cache)),
    Kind("image cache", "input.npy", _make_array, _use_image_cache),
)
