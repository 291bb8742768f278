"""What every logger is told of the run, and how it writes small files of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

USUAL_PROJECT = "YOLOv5"  # what services call a project whose folder is runs/train


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run before its first batch."""

    folder: Path  # the run's own
    names: Sequence[str]
    labels: np.ndarray  # (N, 5) of the training set
    options: dict[str, Any]  # the command line
    hyp: dict[str, Any]
    history: Sequence[Sequence[float]] = ()  # epoch, then a value a column, of epochs finished before: a resumed run

    @property
    def resumed(self) -> bool:
        """Does this run go on with an earlier one? It may have been interrupted before its first epoch ended."""
        return bool(self.history) or bool(self.options.get("resume"))

    @property
    def start(self) -> int:
        """The epoch that comes first."""
        return int(self.history[-1][0]) + 1 if self.history else 0

    @property
    def project(self) -> str:
        """The project's name for a service: the last folder of --project, YOLOv5 for the usual runs/train."""
        parts = Path(self.options.get("project") or "runs/train").parts
        return USUAL_PROJECT if parts[-2:] == ("runs", "train") else parts[-1]

    def flat(self) -> dict[str, Any]:
        """Options and hyper-parameters in one level, the latter as hyp/name; what is no number or word as text."""
        together = self.options | {f"hyp/{name}": value for name, value in self.hyp.items()}
        return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in
                together.items()}  # fmt: skip
