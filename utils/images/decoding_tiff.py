"""What decoding a TIFF takes: its strips or tiles, which need not be smaller than the image, nor few."""

from __future__ import annotations

from dataclasses import dataclass

from utils.images.decoding_jpeg import count_jpeg
from utils.images.decoding_limits import ROW_WORK, CostTally, Tag, TagReader, TooCostly, Unbounded, count_linked

_STRIP_WORK = 20_000  # beside that for its pixels
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_LAYOUT = (256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325)
_RAW, _TIFF_JPEG, _ZSTANDARD = 1, 7, 50000
_KINDS = {_RAW: 2, 2: 16, 3: 16, 4: 16, 5: 4, _TIFF_JPEG: 6, 8: 4, 32946: 4, 32773: 2, _ZSTANDARD: 4}  # -> work a byte
_WINDOW = 1 << 27  # bytes that Zstandard may look back


@dataclass(frozen=True, slots=True)
class _Layout:
    """How an image lies in a TIFF: strips or tiles of so many rows of so many bytes, where they are, how long."""

    width: int
    rows: int
    row_bytes: int
    count: int
    places: tuple[int, ...]
    sizes: tuple[int, ...]
    name: str

    @classmethod
    def read(cls, reader: TagReader, tags: dict[int, Tag], size: tuple[int, int]) -> _Layout:
        """From the tags of an image of this (width, height); ValueError for a layout that cannot be."""
        width, height = size
        tiled = any(tag in tags for tag in (_TILE_WIDTH, _TILE_HEIGHT, _TILES))
        if tiled and _STRIPS in tags:
            raise ValueError("it has both strips and tiles")
        if tiled:
            wide, tall = reader.number(tags, _TILE_WIDTH, 0), reader.number(tags, _TILE_HEIGHT, 0)
            places, sizes = reader.numbers(tags, _TILES), reader.numbers(tags, _TILE_BYTES)
        else:
            wide, tall = width, min(reader.number(tags, _ROWS, height), height)
            places, sizes = reader.numbers(tags, _STRIPS), reader.numbers(tags, _STRIP_BYTES)
        if wide < 1 or tall < 1:
            raise ValueError("its strips or tiles have no size")
        samples = reader.number(tags, _SAMPLES, 1)
        planes = samples if reader.number(tags, _PLANES, 1) == 2 else 1
        row_bits = wide * (samples if planes == 1 else 1) * max((1, *reader.numbers(tags, _BITS)))
        count = max(len(places), -(-width // wide) * -(-height // tall) * planes)
        return cls(wide, tall, -(-row_bits // 8), count, places, sizes, "tiles" if tiled else "strips")


def count_tiff(data: bytes, tally: CostTally) -> None:
    """Count the first image of a TIFF file.

    Raises what `CostTally` does, Unbounded for a compression of no known cost, and ValueError for damage.
    """
    reader = TagReader(data, tally)
    tags = reader.tags(reader.first)
    if doubled := reader.twice.intersection(_LAYOUT):
        raise ValueError(f"tag {min(doubled)} is there twice")
    tally.image(reader.number(tags, _WIDTH, 0), reader.number(tags, _HEIGHT, 0))
    kind = reader.number(tags, _COMPRESSION, _RAW)
    if kind not in _KINDS:
        raise Unbounded(f"is a TIFF of compression {kind}: save it with LZW or Deflate")
    if kind == _ZSTANDARD:
        tally.concede(_WINDOW)
    _count_strips(reader, _Layout.read(reader, tags, tally.size), kind, tally)
    count_linked(reader, tags)


def _count_strips(reader: TagReader, layout: _Layout, kind: int, tally: CostTally) -> None:
    """Count what each strip or tile unpacks to, and the bytes of the file that it reads."""
    what = f"{layout.count:,} {layout.name} of {layout.width:,} x {layout.rows:,} pixels"
    unpacking = layout.rows * (ROW_WORK + layout.row_bytes * _KINDS[kind])
    tally.spend(layout.count * (_STRIP_WORK + unpacking), what)
    if kind != _RAW:
        tally.hold(layout.row_bytes * layout.rows, what)
    if kind != _RAW and len(layout.places) > max(len(layout.sizes), 1):
        raise ValueError(f"it does not say how long its {layout.name} are")
    total = sum(min(size, len(reader.data)) for size in layout.sizes)
    if total > 2 * len(reader.data):
        raise TooCostly(f"{layout.name} that lie over each other")
    tally.spend(16 * total, f"its {layout.name}")
    if kind == _TIFF_JPEG:
        _count_jpegs(reader.data, layout, tally)


def _count_jpegs(data: bytes, layout: _Layout, tally: CostTally) -> None:
    """Count the scans of each strip or tile; ValueError for one that is larger than it may be."""
    inner = CostTally(tally.most_work, tally.most_memory, work=tally.work)
    for place, size in zip(layout.places, layout.sizes or [len(data)], strict=False):
        frame = count_jpeg(data, inner, place + 2, place + size)
        if frame is not None and (frame.width > layout.width or frame.height > layout.rows):
            raise ValueError(f"one of its {layout.name} is larger than it should be")
    tally.spend(inner.work - tally.work, f"its {layout.name}")
