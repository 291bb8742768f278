"""Trained detectors as files for other programs: the one way through all formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.exporters.compare import compare_with_pytorch
from models.exporters.formats import FORMATS, Format, check_formats
from models.exporters.job import DEFAULT_OPSET, ExportError, ExportJob, ExportSettings, NmsSettings
from utils.base.log import LOGGER
from utils.base.paths import shown

__all__ = [
    "DEFAULT_OPSET",
    "FORMATS",
    "ExportError",
    "ExportJob",
    "ExportSettings",
    "Format",
    "NmsSettings",
    "check_formats",
    "export",
]


def export(job: ExportJob, names: Sequence[str]) -> list[Path]:
    """Write the formats named, each loaded again in its own runtime and compared; returns the files.

    Raises ValueError as `check_formats` does, before anything is written, and ExportError for a file that differs.
    """
    names = list(dict.fromkeys(names))
    check_formats(names, job.settings, job.routes)
    files = []
    for name in names:
        kind = FORMATS[name]
        LOGGER.info(f"\n{kind.title}: writing {shown(job.file(kind.ending))}")
        files.append(kind.write(job))
        if kind.runs:
            compare_with_pytorch(job, files[-1])
        else:
            LOGGER.warning(f"{files[-1].name} was not compared: {kind.title} does not run on this machine")
    return files
