"""Converters of others: kept quiet while they work, and a failure of theirs in one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.backends.hush import hushed
from models.exporters.job import ExportError
from models.exporters.programs import quiet


@contextmanager
def converting(tool: str, is_loud: bool = False) -> Iterator[None]:
    """Around the work of a converter. Raises ExportError for whatever it raises, and where it ends the program."""
    try:
        with quiet(), hushed(is_loud):
            yield
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = lines[0][:160]
        raise ExportError(f"{tool} could not convert the network ({said}); --verbose shows what it prints") from error


def cleared(place: Path) -> Path:
    """The path of a file or folder, gone if an earlier export left one."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    return place
