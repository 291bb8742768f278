"""One logger for the whole tree. Importing it configures nothing; a script calls `set_up_logging` once."""

from __future__ import annotations

import errno
import logging
import os
import re
import sys

from utils.base.files import printable

LOGGER = logging.getLogger("yolov5")

_REMEDIES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room on the disk, or choose another place")
_COLOURS = "black red green yellow blue magenta cyan white".split()
_STYLES = {name: f"\033[{30 + i}m" for i, name in enumerate(_COLOURS)}
_STYLES |= {f"bright_{name}": f"\033[{90 + i}m" for i, name in enumerate(_COLOURS)}
_STYLES |= {"bold": "\033[1m", "underline": "\033[4m", "end": "\033[0m"}
_CODES = "|".join(map(re.escape, _STYLES.values()))
_COLOURED = re.compile(rf"((?:{_CODES})+)([^\033]*)({re.escape(_STYLES['end'])})")  # what `colorstr` makes


class _Tidy(logging.Formatter):
    """Plain text for information, a coloured prefix for what deserves attention, no colour codes in a file.

    Names may be anybody's: whatever is neither a line end nor a colour of ours is shown as an escape, not sent.
    """

    def __init__(self, colour: bool) -> None:
        super().__init__("%(message)s")
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, with its level where that is a warning or worse."""
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            word = "ERROR" if record.levelno >= logging.ERROR else "WARNING"
            text = f"{colorstr('red' if word == 'ERROR' else 'yellow', 'bold', word)} {text}"
        pieces = _COLOURED.split(text)  # plain, codes, coloured, code, plain ...
        pieces[::2] = ("\n".join(map(printable, words.split("\n"))) for words in pieces[::2])
        return "".join(pieces if self.colour else pieces[::2])


class Fault(RuntimeError):
    """What ends a script with one line: the message says what happened, what is safe, and what to do."""


def colorstr(*parts: str) -> str:
    """The last part wrapped in the ANSI styles named before it; a single part becomes bold blue."""
    *styles, text = parts if len(parts) > 1 else ("blue", "bold", parts[0])
    return "".join(_STYLES[style] for style in styles) + f"{text}{_STYLES['end']}"


def one_line(error: BaseException) -> str:
    """Return an error that ends a script as one line, with file and remedy where known.

    The system's own errors come as `[Errno 28] No space left on device`, often without a name.
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return printable(" ".join(str(error).split())) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "check the path, and who may write there")
    return f"{printable(error.filename or 'a file could not be written')}: {error.strerror}; {remedy}"


def set_up_logging(main_process: bool = True) -> None:
    """Send INFO and above to stderr, from the main process only (the others send errors); calling it twice is harmless.

    The environment's YOLOv5_VERBOSE=false keeps warnings alone.
    """
    quiet = os.environ.get("YOLOv5_VERBOSE", "true").lower() in ("false", "0", "no")  # noqa: SIM112 - v6.1's name
    LOGGER.setLevel(logging.ERROR if not main_process else logging.WARNING if quiet else logging.INFO)
    if not LOGGER.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Tidy(colour=sys.stderr.isatty() and "NO_COLOR" not in os.environ))
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
