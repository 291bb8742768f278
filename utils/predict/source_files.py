"""What a source stands for: files, folders, globs and lists of them; addresses and webcams, which are streams.

What is passed over on the way is counted and said.
"""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from utils.base.files import MIB, decoded, is_hidden, printable, read_bytes, walk_files
from utils.base.log import LOGGER
from utils.images.reading import IMG_FORMATS
from utils.predict.video_files import VID_FORMATS, suffix_of

STREAM_SCHEMES = ("rtsp://", "rtmp://")
WEB_SCHEMES = ("http://", "https://")
LONGEST_LIST = 64 * MIB  # bytes of a text file that lists sources
EXAMPLES, MOST_ENDINGS = 3, 8  # that are named of what is passed over
# Images and videos of other kinds, which people take for those that can be read
OTHER_MEDIA = frozenset(
    "apng arw avif bpg cr2 cr3 divx eps exr f4v gifv hdr heic heics heif hif icns ico j2k jfi jfif jif jp2 jpe jpx jxl "
    "jxr m2v m3u8 mjpg mpe mpv mxf nef ogm orf pbm pct pgm pnm ppm psb psd qt raf raw rm rmvb rw2 svg tga wbmp wdp "
    "y4m".split()
)
REMEDY = "convert images to JPEG or PNG, videos to MP4"
FORMATS = (*IMG_FORMATS, *VID_FORMATS)
FORMATS_TEXT = f"images ({' '.join(IMG_FORMATS)}) and videos ({' '.join(VID_FORMATS)})"


def is_url(text: str) -> bool:
    """Whether this is a network address that can be looked at."""
    return text.lower().startswith((*STREAM_SCHEMES, *WEB_SCHEMES))


def sources_in(source: str) -> tuple[list[str], list[str]]:
    """Return the (files, streams) that a source stands for, files in order.

    A text file lists sources: its paths are looked for from here, then from the list's own folder. Blank lines and
    lines that begin with # are skipped. Entries that are not there, and lists in lists, are a warning with their
    number. Raises ValueError that says what was looked for if there is nothing.
    """
    if suffix_of(source) != "txt" or is_url(source):
        return _one_entry(source)
    name, entries = printable(source), _entries(Path(source).expanduser())
    files: list[str] = []
    streams: list[str] = []
    problems: list[str] = []
    for number, entry in entries.items():
        try:
            more_files, more_streams = _one_entry(entry)
            files += more_files
            streams += more_streams
        except ValueError as error:
            problems.append(f"{name}:{number}: {error}")
    if problems:
        few = "; ".join(problems[:EXAMPLES]) + "; ..." * (len(problems) > EXAMPLES)
        LOGGER.warning(f"{len(problems)} of {len(entries)} lines are passed over, correct or remove them: {few}")
    if not files and not streams:
        raise ValueError(f"{name} names nothing that can be looked at: one file, folder, address or webcam a line")
    return files, streams


def _entries(listing: Path) -> dict[int, str]:
    """The entries of a list by line number; a path is the file in the list's folder when only that exists."""
    try:
        lines = decoded(read_bytes(listing, LONGEST_LIST)).splitlines()
    except (OSError, ValueError) as error:
        raise ValueError(f"list of sources {printable(listing)} cannot be read: {printable(str(error))}") from error
    entries = {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()[:1] not in ("", "#")}
    for number, entry in entries.items():
        if entry[0] == entry[-1] and entry[0] in "\"'" and len(entry) > 1:  # as other programs write it
            entry = entry[1:-1].strip()
        spellings = dict.fromkeys((entry, entry.replace("\\", "/")))  # Windows' separators
        places = [place for one in spellings for place in (one, str(listing.parent / one))]
        entries[number] = entry if is_url(entry) else next((place for place in places if os.path.exists(place)), entry)
    return entries


def _one_entry(source: str) -> tuple[list[str], list[str]]:
    """(files, streams) that one entry stands for."""
    if source.isdecimal():
        return [], [source]
    if is_url(source):
        if urlsplit(source).hostname in {"youtu.be", "youtube.com", "www.youtube.com", "m.youtube.com"}:
            raise ValueError(f"{source}: a video page cannot be opened; download the video and give its file")
        is_image = source.lower().startswith(WEB_SCHEMES) and suffix_of(source) in IMG_FORMATS
        return ([source], []) if is_image else ([], [source])
    return _local_files(os.path.expanduser(source)), []


def _local_files(source: str) -> list[str]:
    name = printable(source)
    if os.path.isfile(source):
        if suffix_of(source) not in FORMATS:
            raise ValueError(f"{name} is no file that can be looked at; known are {FORMATS_TEXT}, and .txt lists")
        return [source]
    found = _found(source)
    usable = sorted(file for file in found if suffix_of(file) in FORMATS and os.path.isfile(file))
    passed = passed_over(set(found) - set(usable))
    if not usable:
        there = f", there are {passed}" if passed else ""
        deeper = f"; for those in folders below it give '{name}/**/*'" * os.path.isdir(source)
        raise ValueError(f"nothing found in {name}: looked for {FORMATS_TEXT}{there}{deeper}")
    if passed:
        level = logging.WARNING if REMEDY in passed else logging.INFO
        LOGGER.log(level, f"{name}: {len(usable)} file{'s' * (len(usable) != 1)} to look at; passed over: {passed}")
    return usable


def _found(source: str) -> list[str]:
    """What is in a folder, or what a glob stands for."""
    name = printable(source)
    if os.path.isdir(source):
        return [os.path.join(source, file) for file in os.listdir(source) if not is_hidden(file, ".")]
    if os.path.exists(source):
        raise ValueError(f"{name} is a pipe or device; save what it sends as a file, and give that")
    if not glob.has_magic(source):
        raise ValueError(
            f"{name} does not exist (looked in {printable(Path(source).absolute().parent)}); correct the path"
        )
    return _matches(source) if "**" in Path(source).parts else glob.glob(source)


def passed_over(files: Iterable[str]) -> str:
    """Return what is not looked at, counted by ending, the most frequent first, with the remedy; '' for nothing.

    Hidden files, and links that lead nowhere, are not counted.
    """
    seen = [file for file in files if not os.path.basename(file).startswith(".")]
    counts = Counter(sorted(suffix_of(file) for file in seen if os.path.isfile(file))).most_common()
    kinds = [f"{count} {printable('.' + ending)[:20] if ending else 'without ending'}" for ending, count in counts]
    if len(kinds) > MOST_ENDINGS:
        kinds[MOST_ENDINGS:] = [f"{sum(count for _, count in counts[MOST_ENDINGS:])} others"]
    text = ", ".join(kinds) + f" ({REMEDY})" * any(ending in OTHER_MEDIA for ending, _ in counts)
    folders = sum(map(os.path.isdir, seen))
    below = f"{folders} folder{'s' * (folders != 1)} (end the source in '/**/*' to look into them)" if folders else ""
    return "; ".join(filter(None, (text, below)))


def _matches(pattern: str) -> list[str]:
    """Files that a glob with `**` stands for, which is followed into links unless they lead in circles."""
    parts = Path(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    base = os.path.join(*parts[:first]) if first else ""
    files = [file if base else file.removeprefix(os.curdir + os.sep) for file in walk_files(base or ".")]
    return [file for file in files if _fits(Path(os.path.relpath(file, base or None)).parts, parts[first:])]


def _fits(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether the parts of a path are what a pattern's parts ask for; hidden names only where they are named."""
    if not wanted or not parts:
        return not parts and all(part == "**" for part in wanted)
    hidden = parts[0].startswith(".") and not wanted[0].startswith(".")
    if wanted[0] == "**":
        return _fits(parts, wanted[1:]) or (not hidden and _fits(parts[1:], wanted))
    return not hidden and fnmatch.fnmatch(parts[0], wanted[0]) and _fits(parts[1:], wanted[1:])
