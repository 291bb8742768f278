"""Loggers are subscribers to the training hooks; none of them can change, stall or end a training."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from utils.base.callbacks import Callbacks
from utils.base.options import nearest
from utils.loggers.clearml import ClearMl
from utils.loggers.comet import Comet
from utils.loggers.csv import CsvLogger
from utils.loggers.images import PictureLogger
from utils.loggers.mlflow import Mlflow
from utils.loggers.run import RunInfo
from utils.loggers.service import Farewell, Service, ServiceLogger
from utils.loggers.tensorboard import TensorBoard
from utils.loggers.wandb import Wandb

__all__ = ["RunInfo", "check_loggers", "subscribe_loggers"]

SERVICES: dict[str, type[Service]] = {kind.name: kind for kind in (TensorBoard, Wandb, Mlflow, ClearMl, Comet)}
MODULES = {"comet": "comet_ml"}  # where the package is not called as the service
PACKAGES = {"comet": "comet-ml"}
AUTOMATIC = ("tensorboard",)  # used where they are installed, unless something else is said


def subscribe_loggers(callbacks: Callbacks, run: RunInfo) -> None:
    """results.csv always, pictures except in a trial of a search, and the services of `run.options["loggers"]`.

    Raises ValueError as `check_loggers` does.
    """
    kinds = [SERVICES[name] for name in _chosen(run.options.get("loggers", ["auto"]))]
    callbacks.subscribe(CsvLogger(run.folder, run.history))
    if run.options.get("evolve") is None:
        callbacks.subscribe(PictureLogger(run.folder, run.names, run.labels))
    loggers = [ServiceLogger(kind(run)) for kind in kinds]
    for logger in loggers:
        callbacks.subscribe(logger)
    callbacks.subscribe(Farewell(loggers))


def check_loggers(names: Sequence[str]) -> None:
    """Raise ValueError for names that cannot go together, for one that there is not or whose package is missing.

    No service is imported to find out.
    """
    _chosen(names)


def _chosen(names: Sequence[str]) -> list[str]:
    """The services that are meant, each once."""
    asked = list(dict.fromkeys([names] if isinstance(names, str) else names))
    if unknown := [name for name in asked if name not in ("auto", "none", *SERVICES)]:
        known = ["auto", "none", *SERVICES]
        raise ValueError(
            f"--loggers {unknown[0]}: no such logger{nearest(unknown[0], known)}; there are: {', '.join(known)}"
        )
    if "none" in asked and len(asked) > 1:
        raise ValueError(f"--loggers {' '.join(asked)}: none goes with no other; leave it or the others out")
    named = [name for name in asked if name in SERVICES]
    if missing := [name for name in named if not _installed(name)]:
        raise ValueError(f"--loggers {missing[0]} needs a package: pip install {PACKAGES.get(missing[0], missing[0])}")
    automatic = [name for name in AUTOMATIC if "auto" in asked and _installed(name)]
    return list(dict.fromkeys([*automatic, *named]))


def _installed(name: str) -> bool:
    """Is there a package? A mere folder of that name does not count: W&B makes one called wandb where it runs."""
    found = importlib.util.find_spec(MODULES.get(name, name))
    return found is not None and found.origin is not None
