"""Loggers are subscribers to the training hooks; none of them can change, stall or end a training."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from utils.base.callbacks import Callbacks
from utils.loggers.experiments import ClearMl, Comet, Mlflow
from utils.loggers.run import CsvLogger, ImageLogger, RunInfo
from utils.loggers.service import Service, ServiceLogger
from utils.loggers.tensorboard import TensorBoard
from utils.loggers.wandb import Wandb

SERVICES: dict[str, type[Service]] = {kind.name: kind for kind in (TensorBoard, Wandb, Mlflow, ClearMl, Comet)}
MODULES = {"comet": "comet_ml"}  # where the package is not called as the service


def subscribe_loggers(callbacks: Callbacks, run: RunInfo) -> None:
    """Let results.csv, images (but in trials of a search) and the services that were asked for follow a run."""
    names = check_loggers(run.options.get("loggers", ["auto"]))
    callbacks.subscribe(CsvLogger(run.folder, run.history))
    if run.options.get("evolve") is None:
        callbacks.subscribe(ImageLogger(run.folder, run.names, run.labels))
    callbacks.subscribe(ServiceLogger(run, [SERVICES[name](run) for name in names]))


def check_loggers(names: Sequence[str]) -> list[str]:
    """Return the services that are meant, each once. No service is imported to find out.

    Raises ValueError for names that cannot go together, or one whose package is missing.
    """
    if "none" in names and len(set(names)) > 1:
        raise ValueError(f"--loggers {' '.join(names)}: none goes with no other; leave it or the others out")
    named = [name for name in names if name in SERVICES]
    if missing := [name for name in named if not _installed(name)]:
        package = MODULES.get(missing[0], missing[0]).replace("_", "-")
        raise ValueError(f"--loggers {missing[0]} needs a package: pip install {package}")
    automatic = ["tensorboard"] if "auto" in names and _installed("tensorboard") else []
    return list(dict.fromkeys([*automatic, *named]))


def _installed(name: str) -> bool:
    """Whether there is a package. A mere folder of that name, such as W&B makes where it runs, has no origin."""
    found = importlib.util.find_spec(MODULES.get(name, name))
    return found is not None and found.origin is not None
