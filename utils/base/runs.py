"""What a finished run tells about its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.base.yaml import read_yaml

USUAL_SIZE = 640  # pixels, when nothing says otherwise
LARGEST_SIZE = 8192  # pixels that a stranger's file may ask for by itself


def trained_with(weights: Sequence[str | Path]) -> dict[str, Any]:
    """The options of the run that the first weights file lies in (its opt.yaml), empty when there is none."""
    file = Path(weights[0]).parent.parent / "opt.yaml" if weights else None
    return read_yaml(file) if file and file.is_file() else {}


def trained_size(weights: Sequence[str | Path]) -> int:
    """The side in pixels of the images that the weights were trained on, as their run's folder tells, else 640.

    For weights that do not know it themselves, as those of earlier versions.
    """
    return usable_size(trained_with(weights).get("imgsz")) or USUAL_SIZE


def usable_size(size: Any) -> int:
    """The side in pixels that a file states, 0 for none or for what cannot be one."""
    return size if type(size) is int and 0 < size <= LARGEST_SIZE else 0
