"""What a finished run tells about its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.config import read_yaml

USUAL_SIZE = 640  # pixels, when nothing says otherwise


def trained_with(weights: Sequence[str | Path]) -> dict[str, Any]:
    """The options of the run that the first weights file lies in (its opt.yaml), empty when there is none."""
    file = Path(weights[0]).parent.parent / "opt.yaml" if weights else None
    return read_yaml(file) if file and file.is_file() else {}


def trained_size(weights: Sequence[str | Path]) -> int:
    """The side in pixels of the pictures that the weights were trained on, as far as that is known, else 640."""
    size = trained_with(weights).get("imgsz")
    return size if type(size) is int and size > 0 else USUAL_SIZE
