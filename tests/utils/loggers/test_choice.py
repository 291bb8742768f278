"""Which services a run is sent to, by --loggers."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.base.callbacks import Callbacks
from utils.loggers import SERVICES, check_loggers, subscribe_loggers
from utils.loggers.run import RunInfo
from utils.training.train_options import LOGGER_NAMES

Info = Callable[..., RunInfo]
ALL = ("tensorboard", "wandb", "mlflow", "clearml", "comet_ml")
PIP = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "clearml": "clearml", "comet": "comet-ml"}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which of the packages there are."""
    real = importlib.util.find_spec

    def choose(*names: str) -> None:
        def find(name: str, *rest: Any) -> Any:
            if name not in ALL:
                return real(name, *rest)
            return importlib.machinery.ModuleSpec(name, None, origin="here") if name in names else None

        monkeypatch.setattr(importlib.util, "find_spec", find)

    return choose


@pytest.mark.parametrize(
    "log, packages, services",
    [
        ([], ALL, []), (["none"], ALL, []), (["auto"], (), []), (["auto"], ALL, ["tensorboard"]),
        (["wandb"], ALL, ["wandb"]), (["wandb", "tensorboard", "wandb"], ALL, ["wandb", "tensorboard"]),
        (["wandb", "auto"], ALL, ["tensorboard", "wandb"]), (["auto", "tensorboard"], ALL, ["tensorboard"]),
        (["mlflow", "auto"], ("mlflow",), ["mlflow"]), (["comet"], ("comet_ml",), ["comet"]),
    ],
)  # fmt: skip
def test_which_services_are_meant(installed, log, packages, services):
    installed(*packages)
    assert check_loggers(log) == services


def test_choices_that_cannot_be(installed: Callable[..., None], info: Info) -> None:
    assert set(LOGGER_NAMES) == {"auto", "none", *SERVICES}
    installed()
    for name, package in PIP.items():
        with pytest.raises(ValueError, match=rf"^--loggers {name} needs a package: pip install {package}$"):
            check_loggers(["auto", name])
        with pytest.raises(ValueError, match="needs a package"):
            subscribe_loggers(Callbacks(), info(loggers=[name]))
    assert not (info().folder / "results.csv").exists()
    installed(*ALL)
    with pytest.raises(ValueError, match="none goes with no other"):
        check_loggers(["none", "wandb"])


def test_a_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comet_ml").mkdir()
    (tmp_path / "comet_ml" / "run1").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "comet_ml", raising=False)
    assert importlib.util.find_spec("comet_ml") is not None
    with pytest.raises(ValueError, match="pip install comet-ml"):
        check_loggers(["comet"])
