"""What decoding a JPEG takes: a pass over the samples for each of its scans, however few bytes they have."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from utils.images.decoding_limits import EXIF_HEAD, PART_WORK, DecodingBudget, TooCostly, Unbounded, count_exif

MOST_SCANS = 100  # progressive ones have about ten
_SCAN_WORK = 5_000  # beside that for its samples
_SAMPLE_WORK = 2  # of a scan; and once more for all, when they become pixels
_JUNK_WORK, _MOST_JUNK = 200, 1 << 20  # a byte between the segments of the head, which Pillow reads one by one
# Markers with a length: no padding, no restart. libjpeg, too, ends a scan at the first of them.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START, _END, _SCAN, _APP1, _APP2 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)


class JpegFrame(NamedTuple):
    """A JPEG's size in pixels, and its components: number, and sampling factors across and down."""

    width: int
    height: int
    components: list[tuple[int, int, int]]

    @classmethod
    def read(cls, kind: int, part: bytes) -> JpegFrame:
        """Read the content of a frame's header with this marker; ValueError for one that means nothing."""
        if kind not in _HUFFMAN_FRAMES:
            raise Unbounded("is an arithmetic-coded or lossless JPEG: save it as a usual one")
        if len(part) < 6 or len(part) < 6 + 3 * part[5]:
            raise ValueError("its frame header is cut off")
        height, width, count = struct.unpack_from(">HHB", part, 1)
        components = [(part[i], part[i + 1] >> 4, part[i + 1] & 15) for i in range(6, 6 + 3 * count, 3)]
        if not count or not all(1 <= side <= 4 for _, *sides in components for side in sides):
            raise ValueError("its frame header has components that cannot be")
        return cls(width, height, components)

    def samples(self, numbers: Sequence[int] | None = None) -> int:
        """Return the samples, whole blocks of 64, in a scan of the components with these numbers; None: all."""
        most_across = max(across for _, across, _ in self.components)
        most_down = max(down for *_, down in self.components)
        left, chosen = list(self.components), []
        for number in [one for one, *_ in left] if numbers is None else numbers:
            found = next((one for one in left if one[0] == number), None)
            if found is not None:  # some programs give all components the same number
                left.remove(found)
                chosen.append(found)
        if len(chosen) == 1:
            _, across, down = chosen[0]
            wide, tall = -(-self.width * across // most_across), -(-self.height * down // most_down)
            return 64 * -(-wide // 8) * -(-tall // 8)
        units = -(-self.width // (8 * most_across)) * -(-self.height // (8 * most_down))
        return 64 * units * sum(across * down for _, across, down in chosen)


def _segments(data: bytes, budget: DecodingBudget, place: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, content) of each segment before the end marker, counted, and so is what lies between them."""
    junk, in_head = 0, True
    while (found := _MARKER.search(data, place, end)) and data[found.end() - 1] != _END:
        if in_head:
            junk += found.start() - place
            budget.spend("bytes between its segments", _JUNK_WORK * (found.start() - place))
        if junk > _MOST_JUNK:
            raise TooCostly(f"{junk:,} bytes between its segments")
        budget.part(PART_WORK, "segments")
        kind, start = data[found.end() - 1], found.end()
        place = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
        in_head = in_head and kind != _SCAN
        yield kind, data[start + 2 : place]


def count_jpeg(data: bytes, budget: DecodingBudget, place: int = 2, end: int = sys.maxsize) -> JpegFrame | None:
    """Count scans, segments and EXIF of a JPEG file, or of one that ends at `end` and is read from `place`; its frame.

    Raises what `DecodingBudget` does, Unbounded for what libjpeg decodes at no known cost, and ValueError for damage.
    """
    frame, scans, exif = None, 0, bytearray()
    for kind, part in _segments(data, budget, place, min(end, len(data))):
        if kind in _FRAMES:
            if frame is not None:
                raise ValueError("it has two frames")
            frame = JpegFrame.read(kind, part)
            budget.image(frame.width, frame.height)
            budget.spend("its size", _SAMPLE_WORK * frame.samples())
        elif kind == _SCAN:
            scans += 1
            if frame is None:
                raise ValueError("a scan comes before its size")
            if scans > MOST_SCANS:
                raise TooCostly(f"more than {MOST_SCANS} scans")
            samples = frame.samples(part[1 : 1 + 2 * int.from_bytes(part[:1], "big") : 2])
            reason = f"{scans} scans of {frame.width} x {frame.height} pixels"
            budget.spend(reason, _SCAN_WORK + _SAMPLE_WORK * samples)
        elif kind == _START:
            raise ValueError("it begins twice")
        elif kind == _APP1 and part.startswith(EXIF_HEAD):
            exif += part[len(EXIF_HEAD) :]  # Pillow puts them together, too
        elif kind == _APP2:  # directories of several images; what else may be there is none
            count_exif(part.removeprefix(b"MPF\x00"), budget)
    count_exif(bytes(exif), budget)
    return frame
