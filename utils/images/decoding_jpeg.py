"""What decoding a JPEG takes: a pass over the samples for each of its scans, however few bytes they have."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from utils.images.decoding_limits import EXIF_HEAD, PART_WORK, CostTally, TooCostly, Unbounded, count_exif

MOST_SCANS = 100  # progressive ones have about ten
_SCAN_WORK = 5_000  # beside that for its samples
_SAMPLE_WORK = 2  # of a scan; and once more for all, when they become pixels
_JUNK_WORK, _MOST_JUNK = 200, 1 << 20  # a byte between the segments of the head, which Pillow reads one by one
# Markers with a length: no padding, no restart. libjpeg, too, ends a scan at the first of them.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_START, _END, _SCAN, _APP1, _APP2 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """A JPEG's size in pixels, and its components: number, and sampling factors across and down."""

    width: int
    height: int
    components: list[tuple[int, int, int]]

    @classmethod
    def read(cls, part: bytes) -> JpegFrame:
        """From the content of a frame's header; ValueError for one that means nothing."""
        if len(part) < 6 or len(part) < 6 + 3 * part[5]:
            raise ValueError("its frame header is cut off")
        height, width, count = struct.unpack_from(">HHB", part, 1)
        rows = [part[6 + 3 * i : 9 + 3 * i] for i in range(count)]
        components = [(row[0], row[1] >> 4, row[1] & 15) for row in rows]
        if not count or not all(1 <= side <= 4 for _, *sides in components for side in sides):
            raise ValueError("its frame header has components that cannot be")
        return cls(width, height, components)

    def samples(self, numbers: list[int] | None = None) -> int:
        """How many samples a scan of the components with these numbers goes through, whole blocks of 64; None: all."""
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


class _Segments:
    """What the segments of a JPEG tell, one after the other."""

    def __init__(self, tally: CostTally) -> None:
        self.tally = tally
        self.frame: JpegFrame | None = None
        self.scans = 0
        self.exif: list[bytes] = []

    def take(self, kind: int, part: bytes) -> None:
        """Count a segment of this marker and content."""
        self.tally.part(PART_WORK, "segments")
        if kind == _START:
            raise ValueError("it begins twice")
        if kind in _FRAMES:
            self._take_frame(kind, part)
        elif kind == _SCAN:
            self._take_scan(part)
        elif kind == _APP1 and part.startswith(EXIF_HEAD):
            self.exif.append(part[len(EXIF_HEAD) :])  # Pillow puts them together, too
        elif kind == _APP2 and part.startswith(b"MPF\x00"):
            count_exif(part[4:], self.tally)

    def _take_frame(self, kind: int, part: bytes) -> None:
        if kind not in _HUFFMAN_FRAMES:
            raise Unbounded("is an arithmetic-coded or lossless JPEG: save it as a usual one")
        if self.frame is not None:
            raise ValueError("it has two frames")
        self.frame = JpegFrame.read(part)
        self.tally.image(self.frame.width, self.frame.height)
        self.tally.spend(_SAMPLE_WORK * self.frame.samples(), "its size")

    def _take_scan(self, part: bytes) -> None:
        if self.frame is None:
            raise ValueError("a scan comes before its size")
        self.scans += 1
        if self.scans > MOST_SCANS:
            raise TooCostly(f"more than {MOST_SCANS} scans")
        samples = self.frame.samples([*part[1 : 1 + 2 * part[0] : 2]] if part else [])
        width, height = self.frame.width, self.frame.height
        self.tally.spend(_SCAN_WORK + _SAMPLE_WORK * samples, f"{self.scans} scans of {width} x {height} pixels")


def count_jpeg(data: bytes, tally: CostTally, place: int = 2, end: int | None = None) -> JpegFrame | None:
    """Count scans, segments and EXIF of a JPEG file, or of one that ends at `end` and is read from `place`; its frame.

    Raises what `CostTally` does, Unbounded for what libjpeg decodes at no known cost, and ValueError for damage.
    """
    end = len(data) if end is None else min(end, len(data))
    seen, junk = _Segments(tally), 0
    while found := _MARKER.search(data, place, end):
        if not seen.scans:
            junk += found.start() - place
            tally.spend(_JUNK_WORK * (found.start() - place), "bytes between its segments")
        if junk > _MOST_JUNK:
            raise TooCostly(f"{junk:,} bytes between its segments")
        kind, start = data[found.end() - 1], found.end()
        if kind == _END:
            break
        place = start + max(int.from_bytes(data[start : start + 2], "big"), 2)
        seen.take(kind, data[start + 2 : place])
    count_exif(b"".join(seen.exif), tally)
    return seen.frame
