"""One logger for the whole tree. Importing it configures nothing; a script calls `set_up_logging` once."""

from __future__ import annotations

import logging
import os
import sys

LOGGER = logging.getLogger("yolov5")

_STYLES = {
    **{name: f"\033[{30 + i}m" for i, name in enumerate("black red green yellow blue magenta cyan white".split())},
    **{
        f"bright_{name}": f"\033[{90 + i}m"
        for i, name in enumerate("black red green yellow blue magenta cyan white".split())
    },
    "bold": "\033[1m",
    "underline": "\033[4m",
    "end": "\033[0m",
}


class _Tidy(logging.Formatter):
    """Plain text for information, a coloured prefix for what deserves attention, no colour codes in a file."""

    def __init__(self, colour: bool) -> None:
        super().__init__("%(message)s")
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, with its level where that is a warning or worse."""
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            word = "ERROR" if record.levelno >= logging.ERROR else "WARNING"
            text = f"{colorstr('red' if word == 'ERROR' else 'yellow', 'bold', word)} {text}"
        if not self.colour:
            for code in _STYLES.values():
                text = text.replace(code, "")
        return text


def colorstr(*parts: str) -> str:
    """The last part wrapped in the ANSI styles named before it; a single part becomes bold blue."""
    *styles, text = parts if len(parts) > 1 else ("blue", "bold", parts[0])
    return "".join(_STYLES[style] for style in styles) + f"{text}{_STYLES['end']}"


def set_up_logging(main_process: bool = True) -> None:
    """Send INFO and above to stderr, from the main process only; env YOLOv5_VERBOSE=false keeps warnings alone.

    Calling it twice changes nothing, so scripts that call each other stay quiet about it.
    """
    quiet = os.environ.get("YOLOv5_VERBOSE", "true").lower() in ("false", "0", "no")
    LOGGER.setLevel(logging.INFO if main_process and not quiet else logging.WARNING)
    if not LOGGER.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Tidy(colour=sys.stderr.isatty() and "NO_COLOR" not in os.environ))
        LOGGER.addHandler(handler)
        LOGGER.propagate = False
