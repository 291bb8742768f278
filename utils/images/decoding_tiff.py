"""What decoding a TIFF takes: its strips or tiles, which need not be smaller than the image, nor few."""

from __future__ import annotations

from typing import NamedTuple

from utils.images.decoding_jpeg import count_jpeg
from utils.images.decoding_limits import ROW_WORK, DecodingBudget, Tag, TagReader, TooCostly, Unbounded, count_linked

_STRIP_WORK = 20_000  # beside that for its pixels
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _PLANES = 256, 257, 258, 259, 277, 278, 284
_STRIPS, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 279, 322, 323, 324, 325
_LAYOUT = {256, 257, 258, 259, 273, 277, 278, 279, 284, 322, 323, 324, 325}
_RAW, _TIFF_JPEG, _ZSTANDARD = 1, 7, 50000
_KINDS = {_RAW: 2, 2: 16, 3: 16, 4: 16, 5: 4, _TIFF_JPEG: 6, 8: 4, 32946: 4, 32773: 2, _ZSTANDARD: 4}  # -> work a byte
_WINDOW = 1 << 27  # bytes that Zstandard may look back


class _Layout(NamedTuple):
    """How an image lies in a TIFF: strips or tiles of so many rows of so many bytes, where they are, how long."""

    name: str
    width: int
    rows: int
    row_bytes: int
    number: int
    places: tuple[int, ...]
    sizes: tuple[int, ...]


def _layout(reader: TagReader, tags: dict[int, Tag], width: int, height: int) -> _Layout:
    """Return the layout of an image of this size; ValueError for one that cannot be."""

    def number(tag: int, missing: int) -> int:
        return reader.numbers(tags, tag, (missing,))[0]

    if tags.keys().isdisjoint((_TILE_WIDTH, _TILE_HEIGHT, _TILES)):
        name, wide, tall = "strips", width, min(number(_ROWS, height), height)
        places, sizes = reader.numbers(tags, _STRIPS), reader.numbers(tags, _STRIP_BYTES)
    elif _STRIPS in tags:
        raise ValueError("it has both strips and tiles")
    else:
        name, wide, tall = "tiles", number(_TILE_WIDTH, 0), number(_TILE_HEIGHT, 0)
        places, sizes = reader.numbers(tags, _TILES), reader.numbers(tags, _TILE_BYTES)
    if wide < 1 or tall < 1:
        raise ValueError("its strips or tiles have no size")
    samples, planes = number(_SAMPLES, 1), 1
    if number(_PLANES, 1) == 2:
        samples, planes = 1, samples
    row_bytes = -(-wide * samples * max((1, *reader.numbers(tags, _BITS))) // 8)
    count = max(len(places), -(-width // wide) * -(-height // tall) * planes)
    return _Layout(name, wide, tall, row_bytes, count, places, sizes)


def count_tiff(data: bytes, budget: DecodingBudget) -> None:
    """Count the first image of a TIFF file: what each strip or tile unpacks to, and the bytes that it reads.

    Raises what `DecodingBudget` does, Unbounded for a compression of no known cost, and ValueError for damage.
    """
    reader = TagReader(data, budget)
    tags = reader.tags(reader.first)
    if repeated := reader.repeated & _LAYOUT:
        raise ValueError(f"tag {min(repeated)} is there twice")
    width, height, kind = (
        reader.numbers(tags, tag, (missing,))[0] for tag, missing in ((_WIDTH, 0), (_HEIGHT, 0), (_COMPRESSION, _RAW))
    )
    budget.image(width, height)
    if kind not in _KINDS:
        raise Unbounded(f"is a TIFF of compression {kind}: save it with LZW or Deflate")
    if kind == _ZSTANDARD:  # it may need that whatever the image, which is no reason to refuse it
        budget.memory, budget.most_memory = budget.memory + _WINDOW, budget.most_memory + _WINDOW
    layout = _layout(reader, tags, width, height)
    unpacking = layout.rows * (ROW_WORK + layout.row_bytes * _KINDS[kind])
    what = f"{layout.number:,} {layout.name} of {layout.width:,} x {layout.rows:,} pixels"
    memory = layout.row_bytes * layout.rows if kind != _RAW else 0
    budget.spend(what, layout.number * (_STRIP_WORK + unpacking), memory)
    if kind != _RAW and len(layout.places) > max(len(layout.sizes), 1):
        raise ValueError(f"it does not say how long its {layout.name} are")
    total = sum(min(size, len(data)) for size in layout.sizes)
    if total > 2 * len(data):
        raise TooCostly(f"{layout.name} that lie over each other")
    budget.spend(f"its {layout.name}", 16 * total)
    if kind == _TIFF_JPEG:
        _count_jpegs(data, layout, budget)
    count_linked(reader, tags)


def _count_jpegs(data: bytes, layout: _Layout, budget: DecodingBudget) -> None:
    """Count the scans of each strip or tile; ValueError for one that is larger than it may be."""
    inner = DecodingBudget(budget.most_work, budget.most_memory, work=budget.work)
    for place, size in zip(layout.places, layout.sizes or [len(data)], strict=False):
        frame = count_jpeg(data, inner, place + 2, place + size)
        if frame is not None and (frame.width > layout.width or frame.height > layout.rows):
            raise ValueError(f"one of its {layout.name} is larger than it should be")
    budget.spend(f"its {layout.name}", inner.work - budget.work)
